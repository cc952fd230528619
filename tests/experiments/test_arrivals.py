"""``python -m experiments`` without rounds: simulated, under mpirun, and the one by the other."""

import json
import re
import sys

import numpy as np
import pytest

from aggregathor.errors import UserError
from aggregathor.trainer.schedule import read_schedule
from experiments.config import Config
from experiments.run import run
from tests.experiments.arrival_ranks import COMMON, DIES_AT, RUNS
from tests.experiments.folders import assert_same, rows_of, saved, trained
from tests.experiments.test_mpirun import experiments, start
from tests.mpi.launch import ONE_HOST
from tests.warm.start import python as warm_python

SCRIPT = ("-W", "error", "tests/experiments/arrival_ranks.py")
RUN = {"workers": 5, "batch_size": 8, "steps": 40, "eval_every": 10, "checkpoint_every": 20}
PROTOCOLS = {
    "async": {},
    "basgd": {"gar": "median", "f": 1},
    "zeno++": {"byzantine": 3, "attack": "sign-flip", "validation_share": 0.1},
    "kardam": {"f": 1},
}


def done(process, timeout_s=300):
    out, err = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, f"{out}\n{err}"
    return out, err


def longer(*transports):
    """Returns parameters of a test that is long over these."""
    return [pytest.param(each, marks=pytest.mark.long) for each in transports]


@pytest.fixture(scope="module", params=["each its own", *longer("mpi", "shm", "udp")])
def both(request, tmp_path_factory):
    """Folders of runs under mpirun, and of simulations that follow their schedules."""
    folder = tmp_path_factory.mktemp("runs")
    real, simulated = folder / "real", folder / "simulated"
    over = [] if request.param == "each its own" else [request.param]
    done(start(*ONE_HOST, "-n", "6", *warm_python(), *SCRIPT, real, *over))
    done(start(sys.executable, *SCRIPT, simulated, real))
    return real, simulated


@pytest.mark.parametrize("name", RUNS)
def test_a_simulation_that_follows_the_schedule_of_real_ranks_has_the_same_bits(name, both):
    real, simulated = (folder / name for folder in both)
    for folder in (real, simulated):
        assert json.loads((folder / "failure.json").read_text()) == ""
    schedule = read_schedule(real / "schedule.csv")
    assert len(schedule) == RUNS[name].get("steps", COMMON["steps"])
    assert (real / "schedule.csv").read_bytes() == (simulated / "schedule.csv").read_bytes()
    (metrics, workers, state), (metrics2, workers2, state2) = map(trained, (real, simulated))
    for each, value in state.items():
        # A server that goes on from a checkpoint has given all workers its newest model then, which
        # no line of the schedule says of one from which nothing came since.
        if not each.endswith(("now_s", "held/held")):
            np.testing.assert_array_equal(value, state2[each], err_msg=each)
    assert metrics == metrics2
    assert workers == workers2
    assert {line.row for line in schedule} == set(range(5))


def deadly(name, folder, transport="mpi"):
    ranks = *ONE_HOST, "--with-ft", "ulfm", "-n", "6", *warm_python()
    process = start(*ranks, *SCRIPT, folder, name, transport)
    _, err = process.communicate(timeout=200)
    failure = json.loads((folder / name / "failure.json").read_text())
    return failure, read_schedule(folder / name / "schedule.csv"), err


@pytest.mark.parametrize("transport", ["mpi", *longer("shm", "udp")])
def test_a_worker_that_is_killed_stops_nobody(transport, tmp_path):
    failure, schedule, err = deadly("killed", tmp_path, transport)
    assert failure == "", err
    assert len(schedule) == 120
    of_last = [step for step, line in enumerate(schedule) if line.row == 4]
    assert len(of_last) == DIES_AT
    later = schedule[of_last[-1] + 1 :]
    assert {line.row for line in later} == {0, 1, 2, 3}
    assert sum(line.verdict == "step" for line in later) > 5


def test_with_fewer_workers_than_buffers_it_stops_and_names_who_is_missing(tmp_path):
    failure, schedule, err = deadly("too few", tmp_path)
    found = re.fullmatch(
        r"step \d+: worker 4 \(rank 5\) ended, and 4 of 5 workers are left: basgd has 5 buffers, "
        r"and goes on while as many workers live\.",
        failure,
    )
    assert found, f"{failure}\n{err}"
    assert sum(line.row == 4 for line in schedule) == DIES_AT


