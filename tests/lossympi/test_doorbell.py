"""Who rings and who wakes; that links use it is seen in ``tests/mpi``."""

import threading
import time

import pytest

from lossympi.doorbell import Doorbell


@pytest.fixture
def bells():
    """Three ranks, the last of which is on another host."""
    bells = [Doorbell() for _ in range(3)]
    names = [bell.name for bell in bells]
    bells[0].meet([names[0], names[1], b""], waits_for=[1, 2])
    bells[1].meet([names[0], names[1], b""], waits_for=[0])
    bells[2].meet([b"", b"", names[2]], waits_for=[0])
    yield bells
    for bell in bells:
        bell.close()


def test_names_differ_and_leave_no_file(bells):
    assert len({bell.name for bell in bells}) == 3
    assert all(bell.name[:1] == b"\0" for bell in bells)


def test_who_can_be_rung(bells):
    assert [bell.hears_all for bell in bells] == [False, True, False]


def test_nobody_rings(bells):
    begun = time.monotonic()
    assert not bells[1].wait(0.05)
    assert time.monotonic() - begun >= 0.05
    assert not bells[1].wait(0.0)


def test_a_ring_before_the_wait_counts_once(bells):
    bells[0].ring([1])
    bells[0].ring([1])
    assert bells[1].wait(10.0)
    assert not bells[1].wait(0.0)


def test_a_ring_ends_a_wait(bells):
    timer = threading.Timer(0.1, lambda: bells[1].ring([0]))
    timer.start()
    begun = time.monotonic()
    assert bells[0].wait(10.0)
    assert time.monotonic() - begun < 5.0
    timer.join()


def test_who_rings_without_end_does_not_hold_up_who_listens(bells):
    class Ringing:
        """A socket on which somebody else's ring is there as soon as one was taken."""

        taken = 0

        def recv(self, size):
            self.taken += 1
            assert self.taken < 1000, "it takes them for ever"
            return b""

    bells[0].ring([1])
    own = bells[1]._socket
    bells[1]._socket = Ringing()
    assert bells[1].wait(1.0)
    assert bells[1]._socket.taken == 64
    bells[1]._socket = own


def test_ringing_never_waits_nor_fails(bells):
    bells[0].ring([2])  # elsewhere
    for _ in range(10_000):  # more than its queue takes
        bells[0].ring([1])
    assert bells[1].wait(0.0)
    bells[1].close()
    bells[0].ring([1])  # it has gone
    bells[0].ring([])
