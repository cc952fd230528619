"""What all arrival rules have in common."""

import numpy as np
import pytest

from aggregathor.protocols.basgd import Basgd
from aggregathor.protocols.kardam import Kardam
from aggregathor.protocols.plain import Plain
from aggregathor.protocols.zenopp import Zenopp
from tests.protocols.offering import Toy, equal_states

N, D = 7, 20
RULES = {
    "plain": Plain,
    "basgd": lambda: Basgd(N, 5, lambda stack_bd: np.median(stack_bd, axis=0), 40.0),
    "kardam": lambda: Kardam(N, 2),
    "zenopp": lambda: Zenopp(
        lambda params_d, number: params_d + np.float32(0.01 * np.sin(number)),
        lambda: 0.1,
        rho=0.001,
        epsilon=0.0,
        refresh=4,
    ),
}


@pytest.fixture(params=RULES)
def rule(request):
    return RULES[request.param]


def gradient(toy, row, seed, dtype=np.float32):
    noise_d = np.random.default_rng([seed, row]).standard_normal(D)
    return (toy.held[row][1] + 0.1 * noise_d).astype(dtype)


def schedule(seed, length):
    return np.random.default_rng(seed).integers(N, size=length).tolist()


HOSTILE = {
    "nan": np.nan, "inf": np.inf, "-inf": -np.inf, "1e30": 1e30, "largest": 3e38,
    "subnormal": 1e-45, "0": 0.0, "-0": -0.0,
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", HOSTILE)
def test_f_hostile_workers_neither_stop_the_others_nor_fail_the_rule(rule, value, dtype):
    """Those that are not finite change nothing; the others have their turn all the same."""
    toy = Toy(rule(), N, np.ones(D, dtype))
    is_kardam = isinstance(toy.rule, Kardam)
    hostile_d = np.full(D, HOSTILE[value], dtype)
    for event, row in enumerate(schedule(0, 400)):
        verdict = toy.offer(row, hostile_d if row < 2 else gradient(toy, row, event, dtype), event)
        if row < 2 and not np.isfinite(hostile_d).all():
            assert (verdict.step_d, verdict.why) == (None, "not finite")
    assert sum(toy.is_step()[300:]) > 5
    # Kardam lets constants pass, as published: their coefficient is 0.
    if not isinstance(toy.rule, Plain) and (value not in ("1e30", "largest") or not is_kardam):
        assert np.isfinite(toy.params_d).all()
        assert np.linalg.norm(toy.params_d) < 2


@pytest.mark.parametrize("where", [0, D - 1])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_value_that_is_not_finite_is_enough(rule, value, where):
    toy = Toy(rule(), N, np.ones(D, np.float32))
    grad_d = np.ones(D, np.float32)
    grad_d[where] = value
    for row in range(N):
        assert toy.offer(row, grad_d).why == "not finite"
    assert toy.version == 0


def test_a_rule_goes_on_from_its_state_bit_for_bit(rule):
    def drive(toy, begin, end):
        for event, row in enumerate(schedule(1, 200)):
            if begin <= event < end:
                toy.offer(row, gradient(toy, row, event), float(event))

    whole = Toy(rule(), N, np.ones(D, np.float32))
    drive(whole, 0, 200)
    for cut in (0, 1, 7, 60, 133):
        first = Toy(rule(), N, np.ones(D, np.float32))
        drive(first, 0, cut)
        state = {name: np.array(array) for name, array in first.rule.state().items()}
        second = Toy(rule(), N, first.params_d)
        second.version, second.held = first.version, first.held
        second.rule.restore(state)
        equal_states(second.rule.state(), state)
        drive(second, cut, 200)
        np.testing.assert_array_equal(second.params_d, whole.params_d)
        equal_states(second.rule.state(), whole.rule.state())


def test_a_state_does_not_change_with_the_rule(rule):
    toy = Toy(rule(), N, np.ones(D, np.float32))
    for event, row in enumerate(schedule(2, 50)):
        toy.offer(row, gradient(toy, row, event), event)
    state = toy.rule.state()
    before = {name: np.array(array) for name, array in state.items()}
    for event, row in enumerate(schedule(3, 100)):
        toy.offer(row, gradient(toy, row, event), 50 + event)
    equal_states(state, before)


def test_all_rules_learn_where_nobody_attacks(rule):
    toy = Toy(rule(), N, np.ones(D, np.float32))
    for event, row in enumerate(schedule(4, 600)):
        toy.offer(row, gradient(toy, row, event), float(event))
    assert np.linalg.norm(toy.params_d) < 0.3
