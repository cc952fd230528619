import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregathor.protocols.basgd import Basgd
from aggregathor.protocols.offers import Offer
from aggregathor.protocols.plain import Plain
from tests.protocols.offering import Toy

PARAMS_D = np.zeros(1)


def median(stack_bd):
    return np.median(stack_bd, axis=0)


def offered(rule, now_s, row, value):
    return rule.offer(Offer(row, 0, 0, PARAMS_D, PARAMS_D, np.array([float(value)]), now_s))


def test_the_trace():
    """Six workers, three buffers, 5 s; workers 2 and 5 are silent, so buffer 2 stays empty."""
    rule = Basgd(6, 3, median, 5.0)
    for now_s, row, value in [(1, 0, 1), (2, 1, 2), (3, 3, 3), (4, 4, 4)]:
        assert offered(rule, now_s, row, value) == (None, "")
    assert offered(rule, 5.5, 0, 5) == (None, "reassigned")
    assert rule.state()["place"].tolist() == [0, 1, 4, 2, 3, 5]
    assert rule.buffers.tolist() == [0, 1, 1, 2, 0, 2]
    assert not rule.state()["counts"].any()
    for now_s, row, value in [(6, 0, 1), (6.5, 1, 2)]:
        assert offered(rule, now_s, row, value) == (None, "")
    assert offered(rule, 7, 3, 9).step_d.tolist() == [2]
    for now_s, row, value in [(8, 4, 3), (9, 0, 2), (9.5, 1, 4)]:
        assert offered(rule, now_s, row, value) == (None, "")
    seen = []
    rule._aggregate = lambda stack_bd: seen.append(stack_bd.ravel().tolist()) or median(stack_bd)
    assert offered(rule, 10, 3, 6).step_d.tolist() == [4]
    assert seen == [[2.5, 4, 6]]


def test_the_timer_begins_anew_with_a_step_and_with_a_reassignment():
    rule = Basgd(4, 2, median, 5.0)
    offered(rule, 1, 0, 1)
    assert offered(rule, 4, 1, 1).step_d is not None
    assert offered(rule, 9, 0, 1) == (None, "")  # 5 s after the step is not more than 5 s
    assert offered(rule, 9.1, 0, 1) == (None, "reassigned")
    assert offered(rule, 14, 0, 1) == (None, "")
    assert offered(rule, 14.2, 0, 1) == (None, "reassigned")


def test_a_mean_is_exact_in_float64():
    rule = Basgd(2, 2, lambda stack_bd: stack_bd[0], 1e9)
    values = np.random.default_rng(0).standard_normal(1000)
    for value in values:
        offered(rule, 0, 0, value)
    assert offered(rule, 0, 1, 0).step_d[0] == pytest.approx(values.mean(), rel=1e-14)


def test_a_mean_in_float32_is_as_exact_as_its_dtype():
    """After N gradients at most N times half a unit in the last place of the largest."""
    rule = Basgd(2, 2, lambda stack_bd: stack_bd[0], 1e9)
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    for value in values:
        rule.offer(Offer(0, 0, 0, PARAMS_D, PARAMS_D, np.array([value]), 0.0))
    verdict = rule.offer(Offer(1, 0, 0, PARAMS_D, PARAMS_D, np.zeros(1, np.float32), 0.0))
    bound = 1000 * 2**-24 * float(np.abs(values).max())
    assert verdict.step_d[0] == pytest.approx(values.astype(np.float64).mean(), abs=bound)


def test_equal_gradients_have_exactly_their_mean_and_the_largest_ones_no_overflow():
    for values in ([1.1] * 9, [3e38, -3e38, 3e38]):
        rule = Basgd(2, 2, lambda stack_bd: stack_bd[0].copy(), 1e9)
        for value in np.array(values, np.float32):
            rule.offer(Offer(0, 0, 0, PARAMS_D, PARAMS_D, np.array([value]), 0.0))
        verdict = rule.offer(Offer(1, 0, 0, PARAMS_D, PARAMS_D, np.zeros(1, np.float32), 0.0))
        assert verdict.step_d[0] == pytest.approx(np.mean(values), rel=3e-7)
        if values[0] == 1.1:
            assert verdict.step_d[0] == np.float32(1.1)


def test_an_attacker_that_keeps_its_value_in_a_buffer_that_it_leaves_would_win():
    """Worker 2 attacks and worker 1 is silent. Without emptying at 1.5 s the step is -100."""
    rule = Basgd(4, 3, median, 1.0)
    trace = [(0.2, 2, -100), (0.5, 0, 1), (1.5, 3, 1), (1.6, 2, -100), (1.7, 3, 1), (1.8, 0, 1)]
    steps = [offered(rule, *event).step_d for event in trace]
    assert [None if step_d is None else step_d.tolist() for step_d in steps] == [
        None, None, None, None, None, [1],
    ]  # fmt: skip


SCHEDULES = st.lists(st.tuples(st.integers(0, 8), st.floats(0, 4)), max_size=120)


@given(SCHEDULES, st.integers(1, 9), st.sets(st.integers(0, 8), max_size=3))
def test_at_most_f_buffers_ever_hold_what_an_attacker_sent(schedule, buffers, attackers):
    """Through reassignments too; honest workers send 0, attackers 1."""
    stacks = []

    def aggregate(stack_bd):
        stacks.append(stack_bd)
        return stack_bd[0]

    rule = Basgd(9, buffers, aggregate, 5.0)
    now_s = 0.0
    for row, pause_s in schedule:
        now_s += pause_s
        offered(rule, now_s, row, row in attackers)
        state = rule.state()
        if "sums" in state:
            assert np.count_nonzero(state["sums"]) <= len(attackers)
    for stack_bd in stacks:
        assert np.count_nonzero(stack_bd) <= len(attackers)


@given(st.lists(st.integers(0, 4), max_size=60), st.integers(0, 2**32 - 1))
def test_one_buffer_is_plain_asynchronous_sgd_bit_for_bit(schedule, seed):
    rng = np.random.default_rng(seed)
    toys = [
        Toy(rule, 5, np.ones(3, np.float32)) for rule in (Plain(), Basgd(5, 1, lambda s: s[0], 1.0))
    ]
    for now_s, row in enumerate(schedule):
        grad_d = rng.standard_normal(3).astype(np.float32)
        for toy in toys:
            toy.offer(row, grad_d, float(now_s))
    assert toys[0].is_step() == toys[1].is_step() == [True] * len(schedule)
    np.testing.assert_array_equal(toys[0].params_d, toys[1].params_d)


@given(st.integers(1, 6), st.sets(st.integers(0, 5), max_size=5), st.integers(0, 99))
def test_steps_go_on_as_long_as_as_many_workers_live_as_there_are_buffers(buffers, silent, seed):
    """Whoever they are, and whatever was assigned before they fell silent."""
    rng = np.random.default_rng(seed)
    rule = Basgd(6, buffers, median, 3.0)
    live = sorted({*range(6)} - silent)
    now_s, steps = 0.0, 0
    for event in range(240):
        row = int(rng.integers(6)) if event < 40 else live[event % len(live)]
        now_s += 0.5
        steps += event >= 40 and offered(rule, now_s, row, 1).step_d is not None
    assert (steps > 0) == (len(live) >= buffers)
