"""Faults of workers and of the server, in real jobs; what each rank does is in faulty_script.py."""

import itertools
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.mpi.launch import ONE_HOST, check, environment, run_on_one_host
from tests.mpi.results import collected

SCRIPT = Path(__file__).with_name("faulty_script.py")
RUN = ("--with-ft", "ulfm", "-n")


@pytest.fixture
def start(tmp_path):
    """Runs a job; returns the process, and what each rank that has come to its end has left."""
    folders = (tmp_path / f"results-{number}" for number in itertools.count())

    def run(num_ranks, *flags, **variables):
        folder = next(folders)
        folder.mkdir()
        words = ("-m", "aggregathor.run", *flags, SCRIPT)
        more = {"TF_NUM_INTRAOP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2", **variables}
        more["RESULTS"] = str(folder)
        done = run_on_one_host(num_ranks, *words, survives=True, warnings=(), timeout_s=240, **more)
        return done, collected(folder)

    return run


@pytest.mark.parametrize(
    "transport",
    [
        pytest.param("shm", marks=pytest.mark.long),
        "udp",
        pytest.param("mpi", marks=pytest.mark.long),
    ],
)
def test_training_goes_on_while_no_more_than_f_are_faulty(transport, start):
    """NaN, killed, and stopped for 4 s; beside them one that sends garbage to MPI."""
    faults = "5:1:nan 6:8:kill 7:8:stop" + (" 4:5:garbage" if transport == "mpi" else "")
    flags = ("--gar=median", "--f=3", f"--transport={transport}", "--link_args=timeout_s=2.0")
    flags += ("--show=all",)
    done, found = start(8, *flags, STEPS="120", FAULTS=faults)
    check(done)
    assert set(found) == {0, 1, 2, 3, 4, 5, 7}
    assert found[0]["accuracy"] > 0.8
    # Also on the one that was stopped and had rounds to catch up with.
    assert {each["digest"] for each in found.values()} == {found[0]["digest"]}
    assert ranks_in(done.stdout) == set(found)


BASGD = ("--protocol=basgd", "--gar=median", "--f=1", "--protocol_args=buffers=3 reassign_s=0.5")


@pytest.mark.long
def test_without_rounds_faulty_workers_stop_nobody(start, tmp_path):
    """NaN, killed, stopped for 4 s, garbage and a flood: each of them is one of seven workers.

    The one that was stopped comes back, and ends with the model that all have.
    """
    faults = "3:5:flood 4:5:garbage 5:1:nan 6:8:kill 7:8:stop"
    monitor = tmp_path / "monitor"
    flags = (*BASGD, "--transport=mpi", "--show=all", f"--monitor={monitor}")
    done, found = start(8, *flags, STEPS="300", FAULTS=faults)
    check(done)
    assert set(found) == {0, 1, 2, 3, 4, 5, 7}
    assert found[0]["steps"] == 300
    assert found[0]["accuracy"] > 0.8
    assert {each["digest"] for each in found.values()} == {found[0]["digest"]}
    arrivals, rejected = found[0]["arrivals"], found[0]["rejected"]
    assert rejected == [0, 0, 0, 0, arrivals[4], 0, 0]
    assert arrivals[5] < 10
    assert arrivals[6] > 10  # it has gone on
    # Who floods has its turn as the others have.
    assert arrivals[2] < 2 * max(arrivals[0], arrivals[1])
    assert "suspected: worker 4 in" in done.stderr
    rows = [row.split(",") for row in (monitor / "run-1" / "workers.csv").read_text().splitlines()]
    dropped = [sum(int(row[6]) for row in rows[1:] if row[1] == str(each)) for each in range(7)]
    assert dropped[2] > 100
    assert dropped[:2] == [0, 0]


@pytest.mark.long
@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ("2:5:kill 3:6:kill", r"workers 1, 2 \(ranks 2, 3\) ended, and 2 of 4 workers are left"),
        (
            "2:5:stop 3:6:stop",
            r"the model has had no update for [23] s, and nothing came from workers 1, 2 "
            r"\(ranks 2, 3\) for 1 s or longer",
        ),
    ],
)
def test_without_rounds_it_stops_where_too_few_are_left(faults, said, start, tmp_path):
    """At once where they are dead, and where they are silent after --stop_after_s."""
    saved = tmp_path / "saved"
    flags = (*BASGD, "--transport=mpi", "--stop_after_s=2", f"--checkpoint={saved}")
    done, found = start(5, *flags, STEPS="2000", FAULTS=faults)
    assert done.returncode != 0
    assert re.search(said, done.stderr), done.stderr
    assert "basgd has 3 buffers, and goes on while as many workers live" in done.stderr
    assert f"Saved in {saved / 'server' / 'server.npz'}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not found


