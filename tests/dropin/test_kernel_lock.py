"""Jobs whose workers have the lock of kernels: all that is ours writes, and nothing else does."""

import re
from pathlib import Path

import pytest

from tests.mpi.launch import check, train

SCRIPT = Path(__file__).with_name("kernel_lock_script.py")
LONG = [pytest.mark.long]


def run(way, lock="kernel", **environment):
    done = train(
        3, SCRIPT, way, TF_NUM_INTEROP_THREADS="1", AGGREGATHOR_LOCK=lock, **environment,
        AGGREGATHOR_OUTPUT="all",
    )  # fmt: skip
    check(done)
    said = re.findall(r"rank (\d): (\S+) (.*)", done.stdout)
    assert sorted(rank for rank, _, _ in said) == ["0", "1", "2"], done.stdout
    return {int(rank): (total, refused) for rank, total, refused in said}, done.stderr


@pytest.mark.parametrize(
    ("way", "name"),
    [
        ("fit", "sequential/dense/kernel"),
        pytest.param("tape_eagerly", "sequential/dense/kernel", marks=LONG),
        pytest.param("session_of_references", "w", marks=LONG),
        pytest.param("session", "w", marks=LONG),
        pytest.param("fit_eagerly", "sequential/dense/kernel", marks=LONG),
        pytest.param("fit_compiled", "sequential/dense/kernel", marks=LONG),
        pytest.param("tape", "sequential/dense/kernel", marks=LONG),
        pytest.param("mirrored", "sequential/dense/kernel", marks=LONG),
    ],
)
def test_a_job_trains_and_its_workers_write_nothing_else(way, name):
    said, _ = run(way)
    assert len({total for total, _ in said.values()}) == 1, said
    assert said[0][1] == "written"
    for rank in (1, 2):
        assert (
            f"rank {rank} would write {name}, which only the server writes: Assign" in said[rank][1]
        )


@pytest.mark.long
def test_with_both_layers_a_job_trains():
    said, _ = run("tape", lock="scan,kernel")
    assert len({total for total, _ in said.values()}) == 1, said
    assert "rank 1 would write" in said[1][1]


@pytest.mark.long
def test_where_it_cannot_be_had_a_worker_says_why_and_goes_on():
    said, errors = run("tape_eagerly", AGGREGATHOR_KERNELS="tensorflow")
    assert {refused for _, refused in said.values()} == {"written"}
    for rank in (1, 2):
        assert f"rank {rank} goes on without the lock of kernels, because it needs the" in errors
