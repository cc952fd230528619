"""Ways to train that scripts have of their own: a job ends with what the script does alone."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.mpi.launch import check, run
from tests.mpi.results import collected, results_of
from tests.warm.start import python

SCRIPT = Path(__file__).with_name("updates_script.py")
WAYS = (
    *("own_rule_eagerly", "own_rule_in_function", "own_rule_by_xla", "own_rule_of_keras"),
    *("own_rule_in_a_session", "v1_optimizer_eagerly", "v1_optimizer_in_function"),
    *("threads_eagerly", "threads_in_function", "xla_once", "xla_method", "xla_twice"),
    *("xla_then_clips", "xla_unbuilt", "sharpness_aware", "weights_clipped", "look_ahead"),
    *("spectral_normalization", "built_late", "gradient_comes_later", "variable_in_the_step"),
    *("autograph", "autograph_and_xla", "mirrored_unbuilt", "data_of_workers", "two_sessions"),
)


@pytest.fixture(scope="module")
def alone_and_job(tmp_path_factory):
    """Runs the script alone, and as a job of three; returns what each rank has left."""
    alone, job = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("job")
    threads = {"TF_NUM_INTRAOP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}  # as the job has
    check(run([*python(), SCRIPT], timeout_s=240, RESULTS=str(alone), **threads))
    results, _ = results_of(3, job, SCRIPT)
    return collected(alone)[0], results


@pytest.mark.parametrize("way", WAYS)
def test_a_job_ends_as_the_script_alone(way, alone_and_job):
    alone, ranks = alone_and_job
    assert sorted(alone) == sorted(WAYS)
    for rank in ranks.values():
        for own, server in zip(rank[way]["values"], ranks[0][way]["values"], strict=True):
            np.testing.assert_array_equal(own, server)
        for own, expected in zip(rank[way]["values"], alone[way]["values"], strict=True):
            np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", ["xla_twice", "xla_then_clips"])
def test_a_step_that_xla_cannot_compile_is_named(way, alone_and_job):
    alone, ranks = alone_and_job
    assert alone[way]["said"] == []
    for rank in ranks.values():
        (said,) = rank[way]["said"]
        line = re.search(rf"{re.escape(str(SCRIPT))}:(\d+), in body", said)[1]
        assert "# the line" in SCRIPT.read_text().splitlines()[int(line) - 1]
        assert "so it runs without XLA. Make it with jit_compile=False" in said
    assert ranks[0]["xla_once"]["said"] == []
