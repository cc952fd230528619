"""What ranks tell each other beside gradients, on threads in place of processes."""

import os
import pickle
import signal
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from aggregathor.cluster import ranks as module
from aggregathor.cluster import stopping
from aggregathor.cluster.meeting import Meeting
from aggregathor.cluster.processes import Process
from aggregathor.cluster.ranks import Ranks, SlowWaitWarning, TrainingEnded
from lossympi import LinkError
from lossympi.messages import Receiver, pack_arrays
from tests.cluster.fake_mpi import MPI, World, on_all_ranks

ARRAYS = {"w": np.arange(6, dtype=np.float64).reshape(2, 3), "none": np.zeros((0, 2), np.float32)}


def test_roles_and_numbers():
    found = on_all_ranks(3, lambda comm: Ranks(comm))
    assert [ranks.is_server for ranks in found] == [True, False, False]
    assert [ranks.topology.workers for ranks in found] == [2, 2, 2]
    assert [ranks.row for ranks in found[1:]] == [0, 1]


def test_workers_receive_the_servers_arrays():
    def run(comm):
        ranks = Ranks(comm)
        if ranks.is_server:
            ranks.send_state(ARRAYS)
            return ARRAYS
        return ranks.receive_state()

    for arrays in on_all_ranks(3, run):
        assert arrays.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            assert arrays[name].dtype == array.dtype
            np.testing.assert_array_equal(arrays[name], array)


def test_the_server_receives_what_a_worker_keeps_or_nothing_in_time():
    def run(comm):
        ranks = Ranks(comm)
        if ranks.is_server:
            return [ranks.receive_worker_state(row, 0.3, 4096) for row in (0, 1)]
        if ranks.rank == 1:
            ranks.send_worker_state(ARRAYS)
        return None

    kept, nothing = on_all_ranks(3, run)[0]
    np.testing.assert_array_equal(kept["w"], ARRAYS["w"])
    assert nothing is None


class Evil:
    """Leaves a mark where it is unpickled."""

    unpickled = False

    def __reduce__(self):
        return setattr, (Evil, "unpickled", True)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (pickle.dumps({"w": Evil()}), "the header must be within"),
        (b"", "the header must be within 0 bytes, got 8"),
        (bytes(4097), "a message of 4097 bytes, and at most 4096 may come"),
        (
            pack_arrays({"w": ARRAYS["w"]})[:-1],
            "w must be at most 47 bytes, as many as are left, got [2, 3]",
        ),
    ],
)
def test_what_are_no_arrays_of_a_worker_are_dropped_with_a_warning(message, words, capsys):
    def run(comm):
        ranks = Ranks(comm)
        if ranks.is_server:
            return [ranks.receive_worker_state(0, 5.0, 4096) for _ in range(2)]
        comm_of = ranks.comm
        comm_of.Isend(message, 0, module._WORKER_STATE)
        ranks.send_worker_state(ARRAYS)
        return None

    nothing, kept = on_all_ranks(2, run)[0]
    assert nothing is None
    np.testing.assert_array_equal(kept["w"], ARRAYS["w"])  # the next is one again
    assert f"what rank 1 keeps is not taken: {words}" in capsys.readouterr().err
    assert not Evil.unpickled


def test_half_a_workers_arrays_are_not_waited_for_longer():
    def run(comm):
        ranks = Ranks(comm)
        if ranks.is_server:
            begun_s = time.monotonic()
            found = [ranks.receive_worker_state(0, 0.2, 4096) for _ in range(2)]
            return found, time.monotonic() - begun_s
        ranks.comm.begin(1000, 0, module._WORKER_STATE)
        ranks.send_worker_state(ARRAYS)
        return None

    found, elapsed_s = on_all_ranks(2, run)[0]
    assert found == [None, None]  # what comes behind it is not taken for it
    assert elapsed_s < 2


def test_the_arrays_that_the_server_has_begun_to_send_come_before_its_end(monkeypatch):
    """A long message may arrive after a short one that was sent later."""

    def run(comm):
        ranks = Ranks(comm)
        if ranks.is_server:
            ranks.send_state(ARRAYS)
            ranks.shutdown("")
            return None
        test, tries = Receiver._is_whole, []

        def slow(self):
            tries.append(0)
            return len(tries) > 20 and test(self)

        monkeypatch.setattr(Receiver, "_is_whole", slow)
        try:
            return ranks.receive_state()
        finally:
            ranks.shutdown("")

    _, got = on_all_ranks(2, run)
    np.testing.assert_array_equal(got["w"], ARRAYS["w"])


