from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregathor.protocols.kardam import Kardam
from tests.protocols.offering import Toy


def quadratic(curvature=1.0):
    """Returns the gradient of |x|^2/2 at what a worker holds."""
    return lambda toy, row: curvature * toy.held[row][1]


def test_the_trace():
    """F = x^2/2; worker i sends (1 + .1 i) x, worker 3 five times that; turns 0 1 2 3."""
    toy = Toy(Kardam(4, 1), 4, [4.0])
    after = []
    for event in range(20):
        row = event % 4
        toy.offer(row, toy.held[row][1] * (1 + 0.1 * row) * (5 if row == 3 else 1))
        after.append(float(toy.params_d[0]))
    np.testing.assert_allclose(toy.rule.coefficients, [1.0, 1.1, 1.2, 6.5], rtol=1e-9)
    assert toy.is_step()[:9] == [False, False, True, False, False, True, False, False, True]
    np.testing.assert_allclose([after[2], after[5], after[8]], [3.56, 3.12, 2.6928], atol=1e-9)
    for row, _, verdict in toy.events[9:]:
        assert verdict.why == ("lipschitz" if row == 3 else "")
    assert after[19] == pytest.approx(1.8755, abs=5e-5)


def test_what_is_accepted_is_dampened():
    for dampening, expected in (
        ("inverse", lambda tau: 1 / (1 + tau)),
        ("exponential", lambda tau: np.exp(-0.5 * tau)),
        ("none", lambda tau: 1.0),
    ):
        toy = Toy(Kardam(4, 1, dampening=dampening, alpha=0.5), 4, [4.0])
        for event in range(30):
            row = event % 4
            grad_d = toy.held[row][1] * (1 + 0.1 * row)
            begins = np.isnan(toy.rule.coefficients).sum() > 1
            _, tau, verdict = toy.offer(row, grad_d) and toy.events[-1]
            if verdict.step_d is not None and not begins:
                np.testing.assert_allclose(verdict.step_d, expected(tau) * grad_d, rtol=1e-12)
    assert any(tau > 1 for _, tau, _ in toy.events)


def test_the_coefficient_is_kept_whether_the_gradient_is_accepted_or_not():
    toy = Toy(Kardam(4, 1), 4, [4.0])
    for event in range(24):
        row = event % 4
        toy.offer(row, toy.held[row][1] * (9 if row == 3 else 1))
        if row == 3 and event > 12:
            assert toy.events[-1][2].why == "lipschitz"
            assert toy.rule.coefficients[3] == pytest.approx(9)


def test_a_spike_is_forgotten():
    """One wrong gradient of an honest worker costs it two arrivals, not more."""
    toy = Toy(Kardam(4, 1), 4, [4.0], gamma=0.05)
    whys = []
    for event in range(80):
        row = event % 4
        grad_d = toy.held[row][1] * (1 + 0.01 * row)
        verdict = toy.offer(row, 100 * grad_d if event == 41 else grad_d)
        if row == 1 and event >= 41:
            whys.append(verdict.why)
    assert whys[:2] == ["lipschitz", "lipschitz"]
    assert "" in whys[2:5]


def test_a_sign_flip_passes_as_published():
    """Its coefficient is an honest one's: what Kardam promises is less than it may seem."""
    toy = Toy(Kardam(4, 1), 4, [4.0], gamma=0.01)
    for event in range(60):
        row = event % 4
        toy.offer(row, toy.held[row][1] * (-1 if row == 3 else 1 + 0.01 * row))
    flips = [verdict.why for row, _, verdict in toy.events[20:] if row == 3]
    assert flips.count("") > len(flips) / 2


def test_a_constant_passes_as_published():
    toy = Toy(Kardam(4, 1), 4, [4.0], gamma=0.01)
    for event in range(60):
        row = event % 4
        toy.offer(row, [-3.0] if row == 3 else toy.held[row][1] * (1 + 0.01 * row))
    assert toy.rule.coefficients[3] == 0
    assert [verdict.why for row, _, verdict in toy.events[20:] if row == 3].count("") > 5


@pytest.mark.parametrize("f", [1, 2])
def test_windows_of_different_workers_are_exactly_those_with_an_honest_majority(f):
    n = 3 * f + 1
    for window in product(range(n), repeat=2 * f + 1):
        most_byzantine = sum(count for _, count in Counter(window).most_common(f))
        has_majority = 2 * f + 1 - most_byzantine >= f + 1
        assert has_majority == (len(set(window)) == 2 * f + 1)


