"""How jobs end whose ranks do not end alike, and what the screen says last."""

import re
import time
from pathlib import Path

import pytest

from tests.mpi.launch import run_on_one_host
from tests.mpi.results import collected

SCRIPT = Path(__file__).with_name("endings_script.py")


@pytest.fixture
def start(tmp_path):
    def run(num_ranks, script=SCRIPT, **variables):
        done = run_on_one_host(
            num_ranks,
            script,
            survives=True,
            warnings=(),
            timeout_s=240,
            RESULTS=str(tmp_path),
            AGGREGATHOR_GAR="median" if num_ranks > 3 else "average",
            AGGREGATHOR_F="1" if num_ranks > 3 else "0",
            TF_NUM_INTRAOP_THREADS="1",
            TF_CPP_MIN_LOG_LEVEL="2",
            **variables,
        )
        ours = [line for line in done.stderr.splitlines() if line.startswith("aggregathor: ")]
        return done, ours, collected(tmp_path)

    return run


def test_a_worker_whose_loop_ends_lets_the_others_go_on(start):
    done, ours, made = start(4, ENDINGS="3:5:break", STEPS="15")
    assert done.returncode == 0, done.stderr
    assert made == {0: 15, 1: 15, 2: 15, 3: 5}
    said = [line for line in ours if "rank 3's script ended" in line]
    assert len(said) == 1
    assert re.search(r"rank 3's script ended, before round \d+; 2 of 3 workers are left$", said[0])
    assert "Start" not in done.stderr


def test_a_server_whose_loop_ends_first_ends_those_of_the_workers(start):
    done, ours, made = start(3, ENDINGS="0:5:break", STEPS="15")
    assert done.returncode == 0, done.stderr
    assert made == {0: 5}
    assert (
        "aggregathor: the server's script ended first, and with it the rounds of rank 1, 2" in ours
    )


def test_the_last_words_are_the_cause(start):
    done, ours, made = start(4, ENDINGS="2:5:raise 3:5:raise", STEPS="15")
    assert done.returncode != 0
    assert made == {}
    line = SCRIPT.read_text().splitlines().index('        raise ArithmeticError("no more of this")')
    cause = f"failed on rank 2, 3: ArithmeticError: no more of this (endings_script.py:{line + 1})"
    assert cause in ours[-1], done.stderr
    assert "Start" not in done.stderr


def test_an_error_of_all_ranks_is_said_once(start):
    done, _, made = start(3, ENDINGS="0:5:raise 1:5:raise 2:5:raise", STEPS="15")
    assert done.returncode != 0
    assert made == {}
    assert done.stderr.count("Traceback") == 1, done.stderr
    assert done.stderr.count("aggregathor: the script has failed on rank 0") == 1
    assert done.stderr.rstrip().endswith("ArithmeticError: no more of this")


def test_a_job_in_which_no_optimizer_took_part_fails(start, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import aggregathor as agt\nagt.init()\n")
    done, ours, _ = start(3, script)
    assert done.returncode == 2, done.stderr
    assert [line for line in ours if "nothing was distributed" in line] == ours[-1:]


@pytest.mark.parametrize("how", ["new", "old"])
def test_ranks_that_train_different_variables_are_told_which(how, start):
    begun_s = time.monotonic()
    done, ours, _ = start(3, SCRIPT.with_name("apart_script.py"), HOW=how)
    assert time.monotonic() < begun_s + 60  # of which TensorFlow takes a good part
    assert done.returncode != 0
    said = [line for line in ours if "head_0" in line and "head_1" in line]
    assert said, done.stderr
    assert "choose alike on all of them" in said[0]
    assert "Traceback" not in done.stderr
