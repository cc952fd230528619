"""Zeno and DRACO on ranks of which some die or send anything, where datagrams are lost."""

import json
import re

import pytest

from tests.experiments.fault_ranks import WORKERS
from tests.experiments.folders import rows_of
from tests.experiments.test_mpirun import start
from tests.mpi.launch import ONE_HOST
from tests.warm.start import python as warm_python

long = pytest.mark.long


def ran(folder, *words):
    """Returns why the run ended, "" if it did its steps; what it wrote; and its log."""
    process = start(
        *ONE_HOST, "--with-ft", "ulfm", "-n", WORKERS + 1, *warm_python(), "-W", "error",
        "tests/experiments/fault_ranks.py", folder, *words,
    )  # fmt: skip
    _, err = process.communicate(timeout=200)
    assert (folder / "failure.json").exists(), err
    failure = json.loads((folder / "failure.json").read_text())
    return failure, rows_of(folder / "metrics.csv"), rows_of(folder / "workers.csv"), err


def used(workers, row):
    return [float(each["selected"]) for each in workers if each["worker"] == str(row)]


@pytest.mark.parametrize(
    "system",
    ["repetition", *(pytest.param(each, marks=long) for each in ("zeno", "cyclic"))],
)
def test_workers_that_send_anything_beside_lost_datagrams(system, tmp_path):
    failure, metrics, workers, err = ran(tmp_path, "garbage", system, "udp", 0.1, 60)
    assert failure == "", err
    assert float(metrics[-1]["accuracy"]) > 0.7
    delivered = [float(each["delivered"]) for each in workers]
    assert min(delivered) < 1
    if system == "zeno":
        assert all(sum(used(workers, row)) == 0 for row in (2, 3, 4, 5))
    elif system == "repetition":  # equal to the copies where by chance
        assert max(used(workers, 5)) < 0.01
        assert "coordinates cannot be verified: too many workers are lost or wrong there" in err


@long
@pytest.mark.parametrize("transport", ["mpi", "shm", "udp"])
@pytest.mark.parametrize("system", ["zeno", "repetition", "cyclic"])
def test_the_others_go_on_when_a_worker_dies(system, transport, tmp_path):
    failure, metrics, workers, err = ran(tmp_path, "killed", system, transport, 0, 60)
    assert failure == "", err
    assert float(metrics[-1]["accuracy"]) > 0.7
    assert used(workers, 5)[-1] == 0
    assert "rank 6's process has died, before round 4; 5 of 6 workers are left" in err


@long
@pytest.mark.parametrize("system", ["repetition", "cyclic"])
def test_where_too_many_die_it_stops_and_names_them(system, tmp_path):
    failure, _, _, err = ran(tmp_path, "too many", system, "mpi", 0, 1000)
    assert re.match(
        r"step \d+: nothing came from workers 4, 5 \(ranks 5, 6\), and draco \(", failure
    ), f"{failure}\n{err}"


@long
@pytest.mark.parametrize("fault", ["killed", "first killed"])
@pytest.mark.parametrize("transport", ["mpi", "udp"])
def test_a_dead_worker_stops_no_attackers(fault, transport, tmp_path):
    """They see the gradients of the others before they send theirs."""
    failure, metrics, workers, err = ran(tmp_path, fault, "attacked", transport, 0, 60)
    assert failure == "", err
    assert float(metrics[-1]["accuracy"]) > 0.6
    alive = [row for row in range(WORKERS) if row != (5 if fault == "killed" else 0)]
    assert all(
        float(each["delivered"]) == 1 for each in workers[-WORKERS:] if int(each["worker"]) in alive
    )
