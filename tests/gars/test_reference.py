"""Every rule gives what its definition gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from aggregathor import gars, ops
from aggregathor.gars import GARS
from tests import reference
from tests.gars.cases import ALONE, CASES, COORDINATE_WISE, ROBUST, SELECTING, stack_of

DS = (1, 3, 64, 65, 1025)
EXACT = {"median", "median-aggregathor", "median-torch", "krum", "multi-krum-1"}
TOLERANCE = {"float32": 1e-6, "float64": 1e-13}


def sizes(case):
    name, *_ = CASES[case]
    needs = GARS[name].condition
    wanted = [(needs.least_n(1), 1), (needs.least_n(2), 2), (11, 2), (19, 4), (20, 6)]
    if name == "brute":
        wanted.remove((20, 6))  # 38760 subsets are too many for the oracle
    return [(n, f) for n, f in wanted if n >= max(3, needs.least_n(f))]


def assert_matches(case, stack_nd, f, tolerance):
    """Compares the native kernels and their stand-in with the oracle."""
    name, parameters, oracle = CASES[case]
    with np.errstate(invalid="ignore"):
        expected_d = oracle(stack_nd, f, **parameters).astype(stack_nd.dtype)
    for kernels in ("native", "tensorflow"):
        with ops.using(kernels):
            grad_d = GARS[name](stack_nd, f=f, **parameters)
        message = f"{kernels} kernels, n={len(stack_nd)} f={f} d={stack_nd.shape[1]}"
        if case in EXACT:
            np.testing.assert_array_equal(grad_d, expected_d, message)
        else:
            np.testing.assert_allclose(grad_d, expected_d, tolerance, tolerance, err_msg=message)


def test_every_rule_has_a_case():
    assert {name for name, *_ in CASES.values()} == set(ALONE)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["complete", "missing", "infinite"])
@pytest.mark.parametrize("case", CASES)
def test_matches_definition(case, kind, dtype, rng):
    tolerance = 1e-4 if case == "geometric-median" else TOLERANCE[dtype]  # its steps end at 1e-6
    for n, f in sizes(case):
        for d in DS:
            assert_matches(case, stack_of(kind, n, f, d, dtype, rng), f, tolerance)


# In float64 only: oracle and rule then round a candidate of Bulyan, a mean, to the same number.
@pytest.mark.parametrize("case", [c for c in CASES if c != "geometric-median"])
def test_ties_go_to_the_lower_row(case, rng):
    for n, f in sizes(case):
        for d in (1, 2, 3, 64, 65):
            for _ in range(3):
                assert_matches(case, stack_of("ties", n, f, d, "float64", rng), f, 1e-13)


@pytest.mark.parametrize("case", COORDINATE_WISE)
def test_ties_among_present_values(case, rng):
    for n, f in sizes(case):
        stack_nd = stack_of("ties", n, f, 257, "float64", rng)
        stack_nd[rng.random(stack_nd.shape) < 0.2] = np.nan
        assert_matches(case, stack_nd, f, 1e-13)


@pytest.mark.parametrize("case", ["meamed", "phocas"])
def test_ties_on_both_sides_of_the_center(case, rng):
    """Mirrored values: only where some of those that tie stay, the rows tell which."""
    for n, f in [(9, 2), (20, 4), (33, 8), (60, 14)]:
        half_nd = rng.integers(0, n // 4, (n // 2, 257)).astype(np.float64)
        middle_nd = np.zeros((n % 2, 257))
        stack_nd = rng.permuted(np.concatenate([half_nd, -half_nd, middle_nd]), axis=0)
        assert_matches(case, stack_nd, f, 1e-13)


def test_geometric_median_of_tied_rows(rng):
    for n, f in [(3, 1), (5, 2), (8, 2)]:
        stack_nd = stack_of("ties", n, f, 3, "float64", rng)
        assert_matches("geometric-median", stack_nd, f, 1e-4)


@pytest.mark.parametrize("max_iter", [0, 1, 5])
def test_geometric_median_steps(max_iter, rng):
    stack_nd = rng.standard_normal((7, 65))
    for nu, tol in [(1e-6, 1e-6), (10.0, 0.0), (1e-6, 0.1)]:
        parameters = {"nu": nu, "tol": tol, "max_iter": max_iter}
        expected_d = reference.geometric_median(stack_nd, 2, **parameters)
        for kernels in ("native", "tensorflow"):
            with ops.using(kernels):
                grad_d = gars.geometric_median(stack_nd, f=2, **parameters)
            np.testing.assert_allclose(grad_d, expected_d, 1e-6, 1e-9)


def test_geometric_median_stays_where_it_starts_on_a_row(each_kernel):
    # A step off a row is of the length nu: the docstring tells. The minimiser is 0.79 in both.
    rows = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [9e9, 9e9]]
    np.testing.assert_allclose(gars.geometric_median(rows, f=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("kind", ["complete", "missing", "infinite", "ties"])
@pytest.mark.parametrize("d", DS)
def test_sq_distances(kind, d, rng, each_kernel):
    stack_nd = stack_of(kind, 9, 3, d, "float64", rng)
    sq_dist_nn = gars.sq_distances(stack_nd).numpy()
    np.testing.assert_allclose(sq_dist_nn, reference.sq_distances(stack_nd), rtol=1e-13)
    np.testing.assert_array_equal(sq_dist_nn, sq_dist_nn.T)


@pytest.mark.parametrize(("lost", "far"), [(31, False), (32, False), (33, True)])
def test_a_row_with_less_than_half_is_far_from_all(lost, far, rng, each_kernel):
    stack_nd = rng.standard_normal((4, 64))
    stack_nd[1, :lost] = np.nan
    assert np.isinf(gars.sq_distances(stack_nd)[0, 1]) == far


def test_a_distance_that_overflows_is_infinite(each_kernel):
    sq_dist_nn = gars.sq_distances(np.array([[1e200], [-1e200], [1e200]]))
    np.testing.assert_array_equal(sq_dist_nn, [[0, np.inf, 0], [np.inf, 0, np.inf], [0, np.inf, 0]])


def test_distances_of_near_rows_do_not_cancel(each_kernel):
    stack_nd = np.array([[1e6], [1e6 + 0.0625]], np.float32)
    assert gars.sq_distances(stack_nd)[0, 1] == 0.0625**2


# Special values. 2^100 stands for 1e30: what is added to it is lost whole in float64, whatever the
# order, so that ties are the same for rule and oracle. Its sign is one per stack, for its sum with
# -2^100 does depend on the order.

SMALL = [0.0, 1.0, -1.0, 2.0, 3.0, -3.0]


@st.composite
def stacks(draw, values, least_n=1):
    n = draw(st.integers(least_n, 9))
    d = draw(st.integers(1, 5))
    huge = draw(st.sampled_from([2.0**100, -(2.0**100)]))
    return draw(arrays(np.float64, (n, d), elements=st.sampled_from([*values, huge])))


@pytest.mark.parametrize("case", COORDINATE_WISE)
@settings(max_examples=100)
@given(
    stack_nd=stacks([*SMALL, np.inf, -np.inf, np.nan]),
    f=st.integers(0, 4),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_special_values(case, stack_nd, f, dtype):
    name, parameters, oracle = CASES[case]
    f = min(f, GARS[name].condition.largest_f(len(stack_nd)))
    with np.errstate(invalid="ignore"):
        expected_d = oracle(stack_nd, f, **parameters)
    for kernels in ("native", "tensorflow"):
        with ops.using(kernels):
            grad_d = GARS[name](stack_nd.astype(dtype), f=f, **parameters).numpy()
        # More than f infinities: which one it is is nobody's promise.
        defined = np.isfinite(expected_d)
        assert not np.isfinite(grad_d[~defined]).any(), kernels
        np.testing.assert_allclose(grad_d[defined], expected_d[defined], 1e-6, err_msg=kernels)


@pytest.mark.parametrize("case", SELECTING)
@settings(max_examples=60)
@given(stack_nd=stacks(SMALL, least_n=3), f=st.integers(0, 3), data=st.data())
def test_special_values_of_selecting_rules(case, stack_nd, f, data):
    name, parameters, oracle = CASES[case]
    n = len(stack_nd)
    f = min(f, GARS[name].condition.largest_f(n))
    bad_rows = data.draw(st.lists(st.integers(0, n - 1), max_size=f))
    for row in bad_rows:
        stack_nd[row] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    expected_d = oracle(stack_nd, f, **parameters)
    for kernels in ("native", "tensorflow"):
        with ops.using(kernels):
            grad_d = GARS[name](stack_nd, f=f, **parameters)
        np.testing.assert_allclose(grad_d, expected_d, 1e-12, err_msg=kernels)


@pytest.mark.parametrize("name", ROBUST)
@settings(max_examples=50)
@given(data=st.data(), f=st.integers(0, 2), seed=st.integers(0, 99))
def test_f_rows_of_anything_leave_the_result_finite(name, data, f, seed):
    n = GARS[name].condition.least_n(f)
    stack_nd = np.random.default_rng(seed).standard_normal((n, 5)).astype(np.float32)
    wild = st.floats(width=32) | st.sampled_from([np.nan, np.inf, -np.inf, 3e38, -3e38])
    stack_nd[:f] = data.draw(arrays(np.float32, (f, 5), elements=wild))
    assert np.isfinite(GARS[name](stack_nd, f=f)).all()


def test_bulyan_with_f_0_gives_ties_to_the_lower_row(each_kernel):
    # Rows 1 and 2 are nearest to each other, so that they tie once row 0 has left.
    for seed in range(50):
        stack_nd = np.random.default_rng(seed).standard_normal((5, 3))
        expected = reference.bulyan(stack_nd, f=0)
        np.testing.assert_allclose(gars.bulyan(stack_nd, f=0), expected, rtol=1e-12)
