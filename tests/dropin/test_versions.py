"""What a job says of a Keras that it was not tested with."""

from pathlib import Path

import pytest

from tests.mpi.launch import train
from tests.mpi.results import collected, results_of

SCRIPT = Path(__file__).with_name("versions_script.py")


def test_a_keras_that_lacks_something_is_told_in_a_line(tmp_path):
    done = train(3, SCRIPT, "lacks", RESULTS=str(tmp_path))
    assert done.returncode == 2
    assert collected(tmp_path) == {}
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("aggregathor: ")]
    assert line.startswith("aggregathor: error: Keras 3.99.0 has no keras.src.layers.layer.Layer.")
    assert "was tested with Keras 3.12 to 3.15" in line
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_of_one_that_was_not_tested_the_server_warns(tmp_path):
    results, done = results_of(3, tmp_path, SCRIPT, "untested")
    assert all(results.values())
    assert done.stderr.count("aggregathor: Keras 3.99.0 is untested; ") == 1
