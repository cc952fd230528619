"""The rule sees the link's own stack, and what it gives is not part of it."""

import numpy as np
import pytest

from aggregathor.gars import GARS, Aggregated, Context, gar
from aggregathor.gars.base import registered
from aggregathor.protocols import aggregation as aggregator_module
from aggregathor.protocols.aggregation import SAMPLED, Aggregation
from aggregathor.protocols.setting import Setting
from lossympi.link import aligned_zeros


def aggregated(stack_nd, gar, f=0):
    n, d = stack_nd.shape
    aggregation = Aggregation(Setting(num_workers=n, gar=gar, f=f), d)
    return aggregation.aggregate(stack_nd, np.array([], int), Context())


@pytest.mark.parametrize("rule", ["average", "median", "krum"])
def test_any_memory_gives_the_same(rule, rng):
    values_nd = rng.standard_normal((7, 33)).astype(np.float32)
    aligned_nd = aligned_zeros((7, 33))
    aligned_nd[:] = values_nd
    read_only_nd = aligned_nd.copy()
    read_only_nd.setflags(write=False)
    odd_nd = aligned_zeros((7 * 33 + 1,))[1:].reshape(7, 33)
    odd_nd[:] = values_nd
    expected = GARS[rule].aggregate(values_nd, f=0)
    for stack_nd in (aligned_nd, read_only_nd, odd_nd, np.asfortranarray(aligned_nd)):
        got = aggregated(stack_nd, rule)
        np.testing.assert_array_equal(got.grad_d, expected.grad_d)
        np.testing.assert_array_equal(got.usage_n, expected.usage_n)


def test_a_row_that_a_rule_gives_is_copied():
    stack_nd = aligned_zeros((3, 64))
    stack_nd[:] = np.arange(3)[:, None]

    @gar("row-1", condition="n >= 2", cost="", source="", takes_arrays=True)
    def row_1(stack_nd, *, f):
        return Aggregated(stack_nd[1], np.ones(3))

    try:
        got = aggregated(stack_nd, "row-1")
    finally:
        del registered["row-1"]
    stack_nd[:] = 9
    np.testing.assert_array_equal(got.grad_d, np.ones(64))


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "meamed", "phocas"])
def test_of_a_large_model_a_sample_tells_what_a_coordinate_wise_rule_used(rule, rng):
    stack_nd = rng.standard_normal((7, 5 * SAMPLED + 3)).astype(np.float32)
    stack_nd[0] *= 4  # seldom in the middle
    stack_nd[1, : 2 * SAMPLED] = np.nan
    told = aggregated(stack_nd, rule, f=2)
    exact = GARS[rule].aggregate(stack_nd, f=2)
    np.testing.assert_array_equal(told.grad_d, exact.grad_d)
    np.testing.assert_allclose(told.usage_n, exact.usage_n, atol=0.02)


def test_the_sample_is_spread_over_all_coordinates():
    for dim in (SAMPLED + 1, 10 * SAMPLED - 7, 2**31):
        chosen = aggregator_module._sample(dim)
        assert len(chosen) == SAMPLED
        assert (chosen[0], chosen[-1]) == (0, dim - 1)
        assert (np.diff(chosen) >= 0).all() or dim < 2 * SAMPLED
