"""The native kernels on arrays instead of tensors: what `native.py` has, without TensorFlow.

An operation of TensorFlow that is run by itself takes 0.1 ms and more, and a rule has several: more
than the rule itself takes on a small model. Stacks are float32, contiguous, and not empty.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from aggregathor.ops.errors import too_few

_library: Any = None
_CHUNK = 8192  # of a vector, of which a sum is made: kChunk of `kernels/vectors.cc`


class Columns(NamedTuple):
    """Some columns of a stack, which `mean` and `window_mean` take in its place.

    Attributes:
      stack_nd: all of it.
      ranges_k2: int64 [k, 2], which columns: [begin, end).
      grad_d: float32 [d], where their aggregate goes; the rest of it stays.
    """

    stack_nd: np.ndarray
    ranges_k2: np.ndarray
    grad_d: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the stack."""
        return self.stack_nd.shape


def load(library: ctypes.CDLL) -> None:
    """Takes the library that the ops are in."""
    global _library
    _library = library
    for name in ("krum_select", "brute_select", "bulyan_select"):
        _function(name).restype = ctypes.c_int64


def mean(stack_nd: np.ndarray | Columns, *, skip_missing: bool) -> np.ndarray:
    """Mean of the rows, or of the present values of each coordinate."""
    columns, grad_d = _columns(stack_nd)
    _function("mean")(*columns, int(skip_missing), _pointer(grad_d))
    return grad_d


