import math

import numpy as np
import pytest

from aggregathor.gars import GARS
from aggregathor.monitor.suspicion import LEVEL, Suspicion, left_out
from tests.gars.cases import ALONE

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
    # (11/10)^k * (1/2 + ...) >= 2 n / LEVEL, where the later beginnings and the other explanation
    # make it somewhat sooner.
    latest = 1 + math.floor(math.log(4 * N / LEVEL) / math.log(N / (N - 1)))
    first = 106
    assert latest - 10 < first <= latest
    suspicion, suspected = seen("krum", first + 20, POISONS["reversed"], rng)
    assert not any(suspected[: first - 1])
    assert all(set(each) >= {9, 10} for each in suspected[first - 1 :])
    assert suspicion.suspected_n[9] == first + 20  # those that led to it too


@pytest.mark.parametrize("rule", ALONE)
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
    assert not suspicion.suspected_n.any()


def test_the_probability_of_a_false_suspicion_in_a_run_is_below_the_level(rng):
    runs, level = 150, 0.2
    false = 0
    for _ in range(runs):
        suspicion = Suspicion(11, level)
        for _ in range(300):
            suspicion.see(rng.permutation([1.0] * 7 + [0.0] * 4), np.ones(11))
        false += suspicion.suspected_n.any()
    assert 0 < false <= runs * level + 3 * math.sqrt(runs * level * (1 - level))


def alternating(rounds, is_used, rng, n=11, num_left_out=4):
    """Multi-Krum's choice: the last worker is left out but in some rounds, others at random."""
    suspicion, suspected = Suspicion(n), []
    for round in range(rounds):
        others_n = np.array([1.0] * (n - num_left_out) + [0.0] * (num_left_out - 1))
        usage_n = np.append(rng.permutation(others_n), 0.0)
        if is_used(round):
            usage_n = rng.permutation(usage_n)
            usage_n[-1], usage_n[np.argmax(usage_n)] = 1.0, usage_n[-1]
        suspected.append(np.flatnonzero(suspicion.see(usage_n, np.ones(n))).tolist())
    return suspected


@pytest.mark.parametrize("every", [5, 9, 14])
def test_who_is_honest_now_and_then_is_suspected_all_the_same(every, rng):
    suspected = alternating(1000, lambda round: round % every == every - 1, rng)
    assert sum(each == [10] for each in suspected) > 500
    assert not any(set(each) - {10} for each in suspected)


def test_who_begins_to_attack_after_many_rounds_is_suspected_soon(rng):
    suspected = alternating(3100, lambda round: round < 3000 and rng.random() < 7 / 11, rng)
    assert not any(suspected[:3000])
    assert all(each == [10] for each in suspected[3030:])


def test_a_suspicion_ends_when_the_rule_uses_the_worker_again():
    suspicion = Suspicion(5)
    without, another = np.array([1.0, 1, 1, 1, 0]), np.array([1.0, 1, 1, 0, 1])
    shares = [without] * 12 + [another] * 2 + [without] * 4 + [np.ones(5)] + [without]
    suspected = [suspicion.see(usage_n, np.ones(5))[4] for usage_n in shares]
    # 5^6 / 2 * (1 + ...) >= 2 * 5 / LEVEL; each of the two rounds after it is undone by another.
    assert np.flatnonzero(suspected).tolist() == [5, 6, 7, 8, 9, 10, 11, 15, 16, 17, 19]
    assert suspicion.suspected_n.tolist() == [0, 0, 0, 0, 12 + 4 + 1]


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
