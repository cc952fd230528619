"""Ranks that wait for one that cannot come, under a real mpirun: ``meeting_ranks.py``."""

import pytest

from tests.mpi.launch import check, run_on_one_host
from tests.mpi.results import collected

DIES = ("one_dies", "one_does_not_duplicate", "one_is_stopped_at_the_end")


@pytest.mark.parametrize(
    "job",
    [
        "all_come",
        "one_leaves",
        "one_is_late",
        "one_sends_a_pickle",
        "one_sends_too_much",
        "one_stops_in_the_middle",
        *DIES,
    ],
)
def test_all_come_or_all_are_told(job, tmp_path):
    mark = tmp_path / "mark"
    words = ("-m", "tests.mpi.meeting_ranks", job)
    check(run_on_one_host(4, *words, survives=True, RESULTS=str(tmp_path), MARK=str(mark)))
    assert not mark.exists(), "what a worker sent was unpickled"
    assert collected(tmp_path) == dict.fromkeys(
        {0, 1, 2, 3} - ({2} if job in DIES else set()), "through"
    )


@pytest.mark.parametrize(
    "job", ["one_sends_a_pickle_in_place_of_connecting", "one_calls_another_collective"]
)
def test_who_calls_another_collective_is_named(job, tmp_path):
    """Rank 2 waits for ever, and its alarm ends it."""
    mark = tmp_path / "mark"
    words = ("-m", "tests.mpi.meeting_ranks", job)
    done = run_on_one_host(4, *words, survives=True, RESULTS=str(tmp_path), MARK=str(mark))
    assert collected(tmp_path) == dict.fromkeys((0, 1, 3), "through"), done.stderr
    assert not mark.exists(), "what a worker sent was unpickled"
