import re
from pathlib import Path

import pytest

from tests.mpi.launch import check, run_on_one_host

SCRIPT = Path(__file__).with_name("lock_script.py")
QUIET = {
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


def run(way, **environment):
    return run_on_one_host(3, SCRIPT, way, warnings=(), timeout_s=120, **QUIET, **environment)


@pytest.mark.parametrize(
    ("way", "variable", "op"),
    [
        pytest.param("clipping", "critic/dense/kernel", "AssignVariableOp", id="Keras"),
        pytest.param("session", "weights", "AssignVariableOp", id="v1"),
    ],
)
def test_a_worker_that_would_write_a_shared_variable_is_refused(way, variable, op):
    done = run(way)
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
    said = check(run(way, AGGREGATHOR_LOCK="off"))
    assert len(re.findall(r"rank \d: True", said)) == 3
