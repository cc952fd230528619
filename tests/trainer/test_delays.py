import numpy as np
import pytest

from aggregathor.errors import UserError
from aggregathor.trainer.delays import Delays


def drawn(delays, arrivals):
    return [delays.next(arrival) for arrival in range(arrivals)]


def test_equal_delays_are_turns_and_ties_go_to_the_lower_row():
    coming = drawn(Delays("equal", {}, 3, 0), 7)
    assert [(each.row, each.now_s) for each in coming] == [
        (0, 1), (1, 1), (2, 1), (0, 2), (1, 2), (2, 2), (0, 3),
    ]  # fmt: skip


@pytest.mark.parametrize(("model", "mean_s"), [("exponential", 1), ("truncated-normal", 1.798)])
def test_delays_have_the_mean_that_their_model_says(model, mean_s):
    coming = drawn(Delays(model, {}, 1, 5), 4000)
    delays_s = np.diff([0, *(each.now_s for each in coming)])
    assert delays_s.mean() == pytest.approx(mean_s, rel=0.05)
    assert delays_s.min() >= (1 if model == "truncated-normal" else 0)


def test_a_slow_worker_comes_as_much_less_often():
    coming = drawn(Delays("exponential", {"factors": {1: 10, 2: 0.1}}, 3, 0), 4000)
    counts = np.bincount([each.row for each in coming])
    assert counts[0] / counts[1] == pytest.approx(10, rel=0.3)
    assert counts[2] / counts[0] == pytest.approx(10, rel=0.2)


@pytest.mark.parametrize("model", ["equal", "exponential", "truncated-normal", "staleness"])
def test_who_is_silent_comes_no_more(model):
    coming = drawn(Delays(model, {"silent": {0: 0, 2: 20}}, 4, 3), 300)
    assert {each.row for each in coming} == {1, 2, 3}
    assert max(each.now_s for each in coming if each.row == 2) < 20
    delays = Delays(model, {"silent": {0: 0, 1: 0}}, 2, 3)
    with pytest.raises(UserError, match="no worker is left after 0 arrivals"):
        delays.next(0)


def test_staleness_is_uniform_up_to_its_bound():
    coming = drawn(Delays("staleness", {"most": 4}, 3, 0), 3000)
    staleness = [version - each.version for version, each in enumerate(coming)]
    assert min(each.version for each in coming) == 0
    np.testing.assert_allclose(np.bincount(staleness[10:]) / len(staleness), 0.2, atol=0.03)
    np.testing.assert_allclose(np.bincount([e.row for e in coming]) / 3000, 1 / 3, atol=0.03)


@pytest.mark.parametrize("model", ["exponential", "staleness"])
def test_a_queue_goes_on_bit_for_bit(model):
    given = {"silent": {1: 9.5}}
    whole = drawn(Delays(model, given, 4, 1), 100)
    for cut in (0, 1, 37):
        first, second = Delays(model, given, 4, 1), Delays(model, given, 4, 1)
        drawn(first, cut)
        second.restore(first.state())
        assert [second.next(version) for version in range(cut, 100)] == whole[cut:]


def test_seeds_and_rows_draw_differently():
    one, other = (drawn(Delays("exponential", {}, 3, seed), 50) for seed in (0, 1))
    assert [each.row for each in one] != [each.row for each in other]
    assert len({each.now_s for each in one}) == 50


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [
        ("equal", {"factor": {0: 1}}, "factor"),
        ("equal", {"factors": {4: 1}}, r"rows 0\.\.3"),
        ("equal", {"factors": {0: 0}}, "factors is a dict"),
        ("equal", {"factors": {0: float("inf")}}, "factors is a dict"),
        ("equal", {"silent": {0: -1}}, "silent is a dict"),
        ("equal", {"silent": [0]}, "silent is a dict"),
        ("equal", {"most": 3}, "most is for --delays=staleness"),
        ("staleness", {"most": -1}, "a whole number of updates"),
        ("staleness", {"factors": {0: 2}}, "factors are of times"),
    ],
)
def test_what_is_wrong_is_an_error(model, given, said):
    with pytest.raises(UserError, match=said):
        Delays(model, given, 4, 0)
