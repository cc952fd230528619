"""Ranks that wait for one that cannot come, under a real mpirun: ``meeting_ranks.py``."""

import pytest

from tests.mpi.launch import check, run_on_one_host


@pytest.mark.parametrize("job", ["all_come", "one_leaves", "one_dies", "one_is_late"])
def test_all_come_or_all_are_told(job):
    done = run_on_one_host(4, "-m", "tests.mpi.meeting_ranks", job, survives=True)
    said = check(done)
    ranks = {0, 1, 3} if job == "one_dies" else {0, 1, 2, 3}
    assert {line for line in said.splitlines() if "through" in line} == {
        f"rank {rank} is through" for rank in ranks
    }
