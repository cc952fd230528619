"""Whom the result was made of."""

import subprocess

import numpy as np
import pytest
import tensorflow as tf

from aggregathor.gars import GARS
from tests.gars.cases import ALONE, ROBUST
from tests.warm.start import python as warm_python

N, F, D = 11, 2, 65
HOSTILE = [3, 8]
# Honest rows have about the share that is kept of all, hostile ones less.
MOST_OF_HOSTILE = {
    **dict.fromkeys(["krum", "multi-krum", "bulyan", "brute"], 0.0),
    **dict.fromkeys(["median", "trimmed-mean", "meamed", "phocas"], 0.0),
    "geometric-median": 1e-6,
}


@pytest.fixture
def stack_nd(rng):
    stack_nd = 1 + 0.01 * rng.standard_normal((N, D))
    stack_nd[HOSTILE] = 1e6
    return stack_nd


@pytest.mark.parametrize("name", ALONE)
def test_usage_comes_with_the_aggregate(name, stack_nd, each_kernel):
    aggregated = GARS[name].aggregate(tf.constant(stack_nd), f=F)
    np.testing.assert_array_equal(aggregated.grad_d, GARS[name](stack_nd, f=F))
    assert aggregated.usage_n.shape == (N,)
    assert aggregated.usage_n.dtype == "float64"
    assert np.all((aggregated.usage_n >= 0) & (aggregated.usage_n <= 1))


@pytest.mark.parametrize("name", ROBUST)
def test_hostile_rows_have_no_share(name, stack_nd, each_kernel):
    usage_n = GARS[name].aggregate(tf.constant(stack_nd), f=F).usage_n.numpy()
    assert usage_n[HOSTILE].max() <= MOST_OF_HOSTILE[name]
    assert np.delete(usage_n, HOSTILE).max() > 0


@pytest.mark.parametrize("name", ["average", "average-nan"])
def test_a_mean_uses_all(name, stack_nd, each_kernel):
    np.testing.assert_array_equal(GARS[name].aggregate(tf.constant(stack_nd)).usage_n, np.ones(N))


@pytest.mark.parametrize(
    ("name", "parameters", "chosen"),
    [
        ("krum", {}, 1),
        ("multi-krum", {}, N - F - 2),
        ("multi-krum", {"m": 3}, 3),
        ("brute", {}, N - F),
        ("bulyan", {"variant": "paper"}, N - 2 * F),
    ],
)
def test_selecting_rules_name_their_rows(name, parameters, chosen, stack_nd, each_kernel):
    usage_n = GARS[name].aggregate(tf.constant(stack_nd), f=F, **parameters).usage_n.numpy()
    assert np.isin(usage_n, (0.0, 1.0)).all()
    assert usage_n.sum() == chosen


@pytest.mark.parametrize("name", ["krum", "multi-krum", "brute"])
def test_shares_make_the_result(name, stack_nd, each_kernel):
    aggregated = GARS[name].aggregate(tf.constant(stack_nd), f=F)
    np.testing.assert_allclose(
        np.average(stack_nd, axis=0, weights=aggregated.usage_n), aggregated.grad_d, 1e-13
    )


@pytest.mark.parametrize(
    ("name", "kept"),
    [("median", 1), ("trimmed-mean", N - 2 * F), ("meamed", N - F), ("phocas", N - F)],
)
def test_shares_of_coordinates_add_up(name, kept, rng, each_kernel):
    stack_nd = rng.standard_normal((N, D))
    usage_n = GARS[name].aggregate(tf.constant(stack_nd), f=F).usage_n.numpy()
    np.testing.assert_allclose(usage_n.sum(), kept)


@pytest.mark.parametrize("name", ["median", "trimmed-mean", "meamed", "phocas"])
def test_share_of_a_row_that_is_half_lost(name, rng, each_kernel):
    stack_nd = rng.standard_normal((N, D))
    stack_nd[4, 20:] = np.nan
    assert GARS[name].aggregate(tf.constant(stack_nd), f=F).usage_n[4] <= 20 / D


def test_share_of_the_geometric_median_is_relative_weight(rng, each_kernel):
    stack_nd = rng.standard_normal((N, D))
    aggregated = GARS["geometric-median"].aggregate(tf.constant(stack_nd), f=F)
    distance_n = np.linalg.norm(stack_nd - aggregated.grad_d, axis=1)
    np.testing.assert_allclose(aggregated.usage_n, distance_n.min() / distance_n, 1e-5)


def test_aggregates_in_a_script_that_has_switched_off_v2_behaviour():
    """Where == compares identities and the entries of a shape are no numbers; by both kernels."""
    script = """
import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context
from aggregathor import ops
from aggregathor.gars import GARS

stack_nd = np.eye(7, 5, dtype=np.float32)
alone = {name: gar for name, gar in GARS.items() if not gar.needs_validation}
before = {name: gar.aggregate(tf.constant(stack_nd), f=1) for name, gar in alone.items()}
tf.compat.v1.disable_v2_behavior()
for kernels in ("native", "tensorflow"):
    with ops.using(kernels), context.eager_mode():
        for name, gar in alone.items():
            aggregated = gar.aggregate(tf.constant(stack_nd), f=1)
            for got, expected in zip(aggregated, before[name]):
                np.testing.assert_allclose(got.numpy(), expected.numpy(), rtol=1e-6, err_msg=name)
"""
    subprocess.run([*warm_python(), "-c", script], check=True)