class Noted(Kardam):
    """Notes whose gradients pass the filters."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.accepted_rows = []

    def _is_too_frequent(self, row):
        is_too_frequent = super()._is_too_frequent(row)
        if not is_too_frequent:
            self.accepted_rows.append(row)
        return is_too_frequent


def driven(rule, n, schedule, seed, hostile, silent_after=10**9):
    """Drives a noisy quadratic; ``hostile(toy, row, rng)`` gives what rows 0.. send, or None."""
    rng = np.random.default_rng(seed)
    toy = Toy(rule, n, np.full(5, 2.0))
    for event, row in enumerate(schedule):
        grad_d = toy.held[row][1] + 0.1 * rng.standard_normal(5)
        other_d = hostile(toy, row, rng)
        if other_d is not None and event > silent_after:
            continue
        toy.offer(row, grad_d if other_d is None else other_d)
    return toy


ROWS = {(4, 1): st.integers(0, 3), (7, 2): st.integers(0, 6), (9, 2): st.integers(0, 8)}


@pytest.mark.parametrize(("n", "f"), ROWS)
@given(st.data())
def test_no_window_of_2f_plus_1_accepted_gradients_has_a_worker_twice(n, f, data):
    schedule = data.draw(st.lists(ROWS[n, f], max_size=150))
    toy = driven(Noted(n, f), n, schedule, 0, lambda toy, row, rng: None)
    rows = toy.rule.accepted_rows
    for begin in range(len(rows)):
        window = rows[begin : begin + 2 * f + 1]
        assert len(set(window)) == len(window)


@given(st.lists(ROWS[4, 1], max_size=150))
def test_weak_windows_have_f_plus_1_different_workers(schedule):
    toy = driven(Noted(4, 1, frequency="weak"), 4, schedule, 0, lambda toy, row, rng: None)
    rows = toy.rule.accepted_rows
    for begin in range(len(rows) - 2):
        assert len(set(rows[begin : begin + 3])) >= 2


ATTACKS = {
    "silent": lambda toy, row, rng: None,
    "small": lambda toy, row, rng: 1e-3 * toy.held[row][1],
    "constant": lambda toy, row, rng: np.ones(5),
    "nan": lambda toy, row, rng: np.full(5, np.nan),
    "1e200": lambda toy, row, rng: 1e200 * rng.standard_normal(5),
    "1e300": lambda toy, row, rng: 1e300 * rng.standard_normal(5),
    "noise": lambda toy, row, rng: 20 * rng.standard_normal(5),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("turns_to", ["silent", "nan", "same"])
@settings(max_examples=20)
@given(seed=st.integers(0, 200), moment=st.integers(0, 60), in_turns=st.booleans())
def test_no_deadlock_whatever_f_workers_do_before_they_fall_silent(
    attack, turns_to, seed, moment, in_turns
):
    """From step 0, at equal models, and with f that fall silent after small coefficients."""
    n, f = 4, 1
    order = np.random.default_rng(seed)
    toy = Toy(Kardam(n, f), n, np.full(5, 2.0))
    for event in range(300):
        row = event % n if in_turns else int(order.integers(n))
        grad_d = toy.held[row][1] * (1 + 0.1 * row) + 0.01 * order.standard_normal(5)
        if row == 3:
            if event >= moment and turns_to == "silent":
                continue
            name = "nan" if event >= moment and turns_to == "nan" else attack
            sent_d = ATTACKS[name](toy, row, order)
            if sent_d is None:
                continue
            grad_d = sent_d
        toy.offer(row, grad_d)
    steps = np.flatnonzero(toy.is_step())
    assert len(steps) > 20
    assert np.diff(steps, prepend=0, append=len(toy.events)).max() < 60


def test_without_noise_steps_go_on_after_one_falls_silent():
    """As published, with coefficients that never expire, there are 7 steps here and then none."""
    toy = Toy(Kardam(4, 1), 4, [4.0], gamma=0.05)
    for event in range(400):
        row = event % 4
        if row == 3 and event > 12:
            continue
        toy.offer(row, toy.held[row][1] * (0.5 if row == 3 else 1 + 0.1 * row))
    assert sum(toy.is_step()) > 250


def test_models_that_are_equal_are_no_two_models():
    """At a minimum all gradients are 0, the model stands still, and 0/0 is no coefficient."""
    toy = Toy(Kardam(4, 1), 4, [0.0])
    for event in range(60):
        toy.offer(event % 4, toy.held[event % 4][1])
    assert np.isnan(toy.rule.coefficients).all()
    assert sum(toy.is_step()) == 20  # of zeros: the robust steps of the beginning


def test_an_infinite_coefficient_is_none():
    """Else it would be the limit, with one honest worker that is not known yet, and pass."""
    toy = Toy(Kardam(4, 1), 4, [4.0])
    sent_d = np.array([1e308])
    for event in range(40):
        row = event % 4
        if row == 0:
            continue  # the slow one
        grad_d = toy.held[row][1]
        if row == 3:
            sent_d = -sent_d
            grad_d = sent_d
        toy.offer(row, grad_d)
    assert abs(toy.params_d[0]) < 4.1
    assert sum(toy.is_step()) > 5
