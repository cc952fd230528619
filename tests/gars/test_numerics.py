"""Whatever the size of the numbers, the rules give what their definitions give.

The oracle is exact. What is tried is tried with an op called eagerly, in a graph, whose threads
take subnormal numbers for 0 wherever TensorFlow alone computes, and with arrays.
"""

import threading

import numpy as np
import pytest
import tensorflow as tf

from aggregathor import gars, ops
from aggregathor.gars import GARS
from tests import rational
from tests.gars.cases import CASES, ROBUST

N, F, D = 11, 2, 5
DTYPES = ("float16", "bfloat16", "float32", "float64")
SCALES = {
    "float16": [6e-8, 1e-5, 1.0, 300.0, 6e4],
    "bfloat16": [9e-41, 1e-30, 1.0, 1e20, 3e38],
    "float32": [1e-44, 1e-43, 1e-38, 1e-30, 1e-20, 1.0, 1e20, 3e38],
    "float64": [5e-323, 1e-310, 1e-200, 1e-162, 1e-154, 1.0, 1e153, 1e155, 1e200, 1.7e308],
}
EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
LEAST = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 2.0**-1074}
SIZES = [(dtype, scale) for dtype, scales in SCALES.items() for scale in scales]
EXACT_CASES = [case for case in CASES if case != "geometric-median"]


def kind_of(dtype):
    return tf.as_dtype(dtype).as_numpy_dtype


def bits_of(values):
    return np.asarray(values).tobytes()


def honest_and_hostile(dtype, scale, rng, away=-1.0):
    """F rows of ``away`` and N - F near 1, times the scale, the hostile ones first."""
    honest_nd = 1 - 0.05 * rng.random((N - F, D))
    return (scale * np.concatenate([np.full((F, D), away), honest_nd])).astype(kind_of(dtype))


def ways(case, stack_nd):
    """What each way to call a rule gives."""
    name, parameters, _ = CASES[case]

    @tf.function(autograph=False)
    def in_graph(stack_nd):
        return GARS[name](stack_nd, f=F, **parameters)

    def elsewhere(stack_nd):
        return GARS[name].aggregate(stack_nd, f=F, **parameters).grad_d

    return {
        "an op": GARS[name](tf.constant(stack_nd), f=F, **parameters),
        "a graph": in_graph(tf.constant(stack_nd)),
        "an array": elsewhere(stack_nd),
        "an array on a thread of TensorFlow's": tf.function(
            lambda: tf.numpy_function(lambda: elsewhere(stack_nd), [], stack_nd.dtype)
        )(),
    }


@pytest.mark.parametrize(("dtype", "scale"), SIZES)
@pytest.mark.parametrize("case", EXACT_CASES)
def test_a_rule_is_its_definition_at_any_scale(case, dtype, scale, rng):
    for away in (-1.0, 0.6):
        stack_nd = honest_and_hostile(dtype, scale, rng, away)
        computed = np.float64 if dtype == "float64" else np.float32
        exact = rational.aggregate(case, rational.of(stack_nd), F, rational.rounded_to(computed))
        most = max(abs(float(x)) for x in stack_nd.ravel())
        # Two roundings: of a sum of doubles, or a candidate, and of the result.
        within = 2 * (EPS[dtype] * most + LEAST[dtype])
        for way, got in ways(case, stack_nd).items():
            for value, want in zip(np.asarray(got), exact, strict=True):
                assert np.isfinite(float(value)), (way, value)
                off = abs(rational.Fraction(float(value)) - want)
                assert off <= within, (way, value, float(want))