def end_without_goodbye(monkeypatch, processes, limit="_GOODBYE_S"):
    """A server that ends while its worker does not, which is one of these processes."""
    monkeypatch.setattr(module, limit, 0.2)
    monkeypatch.setattr(module, "identify_all", lambda *_: processes)
    over = threading.Event()

    def run(comm):
        ranks = Ranks(comm)
        ranks.identify(Meeting(ranks, 20.0))
        if ranks.is_server:
            ranks.shutdown("")
            over.set()
        else:
            over.wait(30)

    assert on_all_ranks(2, run) == [None, None]


def test_the_server_kills_no_process_that_the_kernel_has_not_named(monkeypatch, killed, capsys):
    end_without_goodbye(monkeypatch, {1: "it is in another container"})
    assert killed == []
    told = "rank 1 does not end, and it is not killed, as it is in another container"
    assert capsys.readouterr().err.count(told) == 1


def test_the_server_kills_the_process_that_the_kernel_has_named(monkeypatch, killed, capsys):
    process = Process(os.getpid())  # whose signals are not sent here
    end_without_goodbye(monkeypatch, {1: process})
    process.close()
    assert [sent for _, sent in killed] == [signal.SIGKILL]
    assert "rank 1 does not end, so it is killed" in capsys.readouterr().err


def test_ranks_of_one_process_are_not_known(capsys):
    """Threads, here: whatever a worker says, the server is not its own worker."""

    def run(comm):
        ranks = Ranks(comm)
        ranks.identify(Meeting(ranks, 20.0))
        return ranks._processes

    words = "it is the server's own process, or one that started it"
    assert on_all_ranks(3, run)[0] == {1: words, 2: words}


def test_all_end_together_and_workers_hear_why():
    def run(comm):
        ranks = Ranks(comm)
        if not ranks.is_server:
            with pytest.raises(TrainingEnded, match="no data left"):
                ranks.wait(lambda: False, "a model")
        ranks.shutdown("no data left" if ranks.is_server else "")
        return ranks.end_reason

    assert on_all_ranks(3, run)[1:] == ["no data left"] * 2
    assert MPI.finalized == 3


def test_a_dead_worker_does_not_hold_up_the_end():
    world = World(3)
    joined = threading.Barrier(3, timeout=30)

    def run(comm):
        ranks = Ranks(comm)
        joined.wait()
        if ranks.rank == 2:
            world.kill(2)
            return
        ranks.shutdown("")

    assert on_all_ranks(3, run, world) == [None] * 3
    assert MPI.finalized == 0  # which would wait for the dead one


def test_a_dead_server_is_an_error_that_says_so():
    world = World(2)
    joined = threading.Barrier(2, timeout=30)

    def run(comm):
        ranks = Ranks(comm)
        joined.wait()
        if ranks.is_server:
            world.kill(0)
            return None
        with pytest.raises(LinkError, match=r"rank 1 has lost the server \(rank 0\)"):
            ranks.receive_state()
        with pytest.raises(LinkError, match="lost the server"):
            ranks.ended_soon()
        ranks.shutdown("")
        return "went on"

    assert on_all_ranks(2, run, world)[1] == "went on"


def test_the_server_knows_who_has_gone():
    world = World(4)
    joined, parted = threading.Barrier(4, timeout=30), threading.Event()

    def run(comm):
        ranks = Ranks(comm)
        joined.wait()
        if ranks.rank == 1:
            world.kill(1)
        if ranks.rank == 2:
            comm_of = ranks.comm
            comm_of.Isend(b"\0", 0, module._GOODBYE)
        if not ranks.is_server:
            parted.wait(30)
            return None
        until = time.monotonic() + 30
        while len(ranks.gone()) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        gone = ranks.gone()
        parted.set()
        return gone

    assert on_all_ranks(4, run, world)[0] == [0, 1]


def test_a_long_wait_is_told_ever_more_rarely(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    warning = SlowWaitWarning(3, lambda: "the server")
    for second in range(90):
        clock[0] = float(second)
        warning.look()
    told = [f"aggregathor: rank 3 has waited {s} s for the server" for s in (10, 20, 40, 80)]
    assert capsys.readouterr().err.splitlines() == told


def test_after_ctrl_c_the_server_does_not_wait_for_workers_that_evaluate(
    monkeypatch, killed, capsys
):
    monkeypatch.setattr(stopping, "_asked", signal.SIGINT)
    process = Process(os.getpid())
    begun_s = time.monotonic()
    end_without_goodbye(monkeypatch, {1: process}, "_STOPPED_S")
    process.close()
    assert time.monotonic() - begun_s < 5
    assert [sent for _, sent in killed] == [signal.SIGKILL]
    assert "rank 1 does not end, so it is killed" in capsys.readouterr().err
