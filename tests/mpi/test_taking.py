"""``take`` and ``reply`` under a real mpirun: ``taking_ranks.py``."""

import pytest

from tests.lossympi.taking import CONTRACT
from tests.mpi.launch import check, run_on_one_host

RANKS = "tests.mpi.taking_ranks"


@pytest.mark.parametrize("contract", [each.__name__ for each in CONTRACT])
@pytest.mark.parametrize(("dim", "dtype"), [(100, "float64"), (90_007, "float32")])
def test_the_contract(contract, dim, dtype):
    check(run_on_one_host(5, "-m", RANKS, "contract", "mpi", dim, dtype, contract))


@pytest.mark.parametrize("job", ["idle", "flood"])
@pytest.mark.parametrize("transport", ["mpi", "shm"])
def test_jobs(transport, job):
    check(run_on_one_host(5, "-m", RANKS, job, transport))