def test_averaging_learns_nothing_where_one_sends_nan(start):
    """In as many steps as above."""
    done, found = start(4, "--gar=average", STEPS="120", FAULTS="2:1:nan")
    check(done)
    assert found[0]["steps"] == 120
    assert found[0]["accuracy"] < 0.3


def ranks_in(output):
    """Which ranks have written to standard output."""
    return {int(rank) for rank in re.findall(r"^rank (\d) has ended$", output, re.MULTILINE)}


@pytest.mark.long
@pytest.mark.parametrize("transport", ["shm", "udp"])
def test_a_worker_that_is_always_late_is_left_behind_and_catches_up(transport, start):
    """Its steps take 0.5 s and the server waits for 0.2 s: it sends to rounds that are over."""
    flags = ("--gar=median", "--f=1", f"--transport={transport}", "--link_args=timeout_s=0.2")
    done, found = start(5, *flags, STEPS="40", FAULTS="3:5:late")
    check(done)
    assert set(found) == {0, 1, 2, 3, 4}
    assert {each["digest"] for each in found.values()} == {found[0]["digest"]}
    assert found[0]["missing"][2] >= 20
    assert re.search(rf"nothing came from worker 2 in {found[0]['missing'][2]} rounds", done.stderr)


@pytest.mark.parametrize(
    ("fault", "how"),
    [pytest.param("raise", "has ended its script", marks=pytest.mark.long), ("kill", "has died")],
)
def test_a_worker_that_never_begins_is_named_and_ends_all(fault, how, start):
    done, found = start(3, "--gar=average", FAULTS=f"2:0:{fault}", STEPS="10")
    assert done.returncode != 0
    assert done.stderr.count(f"error: rank 2 {how}, and the training begins with all ranks") == 1
    assert not found
    if fault == "raise":
        assert "the script has failed on rank 2\nTraceback" in done.stderr
        assert done.stderr.count("Traceback") == 1
        assert "runpy" not in done.stderr
    else:
        assert "Traceback" not in done.stderr


def test_training_stops_where_the_rule_cannot_be_kept(start, tmp_path):
    done, found = start(
        *(5, "--gar=median", "--f=1", "--link_args=timeout_s=1.0", "--stop_after_s=3"),
        f"--checkpoint={tmp_path / 'saved'}",
        FAULTS="2:5:kill 3:6:kill 4:7:exit",
        STEPS="60",
    )
    assert done.returncode != 0
    # Two that have ended are too many for ever; the third may have gone meanwhile.
    gone = r"workers 1, 2 \(ranks 2, 3\)|workers 1, 2, 3 \(ranks 2, 3, 4\)"
    words = rf"nothing came from ({gone}), and median needs n >= 2f \+ 1"
    assert re.search(words, done.stderr)
    assert f"Saved in {tmp_path / 'saved' / 'server' / 'server.npz'}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not found


def test_a_server_that_was_killed_goes_on_with_the_same_trajectory(start, tmp_path):
    """An attack remembers what honest workers sent in all rounds before."""
    job = ("--gar=median", "--f=1", "--byzantine=1", "--attack=mimic")
    job = (*job, "--attack_args=follow=direction")
    flags = (*job, f"--checkpoint={tmp_path / 'saved'}", "--checkpoint_every=4")
    done, whole = start(4, *job, STEPS="24")
    assert set(whole) == {0, 1, 2, 3}
    assert ranks_in(done.stdout) == {0}  # of the others nothing is shown
    killed, left = start(4, *flags, STEPS="24", FAULTS="0:15:kill")
    assert killed.returncode != 0
    # Of those that have not said it mpirun has ended some when the first of them ended.
    assert re.search(r"error: rank \d has lost the server \(rank 0\)", killed.stderr)
    assert "Traceback" not in killed.stderr
    assert not left
    again, found = start(4, *flags, STEPS="24")
    check(again)
    assert "going on after step 12" in again.stderr
    assert (whole[0].pop("steps"), found[0].pop("steps")) == (24, 12)
    assert found == whole


@pytest.mark.parametrize(
    "sign", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
def test_a_signal_to_mpirun_ends_all(sign, tmp_path):
    words = (*ONE_HOST, *RUN, "3", sys.executable, "-m", "aggregathor.run", SCRIPT)
    more = environment(STEPS="100000", STARTED=str(tmp_path), TF_CPP_MIN_LOG_LEVEL="2")
    with subprocess.Popen(words, env=more, stderr=subprocess.DEVNULL) as job:
        until = time.monotonic() + 120
        while len(list(tmp_path.iterdir())) < 3 and time.monotonic() < until:
            time.sleep(0.1)
        processes = [int(path.name) for path in tmp_path.iterdir()]
        job.send_signal(sign)
        assert job.wait(timeout=15) != 0
    assert len(processes) == 3
    until = time.monotonic() + 5
    while any(runs(process) for process in processes):
        assert time.monotonic() < until
        time.sleep(0.1)


def runs(process):
    """Whether a process is there, and is not only waiting for its parent to notice its end."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
