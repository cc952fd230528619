"""Collectives in which a rank may be missing, on threads in place of processes."""

import threading
import time

import pytest

from aggregathor.cluster.meeting import Meeting, SaidByServerError
from aggregathor.cluster.ranks import Ranks, TrainingEnded
from aggregathor.errors import UserError
from lossympi import LinkError
from tests.cluster.fake_mpi import World, on_all_ranks


def meet(size, run, *, limit_s=20.0, world=None):
    """Runs ``run(ranks, meeting)`` on each of some ranks; returns what each returned or raised."""

    def on_one(comm):
        ranks = Ranks(comm)
        return run(ranks, Meeting(ranks, limit_s))

    return on_all_ranks(size, on_one, world)


def assert_all_raise(found, words):
    """Of the ranks that are there; the server raises it as its own, which reports it for all."""
    assert [type(error) for error in found] == [UserError] + [SaidByServerError] * (len(found) - 1)
    assert {str(error) for error in found} == {words}


def test_all_get_what_each_has():
    def run(ranks, meeting):
        got = [meeting.allgather((round, ranks.rank), tuple[int, int]) for round in range(3)]
        same = meeting.bcast("word" if ranks.is_server else None)
        meeting.agree("word", same)
        return got, same, meeting.together(lambda: ranks.rank), meeting.each(lambda: ranks.rank**2)

    everyones = [[(round, rank) for rank in range(3)] for round in range(3)]
    assert meet(3, run) == [(everyones, "word", rank, [0, 1, 4]) for rank in range(3)]


def test_a_duplicate_has_messages_of_its_own():
    def run(ranks, meeting):
        own = meeting.Dup()
        assert own.rank == ranks.rank
        if ranks.is_server:
            own.Isend(b"2", 1, 9)
            ranks.comm.Isend(b"1", 1, 9)
            return None
        got = [bytearray(1), bytearray(1)]
        for comm, buffer in zip((ranks.comm, own), got, strict=True):
            comm.Recv(buffer, source=0, tag=9)
        return got

    assert meet(2, run) == [None, [b"1", b"2"]]


@pytest.mark.parametrize("verb", ["together", "each"])
@pytest.mark.parametrize(
    ("fails_on", "words"),
    [({1}, "rank 1: no room"), ({2, 1}, "rank 1: no room"), ({0, 2}, "no room")],
    ids=str,
)
def test_a_step_that_fails_on_a_rank_fails_on_all_in_the_same_words(fails_on, words, verb):
    def run(ranks, meeting):
        def step():
            if ranks.rank in fails_on:
                raise UserError("no room")

        with pytest.raises(UserError) as raised:
            getattr(meeting, verb)(step)
        # The next collective finds all ranks at the same place.
        return str(raised.value), meeting.allgather(ranks.rank)

    assert meet(3, run) == [(words, [0, 1, 2])] * 3


def test_a_step_that_is_wrong_raises_on_its_rank_and_the_others_hear_that_it_has_gone():
    """An error that a user cannot fix keeps its traceback; its rank ends, and says goodbye."""

    def run(ranks, meeting):
        def step():
            if ranks.rank == 1:
                raise ZeroDivisionError

        try:
            meeting.together(step)
        finally:
            ranks.shutdown("")

    server, wrong, other = meet(3, run)
    assert isinstance(wrong, ZeroDivisionError)
    assert_all_raise(
        [server, other],
        "rank 1 has ended its script, and the training begins with all ranks. Its own output says "
        "why; start again with one worker fewer if it cannot be mended.",
    )


def test_a_value_that_differs_is_told_with_both():
    found = meet(3, lambda ranks, meeting: meeting.agree("seed", {"seed": ranks.rank // 2, "n": 3}))
    assert {type(error) for error in found} == {UserError}
    (words,) = {str(error) for error in found}
    assert words.startswith("all ranks must have the same seed; rank 0 and rank 2 have seed=0 and ")


def test_a_rank_that_has_died_is_told_on_all_that_are_there():
    world = World(3)

    def run(ranks, meeting):
        meeting.allgather(None)
        if ranks.rank == 1:
            world.kill(1)
            return None
        return meeting.allgather(None)

    server, _, other = meet(3, run, world=world)
    assert_all_raise(
        [server, other],
        "rank 1 has died, and the training begins with all ranks. Its own output says why; start "
        "again with one worker fewer if it cannot be mended.",
    )


def test_ranks_that_are_late_are_told_on_all_that_are_there():
    arrived = threading.Event()

    def run(ranks, meeting):
        if ranks.rank in (1, 3):
            arrived.wait(30)
            return None
        try:
            return meeting.allgather(None)
        finally:
            if ranks.is_server:
                arrived.set()

    server, _, other, _ = meet(4, run, limit_s=0.2)
    words = "rank 1, 3 has not come as far as the others within 0.2 s: if its script does the same"
    assert_all_raise([server, other], f"{words}, raise start_s")


def test_a_worker_hears_why_the_server_ends_in_place_of_meeting():
    def run(ranks, meeting):
        if ranks.is_server:
            ranks.shutdown("no data here")
            return None
        try:
            return meeting.allgather(None)
        finally:
            ranks.shutdown("")

    _, *workers = meet(3, run)
    assert [(type(error), str(error)) for error in workers] == [(TrainingEnded, "no data here")] * 2


def test_a_worker_whose_server_has_died_says_so():
    world = World(2)

    def run(ranks, meeting):
        meeting.allgather(None)
        if ranks.is_server:
            world.kill(0)
            return None
        return meeting.allgather(None)

    begun_s = time.monotonic()
    _, error = meet(2, run, world=world)
    assert isinstance(error, LinkError)
    assert "rank 1 has lost the server (rank 0)" in str(error)
    assert time.monotonic() - begun_s < 10
