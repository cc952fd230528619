"""A real training: its server where rounds fail, and as threads against the simulation.

tests/experiments/test_mpirun.py has the same with processes.
"""

import threading
import time

import keras
import numpy as np
import pytest

import lossympi
from aggregathor import settings
from aggregathor.cluster.config import Config
from aggregathor.cluster.job import Job as ClusterJob
from aggregathor.cluster.ranks import Ranks
from aggregathor.protocols.aggregation import Aggregation, RuleError
from aggregathor.protocols.rounds import RoundsServer
from aggregathor.protocols.setting import Setting
from aggregathor.trainer.distributed import Server, Worker
from aggregathor.trainer.sampling import batches
from lossympi import Network, backend, memory
from tests.cluster import fake_mpi
from tests.trainer.toys import (
    clouds,
    cross_entropy,
    linear,
    mlp,
    run,
    sgd,
    simulate,
    validation_for,
    weights,
)

SETTING = Setting(num_workers=5, f=1, gar="krum")


class Job:
    """Of a server whose workers are in this process, on a network that loses all in some rounds."""

    def __init__(self, lossy=()):
        class Losing(Network):
            def arrived(self, round, worker, num_datagrams, attempt=0):
                return np.full(num_datagrams, round not in lossy)

        self.ranks = self.meeting = self
        self.network = Losing()

    def serve(self, dim, read, dtype, **_):
        server, self.links = memory.connect(5, dim, self.network, dtype=dtype)
        self.half = RoundsServer(server, Aggregation(SETTING, dim, dtype=dtype), read)
        return self.half

    def send_state(self, arrays):
        self.sent = arrays

    def agree(self, name, value):
        pass


def serve(job):
    keras.utils.set_random_seed(0)
    drawn = batches(*clouds(), num_workers=5, batch_size=8)
    server = Server(job, SETTING, linear(), cross_entropy, sgd(), drawn, lambda step: False)
    server.connect()
    return server


def step(server, job, value=1.0):
    for link in job.links:
        link.send(server.steps, np.full(server.dim, value, np.float32))
    return server.step()


def test_a_round_of_which_too_little_arrives_counts_and_changes_nothing():
    job = Job(lossy=[1])
    server = serve(job)
    seen = [weights(server)]
    for made in (1, 2, 3):
        report = step(server, job)
        assert (report.step, server.steps, job.half.round) == (made, made, made)
        seen.append(weights(server))
    np.testing.assert_allclose(seen[1], seen[0] - 0.1, atol=1e-6)
    np.testing.assert_array_equal(seen[2], seen[1])
    np.testing.assert_allclose(seen[3], seen[2] - 0.1, atol=1e-6)
    np.testing.assert_array_equal(job.links[0].receive(2).params_d, seen[3])


def test_many_such_rounds_end_the_training_with_the_reason():
    job = Job(lossy=range(100))
    server = serve(job)
    for _ in range(20):
        step(server, job)
    with pytest.raises(RuleError, match=r"^step 21: nothing came from workers 0, 1, 2, 3, 4"):
        step(server, job)


def test_rows_that_came_whole_and_are_refused_end_it_at_once():
    job = Job()
    server = serve(job)
    with pytest.raises(RuleError, match=r"^step 1: krum: more than f=1"):
        step(server, job, np.nan)
    assert server.steps == 0


def test_a_restored_server_tells_its_workers_where_it_is():
    job = Job()
    server = serve(job)
    server.restore({**server.state(), "step": np.array(7), "server/round": np.array(7)})
    step(server, job)
    assert (int(job.sent["step"]), job.half.round) == (7, 8)
    assert job.sent["params"].shape == (server.dim,)


STEPS = 6
ALIKE = {
    "a rule": {"gar": "multi-krum", "f": 1, "num_workers": 5},
    "a composition": {"gar": "bucketing(s=2)+median", "f": 1, "num_workers": 6},
    "a rule that judges by a loss": {
        "gar": "zeno", "f": 3, "byzantine": 3, "attack": "sign-flip", "gar_args": {"b": 4},
        "num_workers": 5,
    },
    "an attack with memory": {
        "gar": "median", "f": 1, "byzantine": 1, "num_workers": 3,
        "attack": "mimic", "attack_args": {"follow": "direction"},
    },
    "losses": {
        "gar": "median", "f": 1, "byzantine": 1, "num_workers": 3,
        "attack": "mimic", "attack_args": {"follow": "direction"},
        "fill": "previous", "loss": 0.3,
    },
    "attackers that move": {
        "gar": "krum", "f": 1, "byzantine": 1, "num_workers": 5, "attack": "hidden-coordinate",
        "byzantine_moves": True,
    },
    "repetition": {
        "protocol": "draco", "protocol_args": {"code": "repetition"}, "f": 1, "byzantine": 1,
        "num_workers": 6, "attack": "omniscient", "byzantine_moves": True,
    },
    "cyclic": {
        "protocol": "draco", "f": 2, "byzantine": 2, "num_workers": 5, "attack": "label-flip",
    },
    "cyclic, losses": {
        "protocol": "draco", "f": 1, "protocol_args": {"redundancy": 5}, "byzantine": 1,
        "num_workers": 6, "attack": "sign-flip", "loss": 0.1, "byzantine_moves": True,
    },
    "the paper's code": {
        "protocol": "draco", "protocol_args": {"code": "cyclic-paper"}, "f": 1, "byzantine": 1,
        "num_workers": 4, "attack": "constant",
    },
}  # fmt: skip


