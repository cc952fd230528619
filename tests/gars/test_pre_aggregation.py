"""Pre-aggregations: against oracles, with lost and hostile rows, on arrays and tensors."""

import numpy as np
import pytest
import tensorflow as tf

from aggregathor import gars
from aggregathor.errors import UserError
from aggregathor.gars import PRE_AGGREGATIONS, ConditionError, Context
from tests import reference

N, F, D = 9, 2, 65
PARAMETERS = {"nnm": {}, "bucketing": {"s": 2}}


@pytest.fixture
def stack_nd(rng):
    return rng.standard_normal((N, D)).astype(np.float32)


@pytest.fixture(params=["array", "tensor"])
def given(request):
    """Gives a stack as the kind of thing that the rules work on."""
    return np.asarray if request.param == "array" else tf.constant


def context_of(seed):
    return Context(rng=lambda purpose: np.random.default_rng(seed))


def test_all_are_tried_here():
    assert set(PARAMETERS) == set(PRE_AGGREGATIONS)


@pytest.mark.parametrize("lost", [0.0, 0.2])
def test_nnm_is_the_oracles(lost, stack_nd, given, each_kernel, rng):
    stack_nd[rng.random(stack_nd.shape) < lost] = np.nan
    rows_md, weight_mn = PRE_AGGREGATIONS["nnm"](given(stack_nd), f=F)
    expected_nd, groups = reference.nnm(stack_nd.astype(np.float64), F)
    np.testing.assert_allclose(rows_md, expected_nd, rtol=1e-5, atol=1e-6)
    for weight_n, group in zip(np.asarray(weight_mn), groups, strict=True):
        np.testing.assert_allclose(weight_n, np.isin(np.arange(N), group) / (N - F))


@pytest.mark.parametrize("s", [1, 2, 3, 4, 9, 20])
def test_buckets_are_means_of_a_permutation(s, stack_nd, given, each_kernel):
    rows_md, weight_mn = PRE_AGGREGATIONS["bucketing"](
        given(stack_nd), f=F, context=context_of(5), s=s
    )
    order = np.random.default_rng(5).permutation(N)
    expected = [stack_nd[order[i : i + s]].astype(np.float64).mean(0) for i in range(0, N, s)]
    assert len(rows_md) == -(-N // s) == len(expected)
    np.testing.assert_allclose(rows_md, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.asarray(weight_mn) @ stack_nd, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.sum(weight_mn, axis=1), 1)


def test_each_round_has_buckets_of_its_own(stack_nd):
    first, again, other = (
        gars.bucketing(stack_nd, f=1, context=context_of(seed)).rows_md for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_by_itself_it_is_the_same_each_time(stack_nd):
    first, again = (gars.bucketing(stack_nd, f=1).rows_md for _ in range(2))
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("name", PARAMETERS)
def test_what_all_rows_of_a_group_lack_stays_missing(name, stack_nd, given, each_kernel):
    stack_nd[:, 7] = np.nan
    rows_md = np.asarray(PRE_AGGREGATIONS[name](given(stack_nd), f=F, **PARAMETERS[name]).rows_md)
    assert np.isnan(rows_md[:, 7]).all()
    assert np.isfinite(np.delete(rows_md, 7, axis=1)).all()


@pytest.mark.parametrize("poison", [0.0, 1e30, -1e30, np.inf, -np.inf, np.nan, 1e-42])
@pytest.mark.parametrize("name", PARAMETERS)
def test_f_bad_rows_spoil_no_more_than_f(name, poison, rng, given, each_kernel):
    stack_nd = (1 + 0.01 * rng.standard_normal((N, D))).astype(np.float32)
    stack_nd[[0, 5]] = poison
    rows_md = np.asarray(PRE_AGGREGATIONS[name](given(stack_nd), f=F, **PARAMETERS[name]).rows_md)
    near_m = np.abs(np.nan_to_num(rows_md, nan=1e9) - 1).max(axis=1) < 0.1
    assert np.count_nonzero(~near_m) <= F


def test_ties_go_to_the_lower_row():
    stack_nd = np.zeros((5, 3), np.float32)
    stack_nd[4] = 1
    np.testing.assert_array_equal(gars.nnm(stack_nd, f=1).weight_mn[0], [0.25] * 4 + [0])
    # The last row is nearest to itself, then all others are as far: the lower ones are taken.
    np.testing.assert_array_equal(gars.nnm(stack_nd, f=1).weight_mn[4], [0.25] * 3 + [0, 0.25])


def test_the_order_of_rows_does_not_matter_to_nnm(stack_nd, rng):
    order = rng.permutation(N)
    ordered = gars.nnm(stack_nd[order], f=F).rows_md
    np.testing.assert_array_equal(ordered, gars.nnm(stack_nd, f=F).rows_md[order])


def test_too_many_lost_rows_are_an_error(stack_nd, given, each_kernel):
    stack_nd[:F] = np.nan
    PRE_AGGREGATIONS["nnm"](given(stack_nd), f=F)
    stack_nd[: F + 1] = np.nan
    with pytest.raises(tf.errors.InvalidArgumentError, match="nnm: more than f"):
        PRE_AGGREGATIONS["nnm"](given(stack_nd), f=F)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_stack_stays_as_it_is(name, stack_nd):
    before = stack_nd.tobytes()
    PRE_AGGREGATIONS[name](stack_nd, f=F, **PARAMETERS[name])
    assert stack_nd.tobytes() == before


@pytest.mark.parametrize(
    ("name", "n", "parameters", "message"),
    [
        ("nnm", 4, {}, r"nnm needs n >= 2f \+ 1 gradients; f=2 needs 5, got 4"),
        ("bucketing", 0, {}, "bucketing needs n >= 1"),
        ("bucketing", 5, {"s": 0}, r"bucketing needs a whole s >= 1, .* got s=0"),
        ("bucketing", 5, {"s": 1.5}, "got s=1.5"),
        ("bucketing", 5, {"s": True}, "got s=True"),
        ("bucketing", 5, {"size": 2}, "bucketing has no parameter 'size'"),
        ("nnm", 5, {"s": 2}, "nnm has no parameter 's': it has none"),
    ],
)
def test_what_cannot_be_is_refused(name, n, parameters, message):
    kind = ConditionError if "needs n" in message else UserError
    with pytest.raises(kind, match=message):
        PRE_AGGREGATIONS[name](np.ones((n, 2), np.float32), f=2, **parameters)


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("section", ["Args:", "Returns:", "Raises:", "Cost:", "Source:"])
def test_sections(name, section):
    assert section in PRE_AGGREGATIONS[name].function.__doc__
