"""Zeno: against its definition, with any rows, and against the clauses that hold for it."""

import importlib
import math
import sys

import numpy as np
import pytest
import tensorflow as tf

from aggregathor import gars, testing
from aggregathor.errors import UserError
from aggregathor.gars import GARS, ConditionError, Context, compose
from tests import reference
from tests.gars import importable_rules
from tests.gars.cases import stack_of
from tests.gars.importable_rules import GAMMA, context_of, half_square
from tests.warm.start import executable

zeno_module = importlib.import_module(
    "aggregathor.gars.zeno"
)  # the package has the rule by this name


def apply(stack_nd, context, f, **parameters):
    (grad_d, usage_n), state = GARS["zeno"].apply(stack_nd, {}, context, f=f, **parameters)
    assert state == {}
    return np.asarray(grad_d), np.asarray(usage_n)


VECTOR_ND = np.array([[1, 0], [0.5, 0], [-1, 0], [0, 3], [1e20, 0], [np.nan, 0]])


@pytest.mark.parametrize("given", [np.asarray, tf.constant], ids=["array", "tensor"])
def test_vector(given):
    x_d, scores = np.array([1.0, 0.0]), []

    def noting(v_d):
        scores.append(half_square(v_d))
        return scores[-1]

    stack_nd = VECTOR_ND.copy()
    stack_nd[5, 1] = np.nan  # all of it is missing
    context = context_of(x_d, noting)
    grad_d, usage_n = apply(given(stack_nd), context, 4, b=4, rho=0.01)
    np.testing.assert_allclose(grad_d, [0.75, 0], rtol=1e-6)
    np.testing.assert_array_equal(usage_n, [1, 1, 0, 0, 0, 0])
    sq_norm_n = np.sum(VECTOR_ND[:5] ** 2, axis=1)
    score_n = scores[0] - np.array(scores[1:]) - 0.01 * sq_norm_n
    np.testing.assert_allclose(score_n, [0.365, 0.21625, -0.635, -1.215, -1.35e39], rtol=1e-6)
    assert len(scores) == 6  # the lost row is not even tried


