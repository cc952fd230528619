import math

import numpy as np
import pytest

from aggregathor.gars import GARS
from aggregathor.monitor.suspicion import CHANCE, Suspicion, left_out

N, F, D = 11, 2, 50


def seen(rule, rounds, poison, rng, n=N, f=F):
    """The suspicion after rounds of independent gradients, the last rows being f poisoned ones."""
    suspicion, suspected = Suspicion(n), []
    for _ in range(rounds):
        stack_nd = 1 + 0.1 * rng.standard_normal((n, D)).astype(np.float32)
        stack_nd[n - f :] = poison(stack_nd[n - f :])
        usage_n = GARS[rule].aggregate(stack_nd, f=f).usage_n
        suspected.append(np.flatnonzero(suspicion.see(usage_n, np.ones(n))).tolist())
    return suspicion, suspected


POISONS = {
    "reversed": lambda rows: -10 * rows,
    "0": np.zeros_like,
    "1e30": lambda rows: np.full_like(rows, 1e30),
    "inf": lambda rows: np.full_like(rows, np.inf),
    "nan": lambda rows: np.full_like(rows, np.nan),
}


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize(
    "rule", ["multi-krum", "brute", "median", "trimmed-mean", "meamed", "phocas", "bulyan"]
)
def test_who_attacks_is_suspected_and_nobody_else(rule, poison, rng):
    suspicion, suspected = seen(rule, 100, POISONS[poison], rng)
    assert np.flatnonzero(suspicion.suspected_n).tolist() == [9, 10]
    assert suspicion.suspected_n[9:].min() > 95
    assert suspected[-1] == [9, 10]


def test_krum_needs_many_rounds_as_it_leaves_out_all_but_one(rng):
    first = 1 + math.floor(math.log(CHANCE) / math.log((N - 1) / N))
    suspicion, suspected = seen("krum", first + 20, POISONS["reversed"], rng)
    assert not any(suspected[: first - 1])
    assert all(set(each) >= {9, 10} for each in suspected[first - 1 :])
    assert suspicion.suspected_n[9] == first + 20  # those that led to it too


@pytest.mark.parametrize("rule", list(GARS))
def test_honest_workers_are_not_suspected(rule, rng):
    suspicion, _ = seen(rule, 300, lambda rows: rows, rng, f=1)
    assert not suspicion.suspected_n.any()


@pytest.mark.parametrize("rule", ["average", "average-nan"])
@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.filterwarnings("ignore:.*encountered in")
def test_an_average_suspects_nobody(rule, poison, rng):
    assert not seen(rule, 100, POISONS[poison], rng)[0].suspected_n.any()


def test_random_choice_is_not_suspicious(rng):
    suspicion = Suspicion(11)
    for _ in range(20_000):
        suspicion.see(rng.permutation([1.0] * 7 + [0.0] * 4), np.ones(11))
    assert suspicion.suspected_n.sum() < 100  # one or two times in a row, by chance


def test_a_suspicion_ends_when_the_rule_uses_the_worker_again():
    suspicion = Suspicion(5)
    without, all_used = np.array([1.0, 1, 1, 1, 0]), np.ones(5)
    shares = [without] * 12 + [all_used] + [without] * 8 + [all_used] + [without] * 9
    suspected = [suspicion.see(usage_n, np.ones(5))[4] for usage_n in shares]
    # (1/5)^9 < 1e-6 < (1/5)^8
    assert np.flatnonzero(suspected).tolist() == [8, 9, 10, 11, len(shares) - 1]
    assert suspicion.suspected_n.tolist() == [0, 0, 0, 0, 12 + 9]


def test_who_is_missing_is_counted_and_neither_used_nor_left_out():
    suspicion = Suspicion(5)
    usage_n, delivered_n = np.array([1.0, 1, 1, 1, 0]), np.ones(5)
    for _ in range(8):
        suspicion.see(usage_n, delivered_n)
    for _ in range(20):  # a fill of zeros may be used
        absent = suspicion.see(np.array([0.0, 0, 1, 1, 1]), np.array([1.0, 1, 1, 1, 0]))
        assert not absent[4]
    assert suspicion.see(usage_n, delivered_n)[4]
    assert suspicion.missing_n.tolist() == [0, 0, 0, 0, 20]
    assert suspicion.rounds == 29


@pytest.mark.parametrize(
    ("usage_n", "delivered_n", "expected"),
    [
        ([1, 1, 0], [1, 1, 1], [2]),
        ([1, 0, 0], [1, 1, 1], [1, 2]),  # Krum
        ([0.4, 0.3, 0.3, 0.1], [1, 1, 1, 1], [3]),  # coordinates
        ([0.3, 0.3, 0.3, 0.1], [1, 1, 1, 0.3], []),  # what came of it was used
        ([1, 1, 1, 0.1], [1, 0.1, 0.1, 1], [3]),
        ([1, 1, 1, 1], [1, 0.1, 0.1, 0.1], []),
        ([1, 1, 0], [1, 1, 0], []),
        ([0, 0, 0], [0, 0, 0], []),
        ([0, 0, 0], [1, 1, 1], []),
        ([1, 1, np.nan], [1, 1, 1], [2]),
        ([np.nan] * 3, [1, 1, 1], []),
        ([1], [1], []),
    ],
)
def test_left_out_is_who_was_used_less_than_half_as_much(usage_n, delivered_n, expected):
    got_n = left_out(np.array(usage_n, float), np.array(delivered_n, float))
    assert np.flatnonzero(got_n).tolist() == expected
