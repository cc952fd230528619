"""The link over MPI, under a real mpirun; ``lossless_ranks.py`` is what each rank does."""

import pytest

from tests.mpi.launch import check, run_on_one_host

RANKS = "tests.mpi.lossless_ranks"


@pytest.mark.parametrize("job", ["exact", "sleeper", "hostile", "waits", "differ"])
def test_jobs(job):
    check(run_on_one_host(5, "-m", RANKS, job))


def test_what_a_close_overtakes_is_kept_off_the_stack():
    """Without CMA, with which the server would not need the worker to go on."""
    check(run_on_one_host(5, "-m", RANKS, "overtaken", OMPI_MCA_smsc="^cma"))
