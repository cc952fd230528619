"""Collectives over MPI's messages on a user's communicator; ranks are threads (``fake_mpi``)."""

import threading
import time

import pytest

from lossympi import ConnectError, connect
from lossympi.collectives import Collectives
from lossympi.mpi_collectives import MpiCommunicator, duplicate
from tests.cluster import fake_mpi
from tests.cluster.fake_mpi import World, on_all_ranks


class Failed(RuntimeError):
    """What is raised here."""


@pytest.fixture(autouse=True)
def killed(monkeypatch):
    return fake_mpi.install(monkeypatch)


def test_all_hear_all_and_a_communicator_is_duplicated_once():
    def run(comm):
        for _ in range(2):
            ranks = Collectives(MpiCommunicator.of(comm, 20.0, Failed), Failed)
            got = ranks.allgather((ranks.rank, b"\x01"), tuple[int, bytes])
        return got, comm._num_made

    assert on_all_ranks(3, run) == [([(rank, b"\x01") for rank in range(3)], 1)] * 3


def test_a_duplicate_is_one_on_all_ranks():
    def run(comm):
        made = MpiCommunicator.of(comm, 20.0, Failed).Dup()
        return made._context, made.rank

    found = on_all_ranks(3, run)
    assert len({context for context, _ in found}) == 1
    assert [rank for _, rank in found] == [0, 1, 2]


def with_missing(run, missing=1, how=None, size=3):
    """Ranks but one run something; returns what they raised."""
    over = threading.Event()
    world = World(size)

    def on_one(comm):
        if comm.rank == missing:
            if how:
                how(world, comm)
            over.wait(30)
            return None
        try:
            return run(comm)
        finally:
            if comm.rank == 0:
                over.set()

    return [each for rank, each in enumerate(on_all_ranks(size, on_one, world)) if rank != missing]


def test_who_does_not_come_is_named_by_the_ranks_that_do():
    begun_s = time.monotonic()
    found = with_missing(lambda comm: duplicate(comm, 0.3, Failed))
    assert time.monotonic() - begun_s < 10
    words = "rank 1 has not come as far as the others: it has died, or does something else"
    assert [(type(error), str(error)) for error in found] == [(Failed, words)] * 2


def test_who_has_died_is_named():
    found = with_missing(
        lambda comm: duplicate(comm, 0.3, Failed), how=lambda world, comm: world.kill(1)
    )
    words = "rank 1 has not come as far as the others: it has died, or does something else"
    assert {str(error) for error in found} == {words}


def test_a_worker_without_server_says_for_what_it_has_waited():
    over = threading.Event()

    def run(comm):
        if comm.rank == 0:
            over.wait(30)
            return None
        try:
            return duplicate(comm, 0.3, Failed)
        finally:
            over.set()

    _, error = on_all_ranks(2, run)
    assert str(error) == (
        "rank 1 has waited 0 s for all ranks to come here, and MPI does not tell which one is "
        "missing"
    )


def test_connect_names_who_does_not_come():
    found = with_missing(lambda comm: connect(comm, 10, start_s=0.3))
    assert {type(error) for error in found} == {ConnectError}
    assert {str(error) for error in found} == {
        "rank 1 has not come as far as the others: it has died, or does something else"
    }


def test_after_a_failure_a_communicator_is_duplicated_again():
    """What a rank sends late cannot be taken for an answer of the next call."""
    late = threading.Event()

    def run(comm):
        ranks = MpiCommunicator.of(comm, 0.3, Failed)
        ranks.allgather(None)
        if comm.rank == 1:
            late.wait(30)
        with pytest.raises(Failed, match=r"^rank 1 has not come as far as the others"):
            ranks.allgather("old")
        late.set()
        assert ranks.broken
        return MpiCommunicator.of(comm, 20.0, Failed).allgather(comm.rank)

    assert on_all_ranks(3, run) == [[0, 1, 2]] * 3
