"""Every option of Keras's optimizers in every style: a job ends with what the script does alone."""

from pathlib import Path

import numpy as np
import pytest

from tests.mpi.results import results_of

SCRIPT = Path(__file__).with_name("options_script.py")
OPTIONS = (
    *("plain", "adam", "accumulation", "ema", "ema_overwrites", "ema_of_accumulated", "clipnorm"),
    *("clipvalue", "global_clipnorm", "weight_decay", "loss_scale_factor", "loss_scale"),
    *("schedule", "callable", "mixed_float16", "mixed_bfloat16"),
)
# By strategy: what is tried with it, and how.
STYLES = {
    "default": ("fit", "function", "eager"),
    "xla": ("fit", "function"),
    "one_replica": ("fit", "function", "eager"),
    "two_replicas": ("fit", "function", "eager"),
    "one_device": ("fit", "function", "eager"),
}
# The others are with the long tests.
TRIED = {
    "default": ("plain", "adam", "accumulation", "weight_decay", "loss_scale", "mixed_float16"),
}
# What Keras does not do alone: it changes variables in a branch.
CANNOT = {
    (strategy, option, style)
    for strategy in ("one_replica", "two_replicas")
    for option in ("accumulation", "ema_overwrites", "ema_of_accumulated")
    for style in ("fit", "function")
}
CELLS = [
    pytest.param(
        *(strategy, option, style),
        marks=[] if option in TRIED.get(strategy, ()) else [pytest.mark.long],
    )
    for strategy, styles in STYLES.items()
    for option in OPTIONS
    for style in styles
]


@pytest.fixture(scope="module")
def job(request, tmp_path_factory):
    """Runs the options of a strategy that the chosen tests have; returns what each rank has."""
    chosen = {}
    for item in request.session.items:
        if item.path == request.path:
            parameters = item.callspec.params
            chosen.setdefault(parameters["strategy"], set()).add(parameters["option"])
    done = {}

    def results(strategy):
        if strategy not in done:
            options = [option for option in OPTIONS if option in chosen[strategy]]
            folder = tmp_path_factory.mktemp(strategy)
            done[strategy] = results_of(3, folder, SCRIPT, strategy, *options)[0]
        return done[strategy]

    return results


@pytest.mark.parametrize(("strategy", "option", "style"), CELLS)
def test_a_job_ends_as_the_script_alone(strategy, option, style, job):
    ranks = [result[f"{option} {style}"] for result in job(strategy).values()]
    if (strategy, option, style) in CANNOT:
        assert all("merge_call" in rank["cannot"] for rank in ranks)
        return
    for rank in ranks:
        assert "cannot" not in rank, rank["cannot"]
        for own, server in zip(rank["job"], ranks[0]["job"], strict=True):
            np.testing.assert_array_equal(own, server)
        for own, alone in zip(rank["job"], ranks[0]["alone"], strict=True):
            np.testing.assert_allclose(own, alone, rtol=1e-5, atol=1e-6)
