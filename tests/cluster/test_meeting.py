"""Collectives in which a rank may be missing, on threads in place of processes."""

import pickle
import re
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


# What a worker sends in place of a message.


class Evil:
    """Leaves a mark where it is unpickled."""

    unpickled = False

    def __reduce__(self):
        return setattr, (Evil, "unpickled", True)


def hostile(send, limit_s=0.5, verb=lambda meeting: meeting.allgather(None)):
    """Ranks meet, rank 1 does something else; returns what the others raised or got."""
    over = threading.Event()

    def run(ranks, meeting):
        if ranks.rank == 1:
            send(ranks.comm)
            over.wait(30)
            return None
        try:
            return verb(meeting)
        finally:
            if ranks.is_server:
                over.set()

    server, _, other = meet(3, run, limit_s=limit_s)
    return [server, other]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (pickle.dumps(Evil()), "not JSON: "),
        (b"", "not JSON: "),
        (b"[" * 60_000, "not JSON: "),
        (b"\x1b[2J", "not JSON: "),
        (b"[" * 900 + b"]" * 900, "not JSON of at most 32 levels"),
        (b"7", "it must be a list of 3, got 7"),
        (b'[1,["value",null]]', "it must be a list of 3, got [1, ["),
        (b'["1",["value",null],null]', "it[0] must be whole, got '1'"),
        (b"[1,null,7]", "it[2] must be text, got 7"),
        (bytes(2**16 + 1), "a message of 65537 bytes, and at most 65536 may come"),
    ],
    ids=lambda message: repr(message[:9]),
)
def test_what_is_no_message_ends_all_in_the_same_words(message, words):
    found = hostile(lambda comm: comm.Isend(message, 0, 6))
    assert [type(error) for error in found] == [UserError, SaidByServerError]
    assert str(found[0]) == str(found[1])
    assert str(found[0]).startswith(f"what rank 1 sends is not taken: {words}")
    assert str(found[0]).isprintable()
    assert not Evil.unpickled


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"[1,null,null]", "rank 1: what it sends must be a list of 2, got None"),
        (b'[1,["failures",null],null]', "rank 1 is at 'failures' of what all ranks do together, "),
        (b'[2,["value",null],null]', "rank 1 is at call 2 of those made together, not 1"),
        (b'[1,["value",[1]],null]', "rank 1: value must be whole, got [1]"),
        (b'[1,null,"\\u001b[2Jaggregathor:\\nall is well"]', "rank 1: \\x1b[2Jaggregathor:\n  all"),
    ],
)
def test_a_message_of_another_call_ends_all_in_the_same_words(message, words):
    found = hostile(
        lambda comm: comm.Isend(message, 0, 6), verb=lambda meeting: meeting.allgather(0, int)
    )
    assert {str(error) for error in found} == {str(found[0])}
    assert str(found[0]).startswith(words)


def test_who_sends_half_a_message_is_named_within_the_limit():
    begun_s = time.monotonic()
    found = hostile(lambda comm: comm.begin(5000, 0, 6))
    assert time.monotonic() - begun_s < 5
    assert_all_raise(
        found,
        "rank 1 has not come as far as the others within 0.5 s: if its script does the same, raise "
        "start_s. Of rank 1 a message of 5000 bytes has begun, and never ended",
    )


def test_who_dies_in_the_middle_of_a_message_is_named():
    world = World(3)
    begun = threading.Barrier(3, timeout=30)

    def run(ranks, meeting):
        if ranks.rank == 1:
            ranks.comm.begin(5000, 0, 6)
        begun.wait()
        if ranks.rank == 1:
            world.kill(1)
            return None
        return meeting.allgather(None)

    server, _, other = meet(3, run, limit_s=0.5, world=world)
    assert_all_raise([server, other], str(server))
    assert str(server).startswith("rank 1 has died, and the training begins with all ranks.")


def test_who_does_not_help_to_duplicate_is_named_by_who_waits():
    """It comes to the meeting, and does not call what MPI makes duplicates by."""

    def send(comm):
        comm.Isend(b"[1,null,null]", 0, 6)
        comm.Isend(b"[2,true,null]", 0, 6)

    found = hostile(send, verb=lambda meeting: meeting.Dup())
    assert_all_raise(
        found,
        "rank 0, 2 waited 0.5 s for a duplicate of the communicator, which some rank does not help "
        "to make: MPI does not tell which",
    )


def test_what_comes_too_late_for_a_call_is_not_taken_for_the_next():
    def run(ranks, meeting):
        if ranks.rank == 1:
            late.wait(30)
        with pytest.raises(UserError, match=r"rank 1 has not come"):
            meeting.allgather("first")
        late.set()
        return Meeting(ranks, 20.0).allgather(f"second {ranks.rank}")

    late = threading.Event()
    assert meet(3, run, limit_s=0.3) == [[f"second {rank}" for rank in range(3)]] * 3


def test_a_value_that_is_too_long_is_told_on_all():
    def run(ranks, meeting):
        return meeting.allgather("x" * 70_000 if ranks.rank == 2 else None)

    found = meet(3, run)
    assert len({str(error) for error in found}) == 1
    assert re.match(r"rank 2: a value of 70\d+ bytes does not travel, 65536 do", str(found[0]))


def test_who_takes_no_answer_holds_up_the_others_once(monkeypatch):
    """The answers are longer than what MPI keeps for who does not receive."""
    monkeypatch.setattr("lossympi.mpi_collectives._TAKE_S", 0.3)
    world = World(3)
    world.takes_nothing.add(1)

    def run(ranks, meeting):
        if ranks.rank == 1:
            for number in range(1, 6):
                ranks.comm.Isend(b'[%d,["value",null],null]' % number, 0, 6)
            done.wait(30)
            return None
        begun_s = time.monotonic()
        for _ in range(5):
            meeting.allgather(None)
        if ranks.is_server:
            done.set()
        return time.monotonic() - begun_s

    done = threading.Event()
    server_s, _, _ = meet(3, run, world=world)
    assert 0.3 <= server_s < 1.0