def window_mean(
    stack_nd: np.ndarray | Columns, *, window: str, f: int, with_share: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of a window of each coordinate's sorted values, and each row's share in it.

    Columns have no share.
    """
    columns, grad_d = _columns(stack_nd)
    assert not (with_share and isinstance(stack_nd, Columns))
    kept_n = np.zeros(stack_nd.shape[0] if with_share else 0, np.int64)
    known = _function("window_mean")(
        *columns,
        window.encode(),
        ctypes.c_int64(f),
        _pointer(grad_d),
        _pointer(kept_n) if with_share else None,
    )
    assert known, window
    return grad_d, kept_n / stack_nd.shape[1]


def sq_distances(stack_nd: np.ndarray) -> np.ndarray:
    """Squared distances between the rows."""
    sq_dist_nn = np.empty((len(stack_nd),) * 2)
    _function("sq_distances")(*_stack(stack_nd), _pointer(sq_dist_nn))
    return sq_dist_nn


def krum_select(sq_dist_nn: np.ndarray, *, f: int, m: int, rule: str) -> np.ndarray:
    """The m rows of least Krum score; errors name the rule."""
    rows_m = np.empty(m, np.int64)
    found = _function("krum_select")(
        *_distances(sq_dist_nn, f), ctypes.c_int64(m), _pointer(rows_m)
    )
    return _enough(rows_m, found, rule, sq_dist_nn, f)


def brute_select(sq_dist_nn: np.ndarray, *, f: int) -> np.ndarray:
    """The n - f rows of least diameter."""
    rows_m = np.empty(len(sq_dist_nn) - f, np.int64)
    found = _function("brute_select")(*_distances(sq_dist_nn, f), _pointer(rows_m))
    return _enough(rows_m, found, "brute", sq_dist_nn, f)


def bulyan_select(sq_dist_nn: np.ndarray, *, f: int, variant: str) -> np.ndarray:
    """The rows that make up each of Bulyan's candidates."""
    n, is_paper = len(sq_dist_nn), variant == "paper"
    theta, m = (n - 2 * f, 1) if is_paper else (n - 2 * f - 2, n - f - 2)
    groups_tm = np.full((theta, m), -1, np.int64)
    found = _function("bulyan_select")(
        *_distances(sq_dist_nn, f), int(is_paper), ctypes.c_int64(m), _pointer(groups_tm)
    )
    return _enough(groups_tm, found, "bulyan", sq_dist_nn, f)


def mean_of_rows(stack_nd: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Mean of the present values of the given rows."""
    grad_d = _like_a_row(stack_nd)
    _function("mean_of_rows")(
        *_stack(stack_nd), _pointer(rows), ctypes.c_int64(len(rows)), _pointer(grad_d)
    )
    return grad_d


def bulyan_tail(stack_nd: np.ndarray, groups: np.ndarray, *, f: int) -> np.ndarray:
    """Bulyan's second half: mean of the candidates nearest to their upper median."""
    grad_d = _like_a_row(stack_nd)
    theta, m = map(ctypes.c_int64, groups.shape)
    _function("bulyan_tail")(
        *_stack(stack_nd), _pointer(groups), theta, m, ctypes.c_int64(f), _pointer(grad_d)
    )
    return grad_d


def geometric_median(
    stack_nd: np.ndarray, *, f: int, nu: float, tol: float, max_iter: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weiszfeld's iteration, and the weight of each row in its last mean."""
    grad_d, weight_n = _like_a_row(stack_nd), np.empty(len(stack_nd))
    _function("geometric_median")(
        *_stack(stack_nd),
        ctypes.c_int64(f),
        ctypes.c_float(nu),
        ctypes.c_float(tol),
        ctypes.c_int64(max_iter),
        _pointer(grad_d),
        _pointer(weight_n),
    )
    return grad_d, weight_n


def project(stack_nd: np.ndarray, table_bm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inner products of each row with m directions, in blocks of b columns, and squared norms.

    m is a multiple of 4. Float64 [n, c, m] and [n, c], for c blocks.
    """
    n, d = stack_nd.shape
    b, m = table_bm.shape
    assert m % 4 == 0
    assert b > 0
    table_mb = np.ascontiguousarray(table_bm.T, np.float64)
    out_ncm = np.empty((n, -(-d // b), m))
    sq_norm_nc = np.empty(out_ncm.shape[:2])
    _function("project")(
        *_stack(stack_nd),
        _pointer(table_mb),
        *(ctypes.c_int64(b), ctypes.c_int64(m)),
        *(_pointer(out_ncm), _pointer(sq_norm_nc)),
    )
    return out_ncm, sq_norm_nc


def weighted_sum(
    rows: Sequence[np.ndarray], weights: np.ndarray, ranges_k2: np.ndarray, out_d: np.ndarray
) -> None:
    """Writes the sum of rows [d], each times its weight, into some columns of ``out_d``.

    In float64, in that order, rounded once. Rows may lie anywhere.
    """
    assert weights.dtype == np.float64
    assert ranges_k2.dtype == np.int64
    assert all(array.flags.c_contiguous for array in (weights, ranges_k2, out_d, *rows))
    assert all(row_d.dtype == np.float32 and row_d.shape == out_d.shape for row_d in (*rows, out_d))
    assert len(rows) == len(weights)
    assert not ranges_k2.size or 0 <= ranges_k2.min() <= ranges_k2.max() <= len(out_d)
    pointers = (ctypes.c_void_p * len(rows))(*(row_d.ctypes.data for row_d in rows))
    _function("weighted_sum")(
        pointers,
        _pointer(weights),
        ctypes.c_int64(len(rows)),
        _pointer(ranges_k2),
        ctypes.c_int64(len(ranges_k2)),
        _pointer(out_d),
    )


def squares(a_d: np.ndarray, copy_d: np.ndarray | None) -> float:
    """See ``Vectors`` of `protocols/vectors.py`: this and the next are its functions."""
    aa_c = _chunks(a_d)
    copy = None if copy_d is None else _vector(copy_d, len(a_d))
    d = ctypes.c_int64(len(a_d))
    _function("products")(_vector(a_d, len(a_d)), None, d, copy, _pointer(aa_c), None)
    return _added(aa_c)


def products(a_d: np.ndarray, b_d: np.ndarray) -> tuple[float, float]:
    """<a, a> and <a, b>."""
    aa_c, ab_c = _chunks(a_d), _chunks(a_d)
    vectors = _vector(a_d, len(a_d)), _vector(b_d, len(a_d))
    d = ctypes.c_int64(len(a_d))
    _function("products")(*vectors, d, None, _pointer(aa_c), _pointer(ab_c))
    return _added(aa_c), _added(ab_c)


def sq_distance(a_d: np.ndarray, b_d: np.ndarray, copy_d: np.ndarray | None) -> float:
    """Squared norm of a - b; copies a, if wanted."""
    sum_c = _chunks(a_d)
    vectors = _vector(a_d, len(a_d)), _vector(b_d, len(a_d))
    copy = None if copy_d is None else _vector(copy_d, len(a_d))
    _function("sq_distance")(*vectors, ctypes.c_int64(len(a_d)), copy, _pointer(sum_c))
    return _added(sum_c)


def move_mean(mean_d: np.ndarray, value_d: np.ndarray, count: int) -> None:
    """Makes the mean of count - 1 values that of one more."""
    value, mean = _vector(value_d, len(mean_d)), _vector(mean_d, len(mean_d))
    d, twice_share = ctypes.c_int64(len(mean_d)), ctypes.c_float(2 / count)
    _function("move_mean")(value, d, twice_share, mean)


def scale(a_d: np.ndarray, factor: float, out_d: np.ndarray) -> None:
    """Writes factor a."""
    d = ctypes.c_int64(len(a_d))
    _function("scale")(_vector(a_d, len(a_d)), d, ctypes.c_float(factor), _vector(out_d, len(a_d)))


def _vector(values_d: np.ndarray, d: int) -> ctypes.c_void_p:
    assert values_d.dtype == np.float32
    assert values_d.shape == (d,)
    assert values_d.flags.c_contiguous
    return _pointer(values_d)


def _chunks(values_d: np.ndarray) -> np.ndarray:
    """Returns room for a sum a chunk, of which a vector that is not empty has at least one."""
    return np.empty(-(-len(values_d) // _CHUNK))


def _added(sum_c: np.ndarray) -> float:
    return float(np.add.accumulate(sum_c)[-1])


def _function(name: str) -> Any:
    return getattr(_library, f"aggregathor_{name}")


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _stack(stack_nd: np.ndarray) -> tuple[ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]:
    # Whoever calls has seen to it; the kernels believe it.
    assert stack_nd.dtype == np.float32
    assert stack_nd.flags.c_contiguous
    assert stack_nd.size
    n, d = stack_nd.shape
    return _pointer(stack_nd), ctypes.c_int64(n), ctypes.c_int64(d)


def _columns(stack_nd: np.ndarray | Columns) -> tuple[tuple[Any, ...], np.ndarray]:
    """Returns arguments for columns, all or some, and the array for their aggregate."""
    if not isinstance(stack_nd, Columns):
        return (*_stack(stack_nd), None, ctypes.c_int64(0)), _like_a_row(stack_nd)
    whole_nd, ranges_k2, grad_d = stack_nd
    assert ranges_k2.dtype == np.int64
    assert ranges_k2.flags.c_contiguous
    assert grad_d.dtype == np.float32
    assert grad_d.shape == whole_nd.shape[1:]
    k = ctypes.c_int64(len(ranges_k2))
    return (*_stack(whole_nd), _pointer(ranges_k2), k), grad_d


def _distances(sq_dist_nn: np.ndarray, f: int) -> tuple[ctypes.c_void_p, Any, Any]:
    return _pointer(sq_dist_nn), ctypes.c_int64(len(sq_dist_nn)), ctypes.c_int64(f)


def _like_a_row(stack_nd: np.ndarray) -> np.ndarray:
    return np.empty(stack_nd.shape[1], np.float32)


def _enough(
    chosen: np.ndarray, found: int, rule: str, sq_dist_nn: np.ndarray, f: int
) -> np.ndarray:
    if found < len(chosen):
        raise too_few(rule, len(sq_dist_nn), f)
    return chosen
