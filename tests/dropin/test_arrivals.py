"""A user's script without rounds: by fit, twice, of two models, and by a loop of its own."""

from pathlib import Path

import pytest

from tests.mpi.launch import train
from tests.mpi.results import results_of

SCRIPT = Path(__file__).with_name("arrivals_script.py")
STEPS = {"fit": 60, "fit again": 70, "fit another": 30}


def trained(job, folder, *words, **environment):
    results, done = results_of(5, folder, SCRIPT, job, *words, **environment)
    return results, done.stderr


@pytest.fixture(scope="module")
def by_basgd(tmp_path_factory):
    """With one of four workers attacking; and files of the monitor."""
    folder = tmp_path_factory.mktemp("basgd")
    environment = {"AGGREGATHOR_MONITOR": str(folder / "monitor")}
    results, said = trained("basgd", tmp_path_factory.mktemp("results"), **environment)
    return results, said, folder


@pytest.mark.parametrize("fit", STEPS)
def test_fit_ends_with_the_servers_steps_and_all_ranks_hold_the_same(by_basgd, fit):
    results, _, _ = by_basgd
    assert len({str(found[fit]) for found in results.values()}) == 1
    assert results[0][fit]["iterations"] == STEPS[fit]
    assert results[0][fit]["accuracy"] > 0.8


def test_a_loop_ends_with_the_servers_and_the_workers_with_its_script(by_basgd):
    results, said, _ = by_basgd
    assert results[0]["loop"]["iterations"] == 60
    assert results[0]["loop"]["accuracy"] > 0.8
    assert results[0]["last"] == "step"
    assert said.count("the server's script ended first") == 1


def test_the_log_says_what_a_step_is(by_basgd):
    _, said, _ = by_basgd
    assert (
        "fit ends after 1 epoch of 10 steps: each step is an update of the model by 3 or more "
        "gradients"
    ) in said


def test_the_monitor_has_each_workers_share_and_staleness(by_basgd):
    _, said, folder = by_basgd
    header, *rows = (folder / "monitor" / "run-1" / "workers.csv").read_text().splitlines()
    assert header == (
        "step,worker,arrivals,accepted,staleness,most_stale,dropped,not_finite,reassigned"
    )
    assert {row.split(",")[1] for row in rows} == {"0", "1", "2", "3"}
    assert "updates by" in said
    assert "worker 3 attacked with negative-gradient" in said


@pytest.mark.long
@pytest.mark.parametrize("transport", ["mpi", "shm", "udp"])
def test_it_learns_on_every_transport(transport, tmp_path):
    environment = {"AGGREGATHOR_TRANSPORT": transport, "AGGREGATHOR_FILL": "zero"}
    results, _ = trained("basgd", tmp_path, **environment)
    for fit in STEPS:
        assert len({str(found[fit]) for found in results.values()}) == 1
        assert results[0][fit]["iterations"] == STEPS[fit]
        assert results[0][fit]["accuracy"] > 0.8


@pytest.mark.long
@pytest.mark.parametrize("job", ["async", "kardam", "zeno++"])
def test_the_other_protocols_learn(job, tmp_path):
    """Zeno++ with three of four workers attacking."""
    results, _ = trained(job, tmp_path)
    for fit in STEPS if job != "zeno++" else ["fit"]:
        assert len({str(found[fit]) for found in results.values()}) == 1
        assert results[0][fit]["iterations"] == STEPS[fit]
        assert results[0][fit]["accuracy"] > 0.8


@pytest.mark.long
@pytest.mark.parametrize(
    ("job", "said"),
    [
        ("turns", "this script trains several by turns"),
        ("zeno++ without", "zeno++ judges gradients by the loss on validation data: give fit"),
    ],
)
def test_what_cannot_work_is_refused_once(job, said, tmp_path):
    done = train(3, SCRIPT, job, RESULTS=str(tmp_path))
    assert done.returncode != 0
    assert done.stderr.count(said) == 1, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_a_session_of_v1_trains(tmp_path):
    results, _ = trained("session", tmp_path)
    assert results[0]["session"] == pytest.approx([0.0] * 3, abs=1e-3)


@pytest.mark.long
def test_a_script_goes_on_from_its_checkpoint(tmp_path):
    """It stops in the middle of a fit, and ends as one that was not stopped."""
    checkpoint = {"AGGREGATHOR_CHECKPOINT": str(tmp_path / "saved")}
    stopped = train(5, SCRIPT, "stops", RESULTS=str(tmp_path / "first"), **checkpoint)
    assert stopped.returncode != 0
    results, said = trained("resumes", tmp_path, **checkpoint)
    assert "going on after step 40" in said
    assert "begin anew" not in said
    assert len({str(found["fit"]) for found in results.values()}) == 1
    assert results[0]["fit"]["iterations"] == 60
    assert results[0]["fit"]["accuracy"] > 0.8
