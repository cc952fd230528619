"""Whether a wait goes on: of a worker for the server, of the server for its workers."""

import time
from types import SimpleNamespace

import pytest

from aggregathor.cluster import waits as module
from aggregathor.cluster.ranks import TrainingEnded
from aggregathor.cluster.waits import ServerWaits, WorkerWaits
from lossympi import LinkError, Topology


class Ranks:
    """What a worker hears of the server beside the link."""

    rank, end_reason = 2, "why"

    def __init__(self):
        self.has_ended = self.has_state = False

    def ended(self):
        return self.has_ended

    def ended_soon(self):
        return self.has_ended

    def state_is_there(self):
        return self.has_state


@pytest.fixture
def ranks():
    return Ranks()


@pytest.mark.parametrize("heard", ["has_ended", "has_state"])
def test_a_wait_ends_one_slice_after_the_end_was_heard(ranks, heard):
    """What was sent before the end may still be under way."""
    waits = WorkerWaits(ranks, give_up_s=600.0)
    waits.look(True, 0, 0.2)
    setattr(ranks, heard, True)
    waits.look(True, 0, 0.4)
    with pytest.raises(TrainingEnded, match="why"):
        waits.look(True, 0, 0.6)


@pytest.mark.parametrize("again", [(False, 0, 0.2), (True, 1, 0.8), (True, 0, 0.2)])
def test_another_wait_begins_anew(ranks, again):
    """The model may have come, and with it all that the end was not the end of."""
    waits = WorkerWaits(ranks, give_up_s=600.0)
    ranks.has_state = True
    waits.look(True, 0, 0.4)
    ranks.has_state = False
    waits.look(*again)
    waits.look(*again[:2], again[2] + 0.2)


def test_leaving_ends_the_next_look(ranks):
    waits = WorkerWaits(ranks, give_up_s=600.0)
    waits.leave()
    with pytest.raises(TrainingEnded):
        waits.look(True, 0, 0.2)


def test_a_wait_that_is_too_long_says_for_what(ranks):
    waits = WorkerWaits(ranks, give_up_s=1.0)
    waits.look(False, 7, 0.9)
    with pytest.raises(LinkError, match=r"waited 1 s for the server to send a model of round 7"):
        waits.look(False, 7, 1.1)


def test_a_broken_link_is_the_end_if_the_server_has_said_so(ranks):
    waits = WorkerWaits(ranks, give_up_s=1.0)
    error = LinkError("broken")
    assert waits.ended(error) is error
    ranks.has_ended = True
    assert isinstance(waits.ended(error), TrainingEnded)


def test_the_server_forgets_who_has_gone_while_it_waits(monkeypatch):
    monkeypatch.setattr(module, "_LOOK_S", 0.01)
    forgotten, gone = [], []
    ranks = SimpleNamespace(rank=0, gone=lambda: gone, topology=Topology(servers=1, workers=4))
    ranks.describe_end = str
    waits = ServerWaits(ranks)
    waits.begin(SimpleNamespace(forget=forgotten.append, waiting_for=list, round=0))
    gone.append(3)
    time.sleep(0.1)
    assert forgotten == []  # nobody waits
    with waits.context():
        until = time.monotonic() + 10
        while not forgotten and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.05)
    waits.close()
    assert forgotten == [3]