def test_the_command_trains_on_ranks_and_its_end_reaches_all_of_them(tmp_path):
    flags = ["--protocol=kardam", "--f=1", "--steps=100", "--eval_every=50", "--batch_size=8"]
    out, err = done(experiments(5, *flags, f"--output={tmp_path}/real"), 200)
    assert "at step 100" in out
    assert "Traceback" not in err
    flags += [f"--schedule={tmp_path}/real/schedule.csv", "--workers=4"]
    python = [*warm_python(), "-m", "experiments"]
    done(start(*python, *flags, f"--output={tmp_path}/again"), 200)
    for name in ("schedule.csv", "workers.csv"):
        first, second = (tmp_path / which / name for which in ("real", "again"))
        assert first.read_bytes() == second.read_bytes()
    last = [rows_of(tmp_path / which / "metrics.csv")[-1] for which in ("real", "again")]
    assert last[0]["accuracy"] == last[1]["accuracy"]
    assert int(last[0]["updates"]) > 30


def test_with_a_tenth_of_the_datagrams_lost_it_learns(tmp_path):
    flags = ["--protocol=async", "--transport=udp", "--loss=0.1", "--fill=zero", "--steps=400"]
    flags += ["--batch_size=16", "--eval_every=200", f"--output={tmp_path}/x"]
    _, err = done(experiments(4, *flags), 200)
    assert "Traceback" not in err
    first, *_, last = rows_of(tmp_path / "x" / "metrics.csv")
    assert float(first["accuracy"]) < 0.3
    assert float(last["accuracy"]) > 0.8


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_run_goes_on_bit_for_bit(protocol, tmp_path):
    config = {**RUN, "protocol": protocol, **PROTOCOLS[protocol]}
    run(Config(**config), tmp_path / "whole")
    run(Config(**{**config, "steps": 20}), tmp_path / "parts")
    # Of what was recorded beyond the last checkpoint, all is made again.
    result = run(Config(**config), tmp_path / "parts")
    assert result.began_at == 20
    assert_same(tmp_path / "whole", tmp_path / "parts")
    schedules = [(tmp_path / which / "schedule.csv").read_bytes() for which in ("whole", "parts")]
    assert schedules[0] == schedules[1]
    metrics = rows_of(tmp_path / "whole" / "metrics.csv")
    assert [row["step"] for row in metrics] == ["0", "10", "20", "30", "40"]
    updates = [int(row["updates"]) for row in metrics]
    assert updates == sorted(updates)
    assert 0 < updates[-1] <= 40
    assert len(saved(tmp_path / "whole")) == 2


def test_a_schedule_is_as_long_as_the_run(tmp_path):
    config = {**RUN, "protocol": "async"}
    run(Config(**config), tmp_path / "first")
    schedule = str(tmp_path / "first" / "schedule.csv")
    with pytest.raises(UserError, match="has 40 arrivals: --steps=40 at the most, got 50"):
        run(Config(**{**config, "steps": 50}, schedule=schedule), tmp_path / "second")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"protocol": "async", "transport": "udp"}, "cannot be nan"),
        ({"protocol": "zeno++"}, "--validation_share=0.05"),
        ({"validation_share": 1.0}, "--validation_share is a share"),
        ({"delays": "equal"}, "--delays is for protocols without rounds, not for sync"),
        ({"schedule": "x"}, "--schedule is for protocols without rounds"),
        ({"protocol": "async", "transport": "mpi", "schedule": "x"}, "real ranks make their own"),
        ({"protocol": "async", "delay_args": {"most": 1}}, "most is for --delays=staleness"),
        ({"protocol": "async", "byzantine": 1, "attack": "little"}, "little is omniscient"),
    ],
)
def test_what_cannot_work_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        Config(**{**RUN, **given}).check()


def test_real_workers_keep_no_momentum(tmp_path):
    flags = ["--protocol=async", "--momentum=0.9", "--momentum_at=worker", f"--output={tmp_path}/x"]
    process = experiments(3, *flags)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    assert err.count("keeps no momentum at workers") == 1
