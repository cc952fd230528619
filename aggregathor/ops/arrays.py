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
