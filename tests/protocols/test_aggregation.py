"""The rule sees the link's own stack, and what it gives is not part of it."""

import numpy as np
import pytest

from aggregathor.gars import GARS, Explained
from aggregathor.protocols import aggregation as aggregator_module
from aggregathor.protocols.aggregation import SAMPLED, Aggregator
from aggregathor.protocols.setting import Setting
from lossympi.link import aligned_zeros


def explained(stack_nd, gar):
    n, d = stack_nd.shape
    return Aggregator(Setting(num_workers=n, gar=gar), d).explain(stack_nd)


@pytest.mark.parametrize("gar", ["average", "median", "krum"])
def test_any_memory_gives_the_same(gar, rng):
    values_nd = rng.standard_normal((7, 33)).astype(np.float32)
    aligned_nd = aligned_zeros((7, 33))
    aligned_nd[:] = values_nd
    read_only_nd = aligned_nd.copy()
    read_only_nd.setflags(write=False)
    odd_nd = aligned_zeros((7 * 33 + 1,))[1:].reshape(7, 33)
    odd_nd[:] = values_nd
    expected = GARS[gar].explain(values_nd, f=0)
    for stack_nd in (aligned_nd, read_only_nd, odd_nd, np.asfortranarray(aligned_nd)):
        got = explained(stack_nd, gar)
        np.testing.assert_array_equal(got.grad_d, expected.grad_d)
        np.testing.assert_array_equal(got.share_n, expected.share_n)


def test_a_row_that_a_rule_gives_is_copied(monkeypatch):
    stack_nd = aligned_zeros((3, 64))
    stack_nd[:] = np.arange(3)[:, None]

    def first_row(stack_nd, **_):
        return Explained(stack_nd[1], np.ones(3))

    monkeypatch.setattr(
        "aggregathor.protocols.aggregation.gars.GARS",
        {"average": type("Rule", (), {"explain_array": first_row, "coordinate_wise": False})},
    )
    got = explained(stack_nd, "average")
    stack_nd[:] = 9
    np.testing.assert_array_equal(got.grad_d, np.ones(64))


@pytest.mark.parametrize("gar", ["median", "trimmed-mean", "meamed", "phocas"])
def test_of_a_large_model_a_sample_tells_what_a_coordinate_wise_rule_used(gar, rng):
    stack_nd = rng.standard_normal((7, 5 * SAMPLED + 3)).astype(np.float32)
    stack_nd[0] *= 4  # seldom in the middle
    stack_nd[1, : 2 * SAMPLED] = np.nan
    setting = Setting(num_workers=7, gar=gar, f=2)
    told = Aggregator(setting, stack_nd.shape[1]).explain(stack_nd)
    exact = GARS[gar].explain(stack_nd, f=2)
    np.testing.assert_array_equal(told.grad_d, exact.grad_d)
    np.testing.assert_allclose(told.share_n, exact.share_n, atol=0.02)


def test_the_sample_is_spread_over_all_coordinates():
    for dim in (SAMPLED + 1, 10 * SAMPLED - 7, 2**31):
        chosen = aggregator_module._sample(dim)
        assert len(chosen) == SAMPLED
        assert (chosen[0], chosen[-1]) == (0, dim - 1)
        assert (np.diff(chosen) >= 0).all() or dim < 2 * SAMPLED
