"""Many rows: what selects them costs what the table says, and gives what the definition gives."""

import time

import numpy as np
import pytest
import tensorflow as tf

from aggregathor import gars, ops
from aggregathor.gars import GARS
from tests import reference

VARIANTS = ("aggregathor", "paper")


@pytest.mark.parametrize("variant", VARIANTS)
def test_bulyan_of_two_thousand_rows(variant):
    """As O(n^2 log n) after the distances, a second or two; n^3 took minutes, and usage 4 GB."""
    stack_nd = np.random.default_rng(0).standard_normal((2000, 16)).astype(np.float32)
    seconds = []
    for rows_nd in (stack_nd[:250], stack_nd):
        begin = time.process_time()  # of all threads, whoever else is busy
        aggregated = GARS["bulyan"].aggregate(
            tf.constant(rows_nd), f=len(rows_nd) // 5, variant=variant
        )
        seconds.append(time.process_time() - begin)
        assert np.isfinite(aggregated.grad_d).all()
        assert 0 < np.sum(aggregated.usage_n) <= len(rows_nd)
    # 64 times by n^2, 88 by n^2 log n, 512 by n^3; the smaller call has a fixed cost besides.
    assert seconds[1] < 200 * max(seconds[0], 0.05), seconds


@pytest.mark.parametrize(("n", "f"), [(150, 30), (150, 0), (43, 10)])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["normal", "of all sizes", "ties", "some infinite"])
def test_bulyan_selects_as_its_definition(kind, variant, n, f):
    rng = np.random.default_rng(n + f)
    if kind == "ties":
        points_nd = rng.integers(0, 4, (n, 2)).astype(np.float64)
    else:
        points_nd = rng.standard_normal((n, 3))
    if kind == "of all sizes":  # what has left must not leave its rounding behind
        points_nd *= 10.0 ** rng.integers(-30, 30, (n, 1))
    sq_dist_nn = reference.sq_distances(points_nd)
    if kind == "some infinite":
        lost = rng.choice(n, f // 2, replace=False)
        sq_dist_nn[lost] = sq_dist_nn[:, lost] = np.inf
        np.fill_diagonal(sq_dist_nn, 0)
    of = {"aggregathor": reference.bulyan_groups, "paper": reference.bulyan_groups_of_paper}
    expected = of[variant](sq_dist_nn, f)
    groups = ops.kernels().bulyan_select(tf.constant(sq_dist_nn), f=f, variant=variant).numpy()
    assert len(groups) == len(expected)
    for group, rows in zip(groups, expected, strict=True):
        np.testing.assert_array_equal(group[group >= 0], rows)


def test_usage_takes_no_more_memory_than_the_rows():
    rows = np.arange(3_000_000) % 1000 - 1  # some of them -1, which names none
    usage_n = gars.distances.usage_of(np.zeros((2000, 1)), rows)
    np.testing.assert_array_equal(usage_n, np.arange(2000) < 999)
    of_tensors = gars.distances.usage_of(tf.zeros([2000, 1]), tf.constant(rows))
    np.testing.assert_array_equal(of_tensors, usage_n)  # a table of both would be 6 GB
