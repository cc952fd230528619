"""Rules on arrays, without TensorFlow: what tensors give, and the same refusals."""

import threading

import numpy as np
import pytest
import tensorflow as tf

from aggregathor import ops
from aggregathor.errors import UserError
from aggregathor.gars import GARS
from aggregathor.gars.base import Aggregated, ConditionError, gar, registered
from lossympi.link import aligned_zeros
from tests.gars.cases import ALONE, CASES, ROBUST, stack_of

N, F = 11, 2


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["complete", "missing", "infinite", "ties"])
@pytest.mark.parametrize("d", [1, 64, 5_003, 200_003])
def test_arrays_give_what_tensors_give(case, kind, d, rng, each_kernel):
    name, parameters, _ = CASES[case]
    stack_nd = stack_of(kind, N, F, d, "float32", rng)
    expected = GARS[name].aggregate(tf.constant(stack_nd), f=F, **parameters)
    got = GARS[name].aggregate(stack_nd, f=F, **parameters)
    for mine, its in zip(got, expected, strict=True):
        assert isinstance(mine, np.ndarray)
        assert mine.dtype == its.dtype.as_numpy_dtype
        np.testing.assert_array_equal(mine, its)


@pytest.mark.parametrize("name", ALONE)
def test_any_layout_and_dtype(name, rng):
    stack_nd = rng.standard_normal((N, 130)).astype(np.float32)
    read_only_nd = stack_nd.copy()
    read_only_nd.setflags(write=False)
    expected = GARS[name].aggregate(stack_nd, f=F)
    wide_nd = np.zeros((N, 260), np.float32)
    wide_nd[:, ::2] = stack_nd
    for same_nd in (read_only_nd, np.asfortranarray(stack_nd), wide_nd[:, ::2]):
        np.testing.assert_array_equal(GARS[name].aggregate(same_nd, f=F).grad_d, expected.grad_d)
    in_double = GARS[name].aggregate(stack_nd.astype(np.float64), f=F)
    assert in_double.grad_d.dtype == np.float64
    np.testing.assert_allclose(in_double.grad_d, expected.grad_d, 1e-4, 1e-5)


@pytest.mark.parametrize("name", ROBUST)
def test_the_condition_is_checked(name):
    with pytest.raises(ConditionError, match=f"{name} needs n >= "):
        GARS[name].aggregate(np.ones((4, 5), np.float32), f=3)


@pytest.mark.parametrize("name", ["krum", "multi-krum", "bulyan", "brute"])
def test_too_few_rows_that_can_be_compared(name, each_kernel):
    stack_nd = np.full((N, 5), np.nan, np.float32)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{name}: more than f=2") as arrays:
        GARS[name].aggregate(stack_nd, f=F)
    with pytest.raises(tf.errors.InvalidArgumentError) as tensors:
        GARS[name].aggregate(tf.constant(stack_nd), f=F)
    assert arrays.value.message in tensors.value.message


def test_a_rule_of_tensors_serves_arrays_too_and_without_a_copy(rng):
    given = []

    @gar("of-tensors", condition="n >= 1", cost="O(nd)", source="this test")
    def of_tensors(stack_nd, *, f):
        assert tf.is_tensor(stack_nd)
        given.append(stack_nd)
        return Aggregated(tf.reduce_max(stack_nd, axis=0), tf.ones(stack_nd.shape[0], tf.float64))

    try:
        stack_nd = aligned_zeros((3, 7))
        stack_nd[:] = rng.standard_normal((3, 7))
        got = registered["of-tensors"].aggregate(stack_nd, f=0)
    finally:
        del registered["of-tensors"]
    np.testing.assert_array_equal(got.grad_d, stack_nd.max(axis=0))
    assert isinstance(got.usage_n, np.ndarray)
    assert np.shares_memory(np.asarray(given[0]), stack_nd)


@pytest.mark.parametrize("shape", [(5,), (5, 0), (1, 5, 2)])
def test_what_is_no_stack_is_refused_in_words(shape, each_kernel):
    with pytest.raises(UserError, match="median takes gradients"):
        GARS["median"].aggregate(np.ones(shape, np.float32), f=1)


@pytest.mark.parametrize(
    "case", [case for case, (name, _, _) in CASES.items() if GARS[name].by_columns()]
)
@pytest.mark.parametrize("kind", ["complete", "missing", "infinite", "ties"])
def test_columns_by_themselves_are_what_they_are_together(case, kind, rng):
    name, parameters, _ = CASES[case]
    d = 30_011
    stack_nd = stack_of(kind, N, F, d, "float32", rng)
    expected_d = GARS[name].aggregate(stack_nd, f=F, **parameters).grad_d
    cuts = np.concatenate([[0, 0, 1, 352, 20_000], np.sort(rng.integers(353, d, 37)), [d]])
    ranges_k2 = np.stack([np.sort(cuts)[:-1], np.sort(cuts)[1:]], axis=1)
    grad_d = np.full(d, np.nan, np.float32)
    for some in (ranges_k2[::2], ranges_k2[:0]):
        GARS[name].aggregate_columns(stack_nd, some.copy(), grad_d, f=F, **parameters)
    chosen_d = np.zeros(d, bool)
    for begin, end in ranges_k2[::2]:
        chosen_d[begin:end] = True
    np.testing.assert_array_equal(grad_d[chosen_d], expected_d[chosen_d])
    assert np.isnan(grad_d[~chosen_d]).all()
    GARS[name].aggregate_columns(stack_nd, ranges_k2[1::2].copy(), grad_d, f=F, **parameters)
    np.testing.assert_array_equal(grad_d.view(np.uint32), expected_d.view(np.uint32))


def test_which_rules_go_by_columns():
    able = {name for name, rule in GARS.items() if rule.by_columns()}
    wanted = {"average", "average-nan", "median", "trimmed-mean", "meamed", "phocas"}
    assert able == (wanted if ops.has_arrays() else set())
    with pytest.raises(ConditionError, match="median needs n >= "):
        GARS["median"].aggregate_columns(
            np.ones((4, 5), np.float32), np.zeros((0, 2), np.int64), np.ones(5, np.float32), f=3
        )


def test_several_threads_at_once(rng):
    assert ops.has_arrays()
    stacks = [rng.standard_normal((N, 50_000)).astype(np.float32) for _ in range(4)]
    expected = [GARS["multi-krum"].aggregate(stack_nd, f=F).grad_d for stack_nd in stacks]
    wrong = []

    def work(which):
        for _ in range(50):
            got = GARS["multi-krum"].aggregate(stacks[which], f=F).grad_d
            if not np.array_equal(got, expected[which]):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert not wrong
