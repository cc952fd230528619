"""Jobs under a real mpirun on one host; ``ranks.py`` is what each rank does and asserts."""

import pytest

from tests.mpi.launch import check, run_on_one_host

RANKS = "tests.mpi.ranks"


@pytest.mark.parametrize("plane", ["native", "python"])
def test_what_is_lost_is_known_and_the_model_is_whole(plane):
    check(run_on_one_host(5, "-m", RANKS, "lossy", plane, LOSSYMPI_DROP="0.1"))


@pytest.mark.parametrize("plane", ["native", "python"])
def test_silent_worker_is_not_waited_for_until_it_is_back(plane):
    check(run_on_one_host(5, "-m", RANKS, "sleeper", plane))


@pytest.mark.parametrize("job", ["options_differ", "firewall"])
def test_every_rank_is_told_what_went_wrong_and_where(job):
    check(run_on_one_host(5, "-m", RANKS, job))