def train_on_threads(setting, monkeypatch):
    """Trains as ``simulate(mlp, **setting)`` does, with a rank a thread.

    Returns the server, and what share of each gradient came in each step.
    """
    fake_mpi.install(monkeypatch)
    num_workers = setting.num_workers
    drawn = batches(*clouds(), num_workers=num_workers, batch_size=8, seed=setting.seed)
    models = []
    for _ in range(1 + num_workers):  # not on the threads: the seed is the process's
        keras.utils.set_random_seed(0)
        models.append(mlp())
    if setting.loss:
        connect_in_memory(setting, monkeypatch)
    config = Config(transport="shm", link_args={"timeout_s": 30.0}, **settings.shared(setting))

    def on_one(comm):
        job = ClusterJob(Ranks(comm), config, secret=setting.seed)
        arguments = (job, setting, models[comm.rank], cross_entropy)
        try:
            if job.is_server:
                validation = validation_for(setting)
                trained = Server(*arguments, sgd(), drawn, lambda step: False, validation)
                trained.connect()
                reports = run(trained, STEPS)
                return trained, [report.round.delivered_n for report in reports]
            worker = Worker(*arguments, drawn, lambda step: False)
            worker.connect()
            worker.run(STEPS)
            return worker
        finally:
            job.close()

    found = fake_mpi.on_all_ranks(1 + num_workers, on_one)
    for each in found:
        if isinstance(each, Exception):
            raise each
    return found[0]


def connect_in_memory(setting, monkeypatch):
    """Gives ranks a link that loses what the simulation's does, and whose server waits for all."""
    links = []

    def connect(ranks, dim, **_):
        if ranks.rank == 0:
            network = Network(loss=setting.loss, seed=setting.seed)
            server, workers = memory.connect(setting.num_workers, dim, network)
            collect, accept, lock = server.collect, server.accept, threading.Lock()

            def collect_all(round, ahead=None):
                until_s = time.monotonic() + 30
                while len(server._senders) < setting.num_workers:
                    assert time.monotonic() < until_s, "a worker has not sent"
                    time.sleep(1e-3)
                with lock:  # the last of them may still be at it
                    return collect(round, ahead)

            def accept_alone(*arguments):
                with lock:
                    return accept(*arguments)

            server.collect, server.accept = collect_all, accept_alone
            server.close = lambda: None  # workers have yet to receive the last model
            links.extend([server, *workers])
        ranks.allgather(None)
        return links[ranks.rank]

    monkeypatch.setattr(lossympi, "connect", connect)


STEP = np.array(1, np.int64)
MOMENTUM = np.ones((1, 51), np.float32)  # d of a linear model
KEPT = {"step": STEP, "round": STEP, "workers/momentum": MOMENTUM}


@pytest.mark.parametrize(
    ("row", "theirs", "words"),
    [
        (0, KEPT, ""),
        (4, {**KEPT, "attack/memory": np.ones(51)}, ""),
        (0, {**KEPT, "attack/memory": np.ones(51)}, "it has attack/memory, round, step, "),
        (0, {"step": STEP}, "it has step, and step, round, workers/momentum are wanted"),
        (0, {**KEPT, "\x1b[2J": STEP}, "it has \\x1b[2J, round, "),
        (0, {**KEPT, "step": np.array([1])}, "step is int64 [1], and int64 [] is wanted"),
        (0, {**KEPT, "step": np.array(1.5)}, "step is float64 [], and int64 [] is wanted"),
        (
            0,
            {**KEPT, "workers/momentum": MOMENTUM[:, 1:]},
            "workers/momentum is float32 [1, 50], and float32 [1, 51] is wanted",
        ),
    ],
)
def test_what_a_worker_keeps_is_taken_if_it_is_what_it_must_be(row, theirs, words, capsys):
    job = Job()
    setting = Setting(
        num_workers=5, byzantine=1, f=1, gar="krum", worker_momentum=0.9, attack="zero"
    )
    keras.utils.set_random_seed(0)
    drawn = batches(*clouds(), num_workers=5, batch_size=8)
    server = Server(job, setting, linear(), cross_entropy, sgd(), drawn, lambda step: False)
    server.connect()
    server.steps = 1
    asked = []

    def receive_worker_state(of, wait_s, most_bytes):
        asked.append(most_bytes)
        return theirs if of == row else None

    job.receive_worker_state = receive_worker_state
    server._hear()
    # A stack of float64, a vector of float32, and two numbers of the server's own state.
    assert set(asked) == {2**16 + 51 * (4 + 5 * 8) + 16}
    taken = server.state()["workers/momentum"][row]
    np.testing.assert_array_equal(taken, np.full(51, not words))
    told = f"what worker {row} (rank {row + 1}) keeps is not taken: {words}"
    assert (told in capsys.readouterr().err) == bool(words)


@pytest.mark.skipif(backend.native() is None, reason=backend.why_not_native())
@pytest.mark.parametrize("name", ALIKE)
def test_real_ranks_train_as_a_simulation_does_bit_for_bit(name, monkeypatch):
    setting = Setting(**ALIKE[name])
    simulation = simulate(mlp, **vars(setting))
    begun = weights(simulation)
    expected = run(simulation, STEPS)
    server, delivered = train_on_threads(setting, monkeypatch)
    np.testing.assert_array_equal(weights(server), weights(simulation))
    assert not np.array_equal(weights(server), begun)
    np.testing.assert_array_equal(delivered, [report.round.delivered_n for report in expected])
    assert (np.mean(delivered) < 0.9) == (setting.loss > 0)
    ours, theirs = server.state(), simulation.state()
    assert ours.keys() >= theirs.keys() - {"attack"}  # which workers keep, until a checkpoint
    for each in ours.keys() & theirs.keys():
        np.testing.assert_array_equal(ours[each], theirs[each], err_msg=each)
