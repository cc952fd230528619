"""``take`` and ``reply`` under a real mpirun: ``taking_ranks.py``."""

import pytest

from tests.lossympi.taking import CONTRACT
from tests.mpi.launch import check, run_on_one_host

RANKS = "tests.mpi.taking_ranks"


@pytest.mark.parametrize("contract", [each.__name__ for each in CONTRACT])
@pytest.mark.parametrize(("dim", "dtype"), [(100, "float64"), (90_007, "float32")])
def test_the_contract(contract, dim, dtype):
    check(run_on_one_host(5, "-m", RANKS, "contract", "mpi", dim, dtype, contract))


@pytest.mark.parametrize("transport", ["shm", "udp"])
@pytest.mark.parametrize(
    "contract", ["each_gradient_is_answered_by_itself", "rows_are_served_in_turn"]
)
def test_other_transports(contract, transport):
    """In one process ``tests/lossympi`` has all of it."""
    check(run_on_one_host(5, "-m", RANKS, "contract", transport, 90_007, "float32", contract))


@pytest.mark.parametrize("job", ["idle", "flood", "stopped"])
@pytest.mark.parametrize("transport", ["mpi", "shm", "udp"])
def test_jobs(transport, job):
    check(run_on_one_host(5, "-m", RANKS, job, transport))
