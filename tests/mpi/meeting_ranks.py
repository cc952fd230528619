"""What each rank of a job does that not all come to: mpirun -n 4 python -m ... NAME."""

import os
import pickle
import signal
import sys
import time

import pytest

from aggregathor.cluster.meeting import Meeting
from aggregathor.cluster.ranks import start_ranks
from aggregathor.errors import UserError
from lossympi import ConnectError, connect, mpi
from tests.mpi.results import leave

RANKS = start_ranks()
SENT = []  # what MPI may still read


def all_come():
    meeting = Meeting(RANKS, 20.0)
    for round in range(3):
        everyones = meeting.allgather((round, RANKS.rank), tuple[int, int])
        assert everyones == [(round, rank) for rank in range(4)]
    assert meeting.bcast("x" * 10**6 if RANKS.rank == 0 else None) == "x" * 10**6
    assert meeting.Dup().size == meeting.size == 4
    meeting.agree("word", "the same")
    with pytest.raises(UserError, match=r"rank 0 has 0 and rank 1 has 1\. Do all hosts run"):
        meeting.agree("rank", RANKS.rank)
    assert meeting.together(lambda: RANKS.rank) == RANKS.rank
    with pytest.raises(UserError, match=r"^rank 2: no room$"):
        meeting.together(fails_on_2)


def fails_on_2():
    if RANKS.rank == 2:
        raise UserError("no room")


def one_leaves():
    meet_without_2("rank 2 has ended its script, and the training begins with all ranks")


def one_dies():
    if RANKS.rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    meet_without_2("rank 2 has died, and the training begins with all ranks")


def one_is_late():
    if RANKS.rank == 2:
        time.sleep(1.5)
    meet_without_2("rank 2 has not come as far as the others within 0.5 s")


def one_is_stopped_at_the_end():
    """The server kills it, which the kernel has named; mpirun would wait for it for ever."""
    RANKS.identify(Meeting(RANKS, 20.0))
    if RANKS.rank == 2:
        os.kill(os.getpid(), signal.SIGSTOP)


class Evil:
    """Leaves a mark where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (os.environ["MARK"],)


def one_sends_a_pickle():
    send_from_2(pickle.dumps(Evil()))
    meet_without_2("what rank 2 sends is not taken: not JSON")


def one_sends_too_much():
    send_from_2(b"[" * 2**23)
    meet_without_2(r"what rank 2 sends is not taken: a message of 8388608 bytes, and at most 65536")


def one_stops_in_the_middle():
    """The longest message, which MPI sends in parts. Where the server can fetch it by itself it is
    whole, and no JSON."""
    send_from_2(b"[" * 2**16)
    meet_without_2("rank 2 has not come .* a message of 65536 bytes has begun|what rank 2 sends is")


def send_from_2(message):
    if RANKS.rank == 2:
        SENT.append((message, RANKS.comm.Isend(message, 0, 6)))
        time.sleep(2)  # in which it calls nothing of MPI


def one_sends_a_pickle_in_place_of_connecting():
    """As MPI's allgather hands on what is pickled."""
    comm = mpi.import_mpi().COMM_WORLD
    if RANKS.rank == 2:
        signal.alarm(4)
        comm.allgather(Evil())
    begun = time.monotonic()
    with pytest.raises(ConnectError, match=r"^rank 2 has not come as far as the others"):
        connect(comm, 10, transport="shm", start_s=1.0)
    assert time.monotonic() - begun < 8


def one_calls_another_collective():
    comm = mpi.import_mpi().COMM_WORLD
    if RANKS.rank == 2:
        signal.alarm(4)
        comm.Barrier()
    begun = time.monotonic()
    with pytest.raises(ConnectError, match=r"^rank 2 has not come as far as the others"):
        connect(comm, 10, transport="mpi", start_s=1.0)
    assert time.monotonic() - begun < 8


def one_does_not_duplicate():
    meeting = Meeting(RANKS, 1.0)
    if RANKS.rank == 2:
        meeting._way.allgather(None)
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(UserError, match=r"rank 2 has died|rank 0, 1, 3 waited"):
        meeting.Dup()


def meet_without_2(words):
    if RANKS.rank == 2:
        return
    begun = time.monotonic()
    with pytest.raises(UserError, match=words):
        Meeting(RANKS, 20.0 if sys.argv[1] in ("one_leaves", "one_dies") else 0.5).allgather(None)
    assert time.monotonic() - begun < 5


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    RANKS.shutdown("")
    leave(RANKS.rank, "through")
    if mpi.import_mpi().Is_finalized():
        sys.exit(0)
    os._exit(0)  # without MPI's end, which would wait for the dead
