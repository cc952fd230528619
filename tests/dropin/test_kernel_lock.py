"""Jobs whose workers have the lock of kernels: all that is ours writes, and nothing else does."""

from pathlib import Path

import pytest

from tests.mpi.results import results_of

SCRIPT = Path(__file__).with_name("kernel_lock_script.py")
LONG = [pytest.mark.long]


def run(folder, way, lock="kernel", **environment):
    """Returns what the ranks have left, and what they have said."""
    more = {"TF_NUM_INTEROP_THREADS": "1", "AGGREGATHOR_LOCK": lock, **environment}
    results, done = results_of(3, folder, SCRIPT, way, **more)
    return results, done.stderr


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
def test_a_job_trains_and_its_workers_write_nothing_else(way, name, tmp_path):
    results, _ = run(tmp_path, way)
    assert len({result["digest"] for result in results.values()}) == 1
    assert results[0]["refused"] is None
    for rank in (1, 2):
        words = f"rank {rank} would write {name}, which only the server writes: Assign"
        assert words in results[rank]["refused"]


@pytest.mark.long
def test_with_both_layers_a_job_trains(tmp_path):
    results, _ = run(tmp_path, "tape", lock="scan,kernel")
    assert len({result["digest"] for result in results.values()}) == 1
    assert "rank 1 would write" in results[1]["refused"]


@pytest.mark.long
def test_where_it_cannot_be_had_a_worker_says_why_and_goes_on(tmp_path):
    results, errors = run(tmp_path, "tape_eagerly", AGGREGATHOR_KERNELS="tensorflow")
    assert {result["refused"] for result in results.values()} == {None}
    for rank in (1, 2):
        assert f"rank {rank} goes on without the lock of kernels, because it needs the" in errors
