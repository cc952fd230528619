"""Ranks that wait for one that cannot come, under a real mpirun: ``meeting_ranks.py``."""

import pytest

from tests.mpi.launch import check, run_on_one_host
from tests.mpi.results import collected


@pytest.mark.parametrize("job", ["all_come", "one_leaves", "one_dies", "one_is_late"])
def test_all_come_or_all_are_told(job, tmp_path):
    words = ("-m", "tests.mpi.meeting_ranks", job)
    check(run_on_one_host(4, *words, survives=True, RESULTS=str(tmp_path)))
    ranks = {0, 1, 3} if job == "one_dies" else {0, 1, 2, 3}
    assert collected(tmp_path) == dict.fromkeys(ranks, "through")
