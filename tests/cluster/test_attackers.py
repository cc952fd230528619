"""Byzantine workers of experiments: which rounds the gradients are of that they see."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from aggregathor.cluster.attackers import Attacker
from aggregathor.cluster.ranks import TrainingEnded
from aggregathor.gars import gar
from aggregathor.gars.base import Aggregated, registered
from aggregathor.protocols.setting import Setting
from lossympi import Topology
from tests.cluster import fake_mpi

D, WORKERS = 3, 4  # the last one attacks


def attacker(world, rank, read=None, **settings):
    def wait(until, whom):
        end_s = time.monotonic() + 20
        while not until():
            assert time.monotonic() < end_s, whom
            time.sleep(1e-3)

    topology = Topology(servers=1, workers=WORKERS)
    ranks = SimpleNamespace(
        comm=world.comm(rank), topology=topology, row=topology.row_of(rank), wait=wait
    )
    setting = Setting(
        **{
            "num_workers": WORKERS, "byzantine": 1, "f": 1, "gar": "median",
            "attack": "reversed", "attack_args": {"c": 1.0}, **settings,
        }
    )  # fmt: skip
    return Attacker(ranks, setting, D, read or (lambda: np.zeros(D, np.float32)))


def sent(row, round):
    """A gradient that shows whose it is, and of which round."""
    return np.full(D, 100 * row + round, np.float32)


@pytest.mark.parametrize(
    ("rounds_of_0", "seen"),
    [([0, 1, 2, 3], [0, 1, 2, 3]), ([0, 3], [0, 3, 3, 3]), ([0, 1, 3], [0, 1, 3, 3])],
    ids=["all", "one skips two rounds", "one skips a round"],
)
def test_attackers_see_gradients_of_their_round_or_later(rounds_of_0, seen):
    world = fake_mpi.World(1 + WORKERS)
    for row in range(WORKERS - 1):
        honest = attacker(world, 1 + row)
        for round in rounds_of_0 if row == 0 else range(4):
            np.testing.assert_array_equal(honest(round, sent(row, round)), sent(row, round))
    attacks = attacker(world, WORKERS)
    for round in range(4):
        expected = np.mean([sent(0, seen[round]), sent(1, round), sent(2, round)], axis=0)
        np.testing.assert_allclose(attacks(round, sent(3, round)), -expected)


def test_an_attacker_that_was_left_behind_drops_what_is_older():
    world = fake_mpi.World(1 + WORKERS)
    for row in range(WORKERS - 1):
        honest = attacker(world, 1 + row)
        for round in range(7):
            honest(round, sent(row, round))
    attacks = attacker(world, WORKERS)
    for round in (0, 5, 6):
        expected = np.mean([sent(row, round) for row in range(3)], axis=0)
        np.testing.assert_allclose(attacks(round, sent(3, round)), -expected)


def test_who_has_died_keeps_no_attacker_waiting(monkeypatch):
    """What it sent last is what the attackers see of it."""
    fake_mpi.install(monkeypatch)
    world = fake_mpi.World(1 + WORKERS)
    for row, rounds in enumerate((2, 0, 5)):
        honest = attacker(world, 1 + row)
        for round in range(rounds):
            honest(round, sent(row, round))
    attacks = attacker(world, WORKERS)
    for round in range(5):
        if round == 2:
            world.kill(1)
        if round == 0:
            world.kill(2)
        seen = sent(0, min(round, 1)), np.zeros(D), sent(2, round)
        np.testing.assert_allclose(
            attacks(round, sent(3, round)), -np.mean(seen, axis=0), rtol=1e-6
        )


def test_an_honest_worker_does_without_an_attacker_that_has_died(monkeypatch):
    fake_mpi.install(monkeypatch)
    world = fake_mpi.World(1 + WORKERS)
    world.takes_nothing.add(WORKERS)
    honest = attacker(world, 1)
    np.testing.assert_array_equal(honest(0, sent(0, 0)), sent(0, 0))
    world.kill(WORKERS)  # with a gradient under way to it
    for round in (1, 2):
        np.testing.assert_array_equal(honest(round, sent(0, round)), sent(0, round))


def test_an_honest_worker_whose_gradient_nobody_takes_hears_that_the_training_has_ended():
    """MPI's own wait would not."""
    world = fake_mpi.World(1 + WORKERS)
    world.takes_nothing.add(WORKERS)
    honest = attacker(world, 1)

    def wait(until, whom):
        assert whom == "the Byzantine workers, to take a gradient"
        if not until():
            raise TrainingEnded("no data left")

    honest._ranks.wait = wait
    honest(0, sent(0, 0))
    with pytest.raises(TrainingEnded, match="no data left"):
        honest(1, sent(0, 1))


def test_the_rule_that_an_attacker_follows_has_the_parameters():
    asked = []

    def init(n, d):
        return {"params": np.zeros(d, np.float32)}

    @gar("follows", condition="n >= 1", cost="", source="", robust=False, init=init)
    def follows(stack_nd, state, context, *, f=0):
        asked.append(context.params())
        return Aggregated(stack_nd[0], np.ones(WORKERS)), {"params": context.params()}

    try:
        world = fake_mpi.World(1 + WORKERS)
        for row in range(WORKERS - 1):
            attacker(world, 1 + row, gar="follows")(0, sent(row, 0))
        attacks = attacker(world, WORKERS, lambda: np.arange(D, dtype=np.float32), gar="follows")
        attacks(0, sent(3, 0))
        np.testing.assert_array_equal(attacks.state()["rule/params"], np.arange(D))
    finally:
        del registered["follows"]
    assert asked