def test_vector_of_a_row_that_is_half_there():
    """The vector's last row has one value of two: the other is 0, and so is its score."""
    context = context_of(np.array([1.0, 0.0]))
    _, usage_n = apply(VECTOR_ND, context, 3, b=3, rho=0.01)
    np.testing.assert_array_equal(usage_n, [1, 1, 0, 0, 0, 1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["complete", "missing", "infinite", "ties"])
@pytest.mark.parametrize("given", [np.asarray, tf.constant], ids=["array", "tensor"])
def test_matches_definition(kind, dtype, given, rng, each_kernel):
    for n, f, b in [(1, 0, None), (5, 1, None), (9, 6, None), (20, 12, 16), (20, 0, 0)]:
        for d in (1, 3, 64, 65, 1025, 20_001):
            stack_nd = stack_of(kind, n, f, d, dtype, rng)
            x_d = rng.integers(-2, 3, d).astype(np.float64)
            parameters = {"b": b} if f else {"b": b, "rho": 0.125}
            got_d, usage_n = apply(given(stack_nd), context_of(x_d), f, **parameters)
            expected_d, _, kept = reference.zeno(stack_nd, f, half_square, x_d, GAMMA, **parameters)
            assert set(np.flatnonzero(usage_n)) == set(kept), (n, f, d)
            tolerance = 1e-6 if dtype == "float32" else 1e-13
            np.testing.assert_allclose(got_d, expected_d, tolerance, tolerance)
            assert got_d.dtype == dtype


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_are_computed_in_float32(dtype, rng):
    stack_nd = tf.cast(rng.standard_normal((7, 65)), dtype)
    x_d = rng.standard_normal(65)
    expected_d, _, kept = reference.zeno(
        tf.cast(stack_nd, tf.float64).numpy(), 4, half_square, x_d, GAMMA
    )
    grad_d, usage_n = apply(stack_nd, context_of(x_d), 4)
    assert set(np.flatnonzero(usage_n)) == set(kept)
    assert grad_d.dtype == stack_nd.dtype.as_numpy_dtype
    np.testing.assert_allclose(grad_d.astype(float), expected_d, rtol=1e-2, atol=1e-2)


HOSTILE = {
    "NaN": np.nan,
    "inf": np.inf,
    "-inf": -np.inf,
    "1e20": 1e20,
    "-1e20": -1e20,
    "the largest float": np.finfo(np.float32).max,
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("f", [1, 12, 19])
def test_hostile_rows_are_never_kept(value, f, rng, each_kernel):
    x_d = np.ones(65)
    stack_nd = (x_d + 0.1 * rng.standard_normal((20, 65))).astype(np.float32)
    stack_nd[:f] = value
    grad_d, usage_n = apply(stack_nd, context_of(x_d), f)
    assert not usage_n[:f].any()
    assert usage_n[f:].all()
    np.testing.assert_allclose(grad_d, stack_nd[f:].mean(axis=0), rtol=1e-5)


def test_a_value_that_is_not_finite_makes_its_row_lose(rng, each_kernel):
    stack_nd = np.ones((3, 65), np.float32)
    stack_nd[0, 7] = -np.inf
    stack_nd[1, 7], stack_nd[1, 8] = np.inf, np.nan
    _, usage_n = apply(stack_nd, context_of(np.ones(65)), 0)
    np.testing.assert_array_equal(usage_n, [0, 0, 1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_loses(bad):
    def losses(stack_nd, rows, gamma, n_r):
        return np.array([1.0, 0.9, bad, 0.5])

    context = Context(losses=losses, learning_rate=lambda: 0.1)
    grad_d, usage_n = apply(np.array([[1.0], [2.0], [4.0]]), context, 0)
    np.testing.assert_array_equal(usage_n, [1, 0, 1])
    np.testing.assert_allclose(grad_d, [2.5])


def test_of_fewer_finite_rows_than_are_kept_the_mean_is_theirs(each_kernel):
    stack_nd = np.full((7, 3), np.nan, np.float32)
    stack_nd[[2, 5]] = [[1, 1, 1], [3, 3, 3]]
    grad_d, usage_n = apply(stack_nd, context_of(np.ones(3)), 2)
    np.testing.assert_array_equal(grad_d, [2, 2, 2])
    np.testing.assert_array_equal(usage_n, [0, 0, 1, 0, 0, 1, 0])


@pytest.mark.parametrize("given", [np.asarray, tf.constant], ids=["array", "tensor"])
def test_without_any_finite_row_there_is_no_update(given, each_kernel):
    stack_nd = np.full((4, 3), np.inf, np.float32)
    stack_nd[0] = np.nan
    seen = []
    grad_d, usage_n = apply(given(stack_nd), context_of(np.ones(3), seen=seen), 1)
    np.testing.assert_array_equal(grad_d, np.zeros(3))
    np.testing.assert_array_equal(usage_n, np.zeros(4))
    assert grad_d.dtype == np.float32
    assert seen == []


def test_at_parameters_whose_loss_is_not_finite_there_is_no_update():
    grad_d, usage_n = apply(np.ones((4, 3)), context_of(np.full(3, np.inf)), 1)
    np.testing.assert_array_equal(grad_d, np.zeros(3))
    assert not usage_n.any()


def test_ties_go_to_the_lower_row(each_kernel):
    stack_nd = np.ones((6, 3), np.float32)
    stack_nd[1] = 0.5
    _, usage_n = apply(stack_nd, context_of(np.ones(3)), 3)
    np.testing.assert_array_equal(usage_n, [1, 0, 1, 1, 0, 0])


def test_what_a_row_lacks_is_0(each_kernel):
    stack_nd = np.ones((3, 4), np.float32)
    stack_nd[0, 0] = stack_nd[1, :2] = stack_nd[2, :3] = np.nan  # the last one has less than half
    grad_d, usage_n = apply(stack_nd, context_of(np.ones(4)), 0)
    np.testing.assert_array_equal(usage_n, [1, 1, 0])
    np.testing.assert_array_equal(grad_d, [0, 0.5, 1, 1])


def test_the_norm_is_the_sum_of_squares_and_not_their_mean():
    """Row 0 lowers the loss by more; the sum costs it its place, and the mean would not."""
    d = 100
    stack_nd = np.stack([np.full(d, 0.2), np.full(d, 0.1)])
    x_d = np.ones(d)
    loss_n = [half_square(x_d - GAMMA * u_d) for u_d in stack_nd]
    gain = loss_n[1] - loss_n[0]
    rho = 1.5 * gain / (np.sum(stack_nd[0] ** 2) - np.sum(stack_nd[1] ** 2))
    assert gain > rho * (np.mean(stack_nd[0] ** 2) - np.mean(stack_nd[1] ** 2)) > 0
    _, usage_n = apply(stack_nd, context_of(x_d), 1, rho=rho)
    np.testing.assert_array_equal(usage_n, [0, 1])


def test_what_is_asked_for_is_the_stack_itself(rng):
    stack_nd = rng.standard_normal((5, 33)).astype(np.float32)
    stack_nd[3] = np.nan
    before, seen = stack_nd.copy(), []
    apply(stack_nd, context_of(np.ones(33), rate=0.25, seen=seen), 2, n_r=9)
    (given_nd, rows, gamma, n_r), *more = seen
    assert np.shares_memory(given_nd, stack_nd)
    assert (rows, gamma, n_r, more) == ([0, 1, 2, 4], 0.25, 9, [])
    np.testing.assert_array_equal(stack_nd, before)


def test_defaults_are_those_of_the_paper():
    """rho = gamma/200 on the squared norm, n_r = 4, b = f; gamma is the learning rate."""
    x_d, seen = np.array([2.0]), []
    stack_nd = np.array([[4.0 - 1e-3], [4.0 + 1e-3], [3.98]])  # 4 would be the best with rho = 0
    for parameters in ({}, {"gamma": GAMMA, "rho": GAMMA / 200, "n_r": 4, "b": 2}):
        _, usage_n = apply(stack_nd, context_of(x_d, seen=seen), 2, **parameters)
        np.testing.assert_array_equal(usage_n, [0, 0, 1])
    _, usage_n = apply(stack_nd, context_of(x_d), 2, rho=0.0)
    np.testing.assert_array_equal(usage_n, [1, 0, 0])
    assert [each[2:] for each in seen] == [(GAMMA, 4)] * 2


def test_its_own_gamma_goes_before_the_learning_rate():
    seen = []
    apply(np.ones((2, 3)), context_of(np.ones(3), rate=9.0, seen=seen), 1, gamma=0.125)
    apply(np.ones((2, 3)), context_of(np.ones(3), rate=None, seen=seen), 1, gamma=0.25)
    assert [each[2] for each in seen] == [0.125, 0.25]


@pytest.mark.parametrize(
    ("rate", "found"), [(None, "is unknown here"), (0.0, "is 0.0"), (np.nan, "is nan")]
)
def test_a_learning_rate_that_is_no_step(rate, found):
    with pytest.raises(UserError, match=f"learning rate, which {found}: give .* gamma=0.1"):
        apply(np.ones((2, 3)), context_of(np.ones(3), rate=rate), 1)


def test_without_losses_it_says_who_lends_them():
    for call in (
        lambda: gars.zeno(np.ones((3, 2)), f=1),
        lambda: GARS["zeno"].aggregate(np.ones((3, 2)), f=1),
        lambda: compose("bucketing(s=2)+zeno")(np.ones((3, 2)), f=1),
    ):
        with pytest.raises(UserError, match=r"nobody lends it that: call apply with gars\.Context"):
            call()


def test_in_a_graph_it_says_that_it_cannot():
    @tf.function
    def in_graph(stack_nd):
        context = context_of(np.ones(2))
        return GARS["zeno"].apply(stack_nd, {}, context, f=1)[0].grad_d

    with pytest.raises(UserError, match="which a graph cannot: call it eagerly"):
        in_graph(tf.ones([3, 2]))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"b": 1}, "leaves out a whole number of rows, f <= b < n, got b=1 with f=2, n=9"),
        ({"b": 9}, "got b=9"),
        ({"b": 2.0}, "got b=2.0"),
        ({"b": True}, "got b=True"),
        ({"rho": -1e-9}, "a finite rho >= 0, got rho=-1e-09"),
        ({"rho": float("inf")}, "got rho=inf"),
        ({"rho": "x"}, "got rho='x'"),
        ({"gamma": 0.0}, "a finite gamma > 0, got gamma=0.0"),
        ({"gamma": float("nan")}, "got gamma=nan"),
        ({"n_r": 0}, "n_r >= 1, got n_r=0"),
        ({"n_r": 1.5}, "got n_r=1.5"),
    ],
)
def test_bad_value(parameters, message):
    with pytest.raises(UserError, match=message):
        GARS["zeno"].check(n=9, f=2, **parameters)


