"""A real training's server where rounds fail; the rest is in tests/experiments/test_mpirun.py."""

import keras
import numpy as np
import pytest

from aggregathor.protocols.aggregation import Aggregation, RuleError
from aggregathor.protocols.rounds import RoundsServer
from aggregathor.protocols.setting import Setting
from aggregathor.trainer.distributed import Server
from aggregathor.trainer.sampling import batches
from lossympi import Network, memory
from tests.trainer.toys import clouds, cross_entropy, linear, sgd, weights

SETTING = Setting(num_workers=5, f=1, gar="krum")


class Job:
    """Of a server whose workers are in this process, on a network that loses all in some rounds."""

    def __init__(self, lossy=()):
        class Losing(Network):
            def arrived(self, round, worker, num_datagrams, attempt=0):
                return np.full(num_datagrams, round not in lossy)

        self.ranks = self.meeting = self
        self.network = Losing()

    def serve(self, dim, read):
        server, self.links = memory.connect(5, dim, self.network)
        self.half = RoundsServer(server, Aggregation(SETTING, dim), read)
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