@pytest.mark.parametrize(("dtype", "scale"), SIZES)
@pytest.mark.parametrize("name", ROBUST)
def test_no_rule_leaves_the_range_of_the_honest_values(name, dtype, scale, rng):
    stack_nd = honest_and_hostile(dtype, scale, rng)
    honest_nd = stack_nd[F:].astype(np.float64)
    within = 0.02 * honest_nd.max() + LEAST[dtype]
    for way, got in ways(name, stack_nd).items():
        got = np.asarray(got).astype(np.float64)
        assert np.all(got >= honest_nd.min(axis=0) - within), way
        assert np.all(got <= honest_nd.max(axis=0) + within), way


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_all_ways_give_the_same_bits(case, dtype, rng):
    exponents = {"float16": (-8, 4), "float64": (-322, 307)}.get(dtype, (-44, 37))
    for kind in ("one size", "all sizes", "subnormal"):
        stack_nd = rng.standard_normal((N, 130))
        if kind == "all sizes":
            stack_nd *= 10.0 ** rng.integers(*exponents, stack_nd.shape)
        if kind == "subnormal":
            stack_nd *= 20 * LEAST[dtype]
        first, *others = ways(case, stack_nd.astype(kind_of(dtype))).values()
        for other in others:
            assert bits_of(other) == bits_of(first), kind


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_a_power_of_two_times_the_rows_gives_as_many_times_the_result(
    case, dtype, rng, each_kernel
):
    """To the bit, as nothing is rounded: no rule has a constant of a size of its own."""
    name, parameters, _ = CASES[case]
    powers = {"float16": (-6, 6), "float64": (-900, -600, -400, 400, 900)}
    stack_nd = rng.standard_normal((N, 130)).astype(kind_of(dtype))
    if dtype == "float16":
        stack_nd = np.where(abs(stack_nd) < 0.1, kind_of(dtype)(0.1), stack_nd)
    grad_d = np.asarray(GARS[name](stack_nd, f=F, **parameters)).astype(np.float64)
    for power in powers.get(dtype, (-100, -60, -30, 30, 60, 100)):
        scaled_nd = np.ldexp(stack_nd.astype(np.float64), power).astype(kind_of(dtype))
        scaled_d = np.asarray(GARS[name](scaled_nd, f=F, **parameters)).astype(np.float64)
        if dtype == "float16":  # few bits below its least normal number
            np.testing.assert_allclose(scaled_d, np.ldexp(grad_d, power), atol=6e-8)
        else:
            np.testing.assert_array_equal(scaled_d, np.ldexp(grad_d, power), f"2^{power}")


@pytest.mark.parametrize("text", ["nnm+median", "nnm+krum", "bucketing(s=2)+median"])
def test_pre_aggregations_too_have_no_size_of_their_own(text, rng, each_kernel):
    rule = gars.compose(text)
    stack_nd = rng.standard_normal((N, 130))
    grad_d = np.asarray(rule(stack_nd, f=F))
    for power in (-900, -500, 500, 900):
        scaled_d = rule(np.ldexp(stack_nd, power), f=F)
        np.testing.assert_array_equal(scaled_d, np.ldexp(grad_d, power), f"2^{power}")
    small_nd = stack_nd.astype(np.float32)
    for power in (-60, 60):
        of_arrays = rule.aggregate(np.ldexp(small_nd, power), f=F).grad_d
        expected_d = np.ldexp(rule.aggregate(small_nd, f=F).grad_d, power)
        np.testing.assert_array_equal(of_arrays, expected_d)


@pytest.mark.parametrize("size", [1e200, 1e-200])
@pytest.mark.parametrize("case", CASES)
def test_the_stand_in_too_is_right_where_squares_are_not(case, size, rng):
    name, parameters, _ = CASES[case]
    for away in (-1.0, 0.6):
        stack_nd = honest_and_hostile("float64", size, rng, away)
        expected_d = GARS[name](stack_nd, f=F, **parameters)
        with ops.using("tensorflow"):
            grad_d = GARS[name](stack_nd, f=F, **parameters)
        np.testing.assert_allclose(grad_d, expected_d, 1e-4)


