"""What each rank of a job does that not all come to: mpirun -n 4 python -m ... NAME."""

import os
import signal
import sys
import time

import pytest

from aggregathor.cluster.meeting import Meeting
from aggregathor.cluster.ranks import start_ranks
from aggregathor.errors import UserError
from lossympi import mpi
from tests.mpi.results import leave

RANKS = start_ranks()


def all_come():
    meeting = Meeting(RANKS, 20.0)
    for round in range(3):
        assert meeting.allgather((round, RANKS.rank)) == [(round, rank) for rank in range(4)]
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


def meet_without_2(words):
    if RANKS.rank == 2:
        return
    begun = time.monotonic()
    with pytest.raises(UserError, match=words):
        Meeting(RANKS, 0.5 if "late" in sys.argv[1] else 20.0).allgather(None)
    assert time.monotonic() - begun < 5


if __name__ == "__main__":
    {job.__name__: job for job in (all_come, one_leaves, one_dies, one_is_late)}[sys.argv[1]]()
    RANKS.shutdown("")
    leave(RANKS.rank, "through")
    if mpi.import_mpi().Is_finalized():
        sys.exit(0)
    os._exit(0)  # without MPI's end, which would wait for the dead
