"""What may be given as a stack: what it means is heeded, or it is refused by name."""

import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf

from aggregathor import gars
from aggregathor.errors import UserError
from aggregathor.gars import GARS, PRE_AGGREGATIONS
from tests.gars.cases import ALONE

N, F, D = 11, 2, 6
FLOATS = ("float16", "bfloat16", "float32", "float64")


def kind_of(dtype):
    return tf.as_dtype(dtype).as_numpy_dtype


@pytest.fixture(params=["call", "aggregate", "composition"])
def calls(request):
    """Gives a stack to a rule in one of the ways that there are."""

    def of(grad_d):
        return np.asarray(grad_d).astype(np.float64)  # bfloat16's NaN equals none

    def call(name, stack_nd):
        rule = GARS[name]
        given = {"f": F} if rule.robust else {}
        if request.param == "aggregate":
            return of(rule.aggregate(stack_nd, **given).grad_d)
        if request.param == "composition":
            return of(gars.compose(f"bucketing(s=1)+{name}")(stack_nd, f=F * rule.robust))
        return of(rule(stack_nd, **given))

    return call


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ALONE)
def test_what_is_masked_is_missing(name, dtype, calls, rng):
    values_nd = rng.standard_normal((N, D)).astype(kind_of(dtype))
    masked = rng.random((N, D)) < 0.15
    masked[:, 0] = np.arange(N) < F  # an outlier that the mask hides
    values_nd[:F, 0] = 1e4
    missing_nd = np.where(masked, np.array(np.nan, kind_of(dtype)), values_nd)
    before = values_nd.tobytes()
    stack_nd = np.ma.masked_array(values_nd, masked)
    expected_d = calls(name, missing_nd)
    for given in (stack_nd, list(stack_nd), tuple(stack_nd)):
        np.testing.assert_array_equal(calls(name, given), expected_d)
    assert values_nd.tobytes() == before  # the array below the mask is its owner's
    plain_nd = np.ma.masked_array(values_nd)  # nothing is masked
    np.testing.assert_array_equal(calls(name, plain_nd), calls(name, values_nd))


def test_a_mask_counts_on_arrays_as_on_tensors(rng):
    stack_nd = np.ma.masked_array(rng.standard_normal((N, D)).astype(np.float32))
    stack_nd[3] = np.ma.masked
    usage_n = GARS["multi-krum"].aggregate(stack_nd, f=F).usage_n
    assert usage_n[3] == 0
    rows_md, _ = PRE_AGGREGATIONS["nnm"](stack_nd, f=F)
    assert np.isfinite(rows_md[:3]).all()


def test_masked_rows_that_differ_in_length_are_refused():
    with pytest.raises(UserError, match=r"median takes gradients stacked as \[n, d\]"):
        gars.median([np.ma.masked_array([1.0, 2.0]), np.ma.masked_array([1.0])] * 3, f=1)


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f4", ">f2"])
def test_any_byte_order(dtype, calls, rng):
    stack_nd = rng.standard_normal((N, D)).astype(np.dtype(dtype))
    native_nd = stack_nd.astype(np.dtype(dtype).newbyteorder("="))
    for given in (stack_nd, np.ma.masked_array(stack_nd)):
        np.testing.assert_array_equal(calls("median", given), calls("median", native_nd))


def test_other_classes_of_arrays_are_their_values(calls, rng):
    stack_nd = rng.standard_normal((N, D)).astype(np.float32)
    expected_d = calls("krum", stack_nd)

    class HasArray:  # as a DataFrame has
        def __array__(self, dtype=None, copy=None):
            return stack_nd

    slices = tf.IndexedSlices(tf.constant(stack_nd), tf.range(N), tf.constant([N, D]))
    for given in (stack_nd.view(np.matrix), HasArray(), tf.Variable(stack_nd), slices):
        np.testing.assert_array_equal(np.ravel(calls("krum", given)), expected_d)
    for given in (list(stack_nd), [tf.constant(row) for row in stack_nd], stack_nd.tolist()):
        np.testing.assert_array_equal(calls("krum", given), expected_d)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (tf.sparse.from_dense(tf.eye(N, D)), r"got a SparseTensor: tf\.sparse\.to_dense"),
        (tf.ragged.constant([[1.0, 2.0], [1.0]] * 6), r"got a RaggedTensor: stack_nd\.to_tensor"),
        (scipy.sparse.csr_matrix(np.eye(N, D)), r"got a csr_matrix: stack_nd\.toarray"),
        (scipy.sparse.coo_array(np.eye(N, D)), r"got a coo_array: stack_nd\.toarray"),
    ],
)
def test_what_is_not_dense_is_refused(given, message, calls):
    with pytest.raises(UserError, match=f"median takes dense gradients, {message}"):
        calls("median", given)


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [
        *[(dtype, r"\.astype\('float32'\)") for dtype in ("int64", "uint8", "bool", "longdouble")],
        ("str", r"\.astype\('float32'\)"),
        ("complex64", "real and imaginary parts as coordinates"),
        ("object", "makes NaN, which is missing, of None"),
    ],
)
def test_other_dtypes_are_refused(dtype, remedy, calls):
    stack_nd = np.ones((N, D)).astype(dtype)
    for given in (stack_nd, np.ma.masked_array(stack_nd, stack_nd == stack_nd)):
        with pytest.raises(
            TypeError, match=f"takes float32, float64, .*; got a stack of .*{remedy}"
        ):
            calls("median", given)


def test_none_is_missing_as_the_message_says(calls):
    rows = [[1.0, None], *[[3.0, 5.0]] * (N - 1)]
    with pytest.raises(TypeError, match=r"np\.array\(rows, dtype='float32'\)"):
        calls("median", np.array(rows, object))
    np.testing.assert_array_equal(calls("median", np.array(rows, dtype="float32")), [3.0, 5.0])
