"""The links that lose nothing, under a real mpirun: ``lossless_ranks.py``."""

import pytest

from tests.mpi.launch import check, run_on_one_host

RANKS = "tests.mpi.lossless_ranks"


@pytest.mark.parametrize("job", ["exact", "sleeper", "hostile", "waits", "differ"])
def test_jobs_over_mpi(job):
    check(run_on_one_host(5, "-m", RANKS, job, "mpi"))


@pytest.mark.parametrize("job", ["exact", "sleeper", "waits", "differ"])
def test_jobs_with_shared_memory(job):
    check(run_on_one_host(5, "-m", RANKS, job, "shm"))


def test_what_a_close_overtakes_is_kept_off_the_stack():
    """Without CMA, with which the server would not need the worker to go on."""
    check(run_on_one_host(5, "-m", RANKS, "overtaken", "mpi", OMPI_MCA_smsc="^cma"))


def test_transfers_that_never_end_keep_little_memory():
    """Two workers stall in two rounds, and one sends 40 messages that nobody wants."""
    check(run_on_one_host(5, "-m", RANKS, "stalled", "mpi", OMPI_MCA_smsc="^cma"))
