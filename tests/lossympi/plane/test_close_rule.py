import math

import numpy as np
import pytest

from lossympi.plane.close_rule import CloseRule

C = 10  # datagrams of a row


@pytest.fixture
def rule(policy):
    """Returns a function that opens a round of two rows at time 100."""
    numbers = {"deadline_s": 8.0, "grace_s": 0.25, "quiet_s": 2.0, "max_loss": 0.2}
    return lambda **change: CloseRule(policy(**{**numbers, **change}), 2, C, 100.0)


def test_complete_when_every_live_row_is(rule):
    for live_n, rows in [((True, True), (0, 1)), ((True, False), (0,)), ((False, True), (1,))]:
        opened = rule(live_n=live_n)
        for row in rows:
            assert opened.check(101.0)[0] is None
            opened.heard(row, 101.0, 0)
        assert opened.check(101.0)[0] == "complete"


def test_early_after_grace_when_the_quorum_has_ended(rule):
    opened = rule()
    for row in (0, 1):
        opened.heard(row, 101.0, 2)
        opened.ended(row, 101.5 + row)
    assert opened.check(102.5) == (None, 102.75)  # nothing for `grace` after the last one
    assert opened.check(102.75)[0] == "early"
    assert opened.settled_s == [1.5, 2.5]


def test_what_is_overtaken_puts_off_the_early_close(rule):
    opened = rule(quorum=1)
    opened.heard(0, 101.0, 2)
    opened.ended(0, 101.0)
    opened.heard(0, 101.125, 1)
    opened.ended(0, 101.25)  # only the first END tells anything
    assert opened.check(101.25) == (None, 101.375)
    assert opened.check(101.375)[0] == "early"


def test_another_rows_trickle_does_not_put_off_a_quorum(rule):
    opened = rule(quorum=1)
    opened.ended(1, 101.0)
    opened.heard(0, 101.0, 0)
    opened.heard(1, 101.2, 2)
    assert opened.check(101.25)[0] == "early"


def test_a_row_that_lost_too_much_is_not_settled(rule):
    opened = rule(quorum=1)
    opened.heard(0, 101.0, 3)
    opened.ended(0, 101.0)
    assert opened.check(107.9) == (None, 108.0)
    assert math.isnan(opened.settled_s[0])
    opened.heard(0, 107.9, 2)  # what was missing came after all
    assert opened.settled_s[0] == pytest.approx(7.9)


def test_a_row_settles_when_it_is_quiet(rule):
    opened = rule(quorum=1)
    assert opened.check(100.0) == (None, 108.0)
    opened.heard(0, 101.0, 3)
    assert opened.check(101.0) == (None, 108.0)
    opened.heard(0, 101.5, 2)
    assert opened.check(101.5) == (None, 103.5)  # now there is something sooner to wait for
    opened.heard(0, 101.5, 1)
    assert opened.check(101.5) == (None, 103.5)
    assert opened.check(103.5)[0] == "early"
    assert opened.settled_s[0] == 3.5
    assert math.isnan(opened.settled_s[1])


def test_when_it_was_quiet_does_not_depend_on_being_asked(rule):
    opened = rule()
    opened.heard(0, 101.0, 2)
    opened.ended(0, 104.0)
    assert opened.settled_s[0] == 3.0


def test_a_quiet_row_for_which_something_comes_was_only_interrupted(rule):
    opened = rule()
    opened.heard(0, 101.0, 2)
    opened.check(104.0)
    assert opened.settled_s[0] == 3.0
    opened.heard(0, 104.0, 1)
    assert math.isnan(opened.settled_s[0])
    opened.check(106.0)
    assert opened.settled_s[0] == 6.0
    opened.heard(1, 105.0, 2)
    opened.ended(1, 106.0)
    opened.heard(1, 107.0, 1)  # it was overtaken: the row has ended all the same
    assert opened.settled_s[1] == 6.0


@pytest.mark.parametrize(("max_loss", "reason"), [(1.0, "early"), (0.99, None)])
def test_all_may_be_lost_only_if_that_is_said(rule, max_loss, reason):
    opened = rule(max_loss=max_loss)
    opened.ended(0, 101.0)
    opened.ended(1, 101.0)
    assert opened.check(102.0)[0] == reason


def test_rows_that_are_not_live_are_not_waited_for_nor_counted(rule):
    opened = rule(live_n=(True, False), quorum=1)
    opened.ended(1, 101.0)
    opened.heard(1, 101.0, 0)
    assert opened.check(102.0)[0] is None
    assert opened.settled_s[1] == 1.0


@pytest.mark.parametrize("live_n", [(True, True), (False, False)])
def test_the_deadline_closes_whatever_comes(rule, live_n):
    opened = rule(live_n=live_n)
    assert opened.check(107.99) == (None, 108.0)
    assert opened.check(108.0)[0] == "deadline"


@pytest.mark.parametrize(
    "change", [{"quorum": 0}, {"max_loss": -0.1}, {"max_loss": 1.1}, {"live_n": (True,)}]
)
def test_impossible_policies_are_refused(rule, change):
    with pytest.raises(ValueError, match=r"quorum|live_n"):
        rule(**change)


def test_waking_when_told_is_as_good_as_asking_all_the_time(rule, rng):
    """Asks one rule at the times it names and where something has come, another all the time."""
    for _ in range(200):
        lazy, eager = (rule(quorum=rng.integers(1, 3), max_loss=0.5) for _ in range(2))
        eager._policy = lazy._policy
        missing, now, wake_at = [C, C], 100.0, 0.0
        closed = {}
        while "eager" not in closed:
            now += 1 / 16
            row, what = rng.integers(2), rng.integers(12)
            if what < 3 and missing[row]:
                missing[row] -= 1
                eager.heard(row, now, missing[row])
                lazy.heard(row, now, missing[row])
                wake_at = now
            elif what == 3:
                eager.ended(row, now)
                lazy.ended(row, now)
                wake_at = now
            if now >= wake_at and "lazy" not in closed:
                reason, wake_at = lazy.check(now)
                if reason:
                    closed["lazy"] = (now, reason)
            if reason := eager.check(now)[0]:
                closed["eager"] = (now, reason)
        assert closed["lazy"] == closed["eager"]
        np.testing.assert_array_equal(lazy.settled_s, eager.settled_s)
