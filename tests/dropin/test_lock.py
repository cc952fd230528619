import re
from pathlib import Path

import pytest

from tests.mpi.launch import check, train

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
def test_a_worker_that_would_write_a_shared_variable_is_refused(way, variable, op):
    done = train(3, SCRIPT, *way.split(), TF_NUM_INTEROP_THREADS="1")
    assert done.returncode != 0
    found = re.search(
        r"rank [12] would write (\S+), which only the server writes: (\w+) '\S+' made at "
        rf"{re.escape(str(SCRIPT))}:(\d+), in (\w+)",
        done.stderr,
    )
    assert found is not None, done.stderr
    assert (found[1], found[2]) == (variable, op)
    assert "# the line" in SCRIPT.read_text().splitlines()[int(found[3]) - 1]
    assert "True" not in done.stdout


@pytest.mark.long
@pytest.mark.parametrize("way", ["clipping", "session"])
def test_without_the_lock_it_goes_on(way):
    said = check(train(3, SCRIPT, way, TF_NUM_INTEROP_THREADS="1", AGGREGATHOR_LOCK="off"))
    assert len(re.findall(r"rank \d: True", said)) == 3


@pytest.mark.parametrize(
    "words",
    [("clipping",), pytest.param(("frozen", "patch"), marks=pytest.mark.long)],
    ids="-".join,
)
def test_a_copy_may_be_written_instead(words):
    lock = "scan" if "patch" in words else "patch"
    done = train(3, SCRIPT, *words, TF_NUM_INTEROP_THREADS="1", AGGREGATHOR_LOCK=lock)
    assert len(re.findall(r"rank \d: True", check(done))) == 3
    assert re.search(r"rank 1: AssignVariableOp '\S+' made at .* writes a copy of", done.stderr)
