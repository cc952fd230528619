"""Brute is exact, and quick where listing the subsets would take for ever."""

import time

import numpy as np
import pytest

from aggregathor import gars, ops
from tests import reference


def random_sq_distances(rng):
    """Of points, or of no points at all: the search must not rely on the triangle inequality."""
    n = int(rng.integers(2, 11))
    kind = rng.choice(["points", "tied points", "any numbers", "few numbers"])
    if kind.endswith("points"):
        d = int(rng.integers(1, 4))
        stack_nd = rng.standard_normal((n, d)) if kind == "points" else rng.integers(0, 3, (n, d))
        return reference.sq_distances(stack_nd)
    numbers = rng.random((n, n)) if kind == "any numbers" else rng.integers(0, 4, (n, n))
    upper = np.triu(numbers.astype(np.float64), 1)
    return upper + upper.T


@pytest.mark.parametrize("seed", range(10))
def test_subset_is_the_first_of_least_diameter(seed, each_kernel):
    rng = np.random.default_rng(seed)
    for _ in range(30):
        sq_dist_nn = random_sq_distances(rng)
        n = len(sq_dist_nn)
        f = int(rng.integers(0, n))
        rows = ops.kernels().brute_select(sq_dist_nn, f=f)
        np.testing.assert_array_equal(rows, reference.brute_subset(sq_dist_nn, f), f"n={n} f={f}")


def test_infinite_distances_are_dropped(rng, each_kernel):
    for _ in range(20):
        stack_nd = rng.standard_normal((9, 2))
        stack_nd[rng.choice(9, 2, replace=False)] = np.inf
        sq_dist_nn = reference.sq_distances(stack_nd)
        rows = ops.kernels().brute_select(sq_dist_nn, f=3)
        np.testing.assert_array_equal(rows, reference.brute_subset(sq_dist_nn, 3))


@pytest.mark.parametrize("f", [10, 16])
@pytest.mark.parametrize("d", [1, 10, 1000])
def test_a_hundred_rows_take_a_moment(d, f, rng):
    stack_nd = rng.standard_normal((100, d))  # no outliers: the hardest to decide
    start = time.perf_counter()
    gars.brute(stack_nd, f=f)
    assert time.perf_counter() - start < 1  # 17 310 309 456 440 subsets at f = 10


def test_close_honest_rows_beat_spread_ones_at_the_largest_f(rng):
    honest = 1 + 0.01 * rng.standard_normal((51, 20))
    stack_nd = np.vstack([honest, 100 * rng.standard_normal((49, 20))])
    np.testing.assert_allclose(gars.brute(stack_nd, f=49), honest.mean(axis=0), 1e-12)


@pytest.mark.parametrize("degree", [3, 4, 6])
def test_colluders_that_choose_who_is_far_from_whom_cost_little(degree, rng):
    """f rows beside which any row may be far, and honest ones that a threshold just parts."""
    f = 24
    n = 2 * f + 1
    if not ops.has_arrays():
        pytest.skip("the stand-in takes much longer for anything")
    kernels = ops.kernels_for(np.zeros((n, 4), np.float32))
    for num_parted in (1, 4):
        far_nn = rng.random((n, n)) < degree / f
        far_nn[f:, f:] = False
        for pair in range(num_parted):  # so that f rows are not enough to drop
            far_nn[f + 2 * pair, f + 2 * pair + 1] = True
        sq_dist_nn = np.triu(np.where(far_nn, 2 + rng.random((n, n)), 1 + rng.random((n, n))), 1)
        begun = time.process_time()
        rows = kernels.brute_select(sq_dist_nn + sq_dist_nn.T, f=f)
        assert time.process_time() - begun < 2
        assert len(np.asarray(rows)) == n - f
