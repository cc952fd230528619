import math

import numpy as np
import pytest

from lossympi.timeout import Deadline, Grace, Liveness


def test_the_cap_holds_until_enough_rounds_did_without_the_deadline():
    deadline = Deadline(10.0)
    for number in range(19):
        deadline.observe(0.1 * number)
        deadline.observe(None)
        assert deadline.current == 10.0
    deadline.observe(1.9)
    assert deadline.current == pytest.approx(1.5 * np.quantile(0.1 * np.arange(20), 0.95))


def test_the_latest_rounds_count():
    deadline = Deadline(100.0, rounds=4, quantile=0.5, margin=2.0)
    for elapsed_s in (9, 9, 9, 9, 1, 2, 3, 4):
        deadline.observe(elapsed_s)
    assert deadline.current == 2 * 2.5


def test_the_cap_is_never_exceeded():
    deadline = Deadline(1.0, rounds=1)
    deadline.observe(0.9)
    assert deadline.current == 1.0
    deadline.observe(0.2)
    assert deadline.current == pytest.approx(0.3)


def test_who_waits_for_all_learns_nothing():
    deadline = Deadline(math.inf, rounds=1)
    deadline.observe(1.0)
    assert deadline.current == math.inf


@pytest.mark.parametrize("cap_s", [0, -1, math.nan])
def test_a_deadline_is_above_0(cap_s):
    with pytest.raises(ValueError, match=f"above 0 seconds, got {cap_s}"):
        Deadline(cap_s)


@pytest.mark.parametrize("bad", [{"rounds": 0}, {"quantile": 1.1}, {"margin": 0.5}])
def test_a_deadline_is_learnt_from_what_makes_sense(bad):
    with pytest.raises(ValueError, match=r"rounds >= 1, a quantile .* margin >= 1; got .*"):
        Deadline(1.0, **bad)


def test_alive_is_who_was_heard_in_one_of_the_last_rounds(rng):
    for patience in (1, 2, 3, 5):
        liveness = Liveness(4, patience)
        heard_rn = np.concatenate([np.ones((1, 4), bool), rng.random((200, 4)) < 0.3])
        assert liveness.live == (True,) * 4
        for round in range(1, len(heard_rn)):
            liveness.observe(heard_rn[round])
            expected = heard_rn[max(0, round - patience + 1) : round + 1].any(axis=0)
            assert liveness.live == tuple(expected)


def test_patience_is_at_least_1():
    with pytest.raises(ValueError, match="got patience=0"):
        Liveness(1, 0)


@pytest.mark.parametrize(("f", "tolerated", "too_many"), [(0, 49, 50), (3, 3, 4)])
def test_a_deadline_that_more_than_f_rows_miss_is_wrong(f, tolerated, too_many):
    """Where f is 0, that half of them miss."""
    deadline = Deadline(cap_s=10.0, rounds=2)
    for _ in range(2):
        deadline.observe(1.0)
    assert deadline.current == 1.5
    deadline.observe(None, tolerated, 100, f)
    assert deadline.current == 1.5
    for current in (3.0, 6.0, 10.0, 10.0):
        deadline.observe(None, too_many, 100, f)
        assert deadline.current == current
    for _ in range(2):
        deadline.observe(2.0)
    assert deadline.current == 3.0


@pytest.mark.parametrize(("f", "late_n"), [(0, (3, 0, 0)), (1, (3, 0, 1)), (2, (1, 1, 1))])
def test_grace_is_for_those_whom_it_helps(f, late_n):
    grace = Grace(0.3, 3, f)
    waited_n = []
    for round in range(200):
        waited_n.append(grace.current > 0)
        grace.observe(late_n if round == 50 else (0, 0, 0))
    assert waited_n == [True] * 5 + [False] * 46 + [True] * 100 + [False] * 49


def test_f_workers_cannot_keep_the_grace_up():
    """One late datagram each in every round, or one in 100 rounds."""
    for every in (1, 100):
        grace = Grace(0.3, 5, f=2)
        waited = 0
        for round in range(1000):
            waited += grace.current > 0
            grace.observe((0, 0, 0, round % every == 0, round % every == every // 2))
        assert waited == 5


def test_a_deadline_stays_above_its_floor_and_below_its_cap():
    for cap_s, floor_s, expected in [(10, 1, 1), (0.5, 1, 0.5), (10, 0, 0.015)]:
        deadline = Deadline(cap_s, floor_s=floor_s)
        for _ in range(20):
            deadline.observe(0.01)
        assert deadline.current == pytest.approx(expected)


def test_who_was_forgotten_is_back_only_when_it_is_heard_in_a_later_round():
    """What came of it in the round in which it went may have come before."""
    liveness = Liveness(2)
    liveness.forget(1)
    assert liveness.live == (True, False)
    liveness.observe(np.array([True, True]))
    assert liveness.live == (True, False)
    liveness.observe(np.array([True, False]))
    assert liveness.live == (True, False)
    liveness.observe(np.array([True, True]))
    assert liveness.live == (True, True)