def test_more_than_half_may_be_byzantine():
    for n, f in [(1, 0), (20, 12), (20, 19)]:
        GARS["zeno"].check(n=n, f=f)
    with pytest.raises(ConditionError, match=r"zeno needs n >= f \+ 1 gradients; f=20 needs 21"):
        GARS["zeno"].check(n=20, f=20)
    assert compose("zeno").largest_f(20) == 19
    assert compose("zeno(b=16)").largest_f(20) == 16


def test_it_judges_the_rows_of_a_pre_aggregation(rng):
    x_d, seen = np.ones(33), []
    stack_nd = (x_d + 0.1 * rng.standard_normal((8, 33))).astype(np.float32)
    stack_nd[5] = -1e20
    rule = compose("bucketing(s=2)+zeno(b=2)")
    (grad_d, usage_n), _ = rule.apply(stack_nd, {}, context_of(x_d, seen=seen), f=1)
    assert len(seen[0][0]) == 4
    assert usage_n[5] == 0
    assert np.count_nonzero(usage_n) == 4
    np.testing.assert_allclose(grad_d, x_d, atol=0.3)


# What a row lacks is 0 in the mean, which is then a tenth smaller.
ZERO_FILLED = {"lost coordinates", "lost coordinates and hostile rows: near"}


# The loss stays where it is when rows are moved; and it is asked for outside of graphs.
SKIPPED = {"scale and shift", "inside tf.function"}


@pytest.mark.parametrize("clause", [each for each in testing.CLAUSES if each not in ZERO_FILLED])
def test_keeps_clause(clause, monkeypatch):
    monkeypatch.setattr(sys, "executable", executable())  # has TensorFlow from the beginning
    subject = testing.Subject.of(
        importable_rules.zeno_towards_the_truth, "n >= f + 1", equivariant=False, largest_n=40
    )
    assert testing.CLAUSES[clause](subject) == []
    assert subject.skipped.keys() == {clause} & SKIPPED


def test_a_norm_may_be_beyond_float32(rng):
    row_d = rng.standard_normal(100_003).astype(np.float32)
    expected = math.fsum(float(value) ** 2 for value in row_d)
    assert zeno_module._sq_norm(row_d) == pytest.approx(expected, rel=1e-6)
    assert zeno_module._sq_norm(row_d.astype(float)) == pytest.approx(expected, rel=1e-14)
    assert zeno_module._sq_norm(np.full(3, 1e30, np.float32)) == pytest.approx(3e60, rel=1e-6)


def test_check_gar_says_that_it_has_no_loss_for_it():
    with pytest.raises(UserError, match="zeno judges gradients by the loss on validation data"):
        testing.check_gar(gars.zeno)
