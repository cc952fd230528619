"""DRACO in a simulation: exact under attack, and what workers of their own would compute.

tests/trainer/test_distributed.py has it on ranks.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from aggregathor import checkpoint
from aggregathor.errors import UserError
from aggregathor.protocols.aggregation import RuleError
from aggregathor.protocols.decoding import code_of
from aggregathor.protocols.setting import Setting
from aggregathor.trainer.sampling import batches
from aggregathor.trainer.seeds import seeds_of
from aggregathor.trainer.training import Parameters, Workers
from tests.trainer.toys import (
    accuracy,
    clouds,
    cross_entropy,
    linear,
    mlp,
    network,
    run,
    sgd,
    simulate,
    weights,
)

REPETITION = {"protocol": "draco", "protocol_args": {"code": "repetition"}}
CYCLIC = {"protocol": "draco"}
PAPER = {"protocol": "draco", "protocol_args": {"code": "cyclic-paper"}}


def with_dropout():
    return network(layers.Dense(32, "relu"), layers.Dropout(0.4, seed=3))


@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("attack", ["constant", "negative-gradient", "label-flip", "nan", "little"])
def test_repetition_trains_to_the_same_bits_whatever_attackers_send(attack, moves):
    told = {**REPETITION, "num_workers": 9, "f": 1}
    clean, attacked = (
        simulate(with_dropout, **told, **more)
        for more in ({}, {"byzantine": 1, "attack": attack, "byzantine_moves": moves})
    )
    for _ in range(12):
        clean.step()
        report = attacked.step()
        np.testing.assert_array_equal(weights(attacked), weights(clean))
        (attacker,) = attacked.setting.attackers(report.step - 1)
        assert report.round.usage_n[attacker] == 0
        assert report.round.usage_n.sum() == 8
    for mine, its in zip(attacked.model.variables, clean.model.variables, strict=True):
        np.testing.assert_array_equal(mine.numpy(), its.numpy())


@pytest.mark.parametrize("form", [CYCLIC, PAPER])
@pytest.mark.parametrize("attack", ["constant", "negative-gradient"])
def test_cyclic_trains_to_the_same_up_to_rounding(form, attack):
    told = {**form, "num_workers": 7, "f": 2}
    clean, attacked = (
        simulate(linear, **told, **more)
        for more in ({}, {"byzantine": 2, "attack": attack, "byzantine_moves": True})
    )
    run(clean, 300)
    reports = run(attacked, 300)
    assert all(report.round.unverified == 0 for report in reports)
    distance = np.linalg.norm(weights(attacked) - weights(clean))
    assert distance < 1e-5 * np.linalg.norm(weights(clean))
    assert accuracy(attacked) > 0.9


def test_without_attack_it_is_the_mean_over_all_batches():
    """That of ``average`` on the same batches."""
    average = simulate(mlp, gar="average", num_workers=6)
    run(average, 5)
    for form in (REPETITION, CYCLIC, PAPER):
        draco = simulate(mlp, **form, num_workers=6, f=1)
        reports = run(draco, 5)
        np.testing.assert_allclose(weights(draco), weights(average), atol=1e-5)
        assert all(np.isfinite(report.loss) for report in reports)


@pytest.mark.parametrize("form", [REPETITION, CYCLIC, PAPER])
def test_a_simulation_sends_what_each_worker_would_compute(form):
    """The simulation computes a batch once; a worker all of its own, with their dropout."""
    told = {**form, "num_workers": 6, "f": 1, "byzantine": 1, "attack": "label-flip"}
    simulation = simulate(with_dropout, **told, byzantine_moves=True)
    code = simulation._code
    drawn, setting = simulation.batches, simulation.setting
    first = [np.array(v.numpy()) for v in seeds_of(simulation.model)]
    sent = []
    before = simulation._sent
    simulation._sent = lambda rows_nd: sent.append(rows_nd) or before(rows_nd)
    for step in range(3):
        model = keras.models.clone_model(simulation.model)
        model.set_weights(simulation.model.get_weights())
        simulation.step()
        for k in range(6):
            parameters = Parameters(model)
            worker = Workers(setting, model, parameters, cross_entropy, drawn, range(k, k + 1))
            flips_n = np.isin([k], setting.attackers(step))
            rows = []
            for j in code.batches_of(k):
                draw = np.array([0, 1], np.uint32)  # of a SeedGenerator: one a call
                for seed, begin in zip(seeds_of(model), first, strict=True):
                    seed.assign(begin + draw * np.uint32(step * 6 + j))
                rows.append(worker.gradients(step, [j], flips_n)[0][0])
            np.testing.assert_array_equal(sent[step][k], code.encode(rows, k))
    assert len({row.tobytes() for row in sent[0]}) > 2


def test_a_batch_has_the_same_dropout_wherever_labels_are_flipped():
    """And the moving statistics are those of one pass."""

    def model():
        return network(
            layers.Dense(8, "relu"), layers.BatchNormalization(), layers.Dropout(0.5, seed=1)
        )

    told = {**REPETITION, "num_workers": 3, "f": 1}
    clean = simulate(model, **told)
    attacked = simulate(model, **told, byzantine=1, attack="label-flip")
    run(clean, 4)
    run(attacked, 4)
    for mine, its in zip(attacked.model.variables, clean.model.variables, strict=True):
        np.testing.assert_array_equal(mine.numpy(), its.numpy())


@pytest.mark.parametrize("form", [REPETITION, CYCLIC])
def test_a_run_that_is_restored_goes_on_bit_for_bit(form, tmp_path):
    told = {**form, "num_workers": 6, "f": 1, "byzantine": 1, "attack": "gaussian"}
    told |= {"byzantine_moves": True, "loss": 0.05}
    whole = simulate(with_dropout, **told)
    run(whole, 3)
    checkpoint.write(tmp_path / "c.npz", whole.state())
    run(whole, 4)
    resumed = simulate(with_dropout, **told, init_seed=9)
    resumed.restore(checkpoint.read(tmp_path / "c.npz"))
    run(resumed, 4)
    ours, theirs = resumed.state(), whole.state()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


@pytest.mark.parametrize(
    ("form", "redundancy"), [("repetition", 5), ("cyclic", 5), ("cyclic-paper", 5)]
)
def test_it_learns_while_a_tenth_of_the_datagrams_is_lost(form, redundancy):
    """Redundancy beyond 2f + 1 is for losses."""
    simulation = simulate(
        mlp,
        protocol="draco",
        protocol_args={"code": form, "redundancy": redundancy},
        num_workers=10,
        f=1,
        byzantine=1,
        attack="negative-gradient",
        byzantine_moves=True,
        loss=0.1,
    )
    reports = run(simulation, 100)
    assert 0.85 < np.mean([report.round.delivered_n for report in reports]) < 0.95
    assert accuracy(simulation) > 0.9
    assert np.isfinite(weights(simulation)).all()
    unverified = [report.round.unverified for report in reports]
    assert 0 < np.mean(unverified) < 0.3


def test_more_attackers_than_the_code_bears_end_the_run_with_the_reason():
    told = {"num_workers": 7, "f": 1, "byzantine": 3, "attack": "gaussian"}
    simulation = simulate(**CYCLIC, **told)
    with pytest.raises(RuleError, match=r"step 1: draco \(cyclic, r=3\) can verify no sum"):
        simulation.step()


def test_the_papers_code_needs_float64_for_many_workers():
    told = {**PAPER, "num_workers": 21, "f": 1, "byzantine": 1, "attack": "constant"}
    with pytest.raises(UserError, match="at most 19 workers, got n=21: take code=cyclic, or train"):
        simulate(linear, **told)

    points, labels = clouds()
    simulation = simulate(
        lambda: keras.Sequential([keras.Input([16]), layers.Dense(3, dtype="float64")]),
        **told,
        objective=lambda labels, outputs: cross_entropy(labels, tf.cast(outputs, tf.float64)),
        data=(points.astype(np.float64), labels),
    )
    reports = run(simulation, 5)
    assert all(report.round.unverified == 0 for report in reports)
    assert reports[-1].round.grad_d.dtype == np.float64


def test_what_a_server_reports_of_complex_numbers_has_the_parameters_form():
    simulation = simulate(linear, **PAPER, num_workers=7, f=1)
    (report,) = run(simulation, 1)
    assert report.round.stack_nd.shape == (7, simulation.dim)
    assert report.round.grad_d.shape == (simulation.dim,)


def test_workers_draw_their_batches_parts(rng):
    """Of shards too: batch j is from part j, whoever computes it."""
    points, labels = clouds()
    drawn = batches(
        points, labels, num_workers=6, batch_size=4, partition="dirichlet", alpha=0.1, seed=1
    )
    setting = Setting(**CYCLIC, num_workers=6, f=1)
    keras.utils.set_random_seed(0)
    model = linear()
    parameters = Parameters(model, sgd())
    workers = Workers(setting, model, parameters, cross_entropy, drawn, range(6))
    no = np.zeros(6, bool)
    all_jd, _ = workers.gradients(3, range(6), no)
    for k in range(6):
        numbers = code_of(setting).batches_of(k)
        rows, _ = workers.gradients(3, numbers, no[:3])
        np.testing.assert_array_equal(rows, all_jd[numbers])
