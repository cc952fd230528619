import re
from pathlib import Path

import pytest

from tests.mpi.launch import train
from tests.mpi.results import collected, results_of

SCRIPT = Path(__file__).with_name("lock_script.py")


@pytest.mark.parametrize(
    ("way", "variable", "op"),
    [
        pytest.param("clipping", "critic/dense/kernel", "AssignVariableOp", id="Keras"),
        pytest.param("session", "weights", "AssignVariableOp", id="v1"),
        pytest.param(
            *("session callable", "weights", "AssignVariableOp"),
            id="v1 callable",
            marks=pytest.mark.long,
        ),
        pytest.param(
            *("frozen error", "embedding", "AssignVariableOp"),
            id="agt.lock",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_worker_that_would_write_a_shared_variable_is_refused(way, variable, op, tmp_path):
    more = {"TF_NUM_INTEROP_THREADS": "1", "RESULTS": str(tmp_path), "AGGREGATHOR_LOCK": "scan"}
    done = train(3, SCRIPT, *way.split(), **more)
    assert done.returncode != 0
    found = re.search(
        r"rank [12] would write (\S+), which only the server writes: (\w+) '\S+' made at "
        rf"{re.escape(str(SCRIPT))}:(\d+), in (\w+)",
        done.stderr,
    )
    assert found is not None, done.stderr
    assert (found[1], found[2]) == (variable, op)
    assert "# the line" in SCRIPT.read_text().splitlines()[int(found[3]) - 1]
    assert "--lock=drift lets it" in done.stderr
    assert collected(tmp_path) == {}  # no rank has come to its end


def test_what_all_ranks_write_alike_trains_by_default(tmp_path):
    more = {"TF_NUM_INTEROP_THREADS": "1"}
    results, _ = results_of(3, tmp_path, SCRIPT, "clipping", **more)
    assert all(results.values())


@pytest.mark.long
@pytest.mark.parametrize("lock", ["off", "drift"])
@pytest.mark.parametrize("way", ["clipping", "session"])
def test_without_the_strict_lock_it_goes_on(way, lock, tmp_path):
    more = {"TF_NUM_INTEROP_THREADS": "1", "AGGREGATHOR_LOCK": lock}
    results, _ = results_of(3, tmp_path, SCRIPT, way, **more)
    assert all(results.values())


@pytest.mark.parametrize(
    "words",
    [("clipping",), pytest.param(("frozen", "patch"), marks=pytest.mark.long)],
    ids="-".join,
)
def test_a_copy_may_be_written_instead(words, tmp_path):
    lock = "scan" if "patch" in words else "patch"
    more = {"TF_NUM_INTEROP_THREADS": "1", "AGGREGATHOR_LOCK": lock}
    results, done = results_of(3, tmp_path, SCRIPT, *words, **more)
    assert all(results.values())
    assert re.search(r"rank 1: AssignVariableOp '\S+' made at .* writes a copy of", done.stderr)