@pytest.mark.parametrize("huge", [1e200, 1.7e308])
@pytest.mark.parametrize("tiny", [1.0, 1e-200, 1e-310])
@pytest.mark.parametrize("name", ROBUST)
def test_huge_hostile_rows_beside_tiny_honest_ones(name, huge, tiny, rng):
    stack_nd = honest_and_hostile("float64", tiny, rng)
    stack_nd[0], stack_nd[1] = huge, -huge
    honest_nd = stack_nd[F:]
    for given in (tf.constant(stack_nd), stack_nd):
        grad_d = np.asarray(GARS[name](given, f=F))
        assert np.all(grad_d >= honest_nd.min(axis=0) - 0.03 * tiny)
        assert np.all(grad_d <= honest_nd.max(axis=0) + 0.03 * tiny)


@pytest.mark.parametrize("case", ["krum", "multi-krum", "bulyan", "bulyan-paper", "brute"])
def test_hostile_rows_that_are_nearly_one_do_not_hide_the_others_distances(case, rng):
    """F rows far nearer to each other, and to an honest one, than doubles can square."""
    name, parameters, _ = CASES[case]
    honest_nd = rng.standard_normal((N - F, D))
    stack_nd = np.concatenate([np.repeat(honest_nd[:1], F, axis=0), honest_nd])
    stack_nd[:F, 0] = stack_nd[F, 0] = 0.0
    stack_nd[:F, 0] += [1e-300, 2e-300]
    exact = rational.aggregate(case, rational.of(stack_nd), F, rational.rounded_to(np.float64))
    grad_d = GARS[name](stack_nd, f=F, **parameters)
    np.testing.assert_allclose(grad_d, [float(x) for x in exact], 1e-12, 1e-15)


def test_distances_are_what_they_are_called():
    """The public ones are not scaled, so that those that no double can hold are 0 and infinite."""
    stack_nd = np.array([[0.0], [1e-200], [1e200], [2e200]])
    np.testing.assert_array_equal(
        gars.sq_distances(stack_nd),
        [
            [0, 0, np.inf, np.inf],
            [0, 0, np.inf, np.inf],
            [np.inf] * 2 + [0, np.inf],
            [np.inf] * 3 + [0],
        ],
    )


def test_the_geometric_median_takes_nu_times_the_rows_own_distances(each_kernel):
    rows = np.array([[0.0], [0.0], [1.0], [4.0], [9.0]])
    for scale in (1.0, 2.0**-30, 2.0**30):
        smooth = gars.geometric_median(scale * rows, f=1, nu=1e6, max_iter=1)
        np.testing.assert_allclose(smooth, scale * rows.mean(axis=0), 1e-12)  # all weigh the same
        sharp = gars.geometric_median(scale * rows, f=1, nu=1e-6)
        np.testing.assert_allclose(sharp, scale, 1e-5)


def test_kernels_leave_the_mode_of_the_callers_thread_as_it_is():
    def flushes():
        return float(np.float32(1e-38) * np.float32(0.1)) == 0.0

    def on_this_thread():
        before = flushes()
        GARS["median"].aggregate(np.ones((5, 100), np.float32), f=1)
        return np.array([before, flushes()])

    here = on_this_thread()
    on_tensorflows = tf.function(lambda: tf.numpy_function(on_this_thread, [], tf.bool))()
    assert list(here) == [False, False]
    assert list(on_tensorflows.numpy()) == [True, True]


def test_arrays_do_not_depend_on_which_thread_comes_first(rng):
    """A thread takes over the mode of the one that starts it, and the pool's start at first use."""
    stack_nd = (1e-43 * rng.standard_normal((N, 200_000))).astype(np.float32)
    expected_d = GARS["median"].aggregate(stack_nd, f=F).grad_d
    found = []
    threads = [
        threading.Thread(
            target=lambda: found.append(GARS["median"].aggregate(stack_nd, f=F).grad_d)
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert [bits_of(each) for each in found] == [bits_of(expected_d)] * 3
    assert np.count_nonzero(expected_d) > 0
