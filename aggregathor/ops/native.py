"""Calls into the native library, once ``load`` has loaded it. The table is in `__init__.py`."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
from numpy.typing import DTypeLike

from aggregathor.ops import arrays
from aggregathor.ops.digests import DigestStore, NativeDigestStore, OnChange
from aggregathor.ops.exchange import Channel, Function, NativeChannel

if TYPE_CHECKING:
    from lossympi.link import NativeRound

_ops: Any = None
_library: Any = None


def load(library: Path) -> None:
    """Loads the ops of ``library`` into TensorFlow."""
    global _ops, _library
    _ops = tf.load_op_library(str(library))
    _library = ctypes.CDLL(str(library))
    arrays.load(_library)


def loaded() -> tuple[Any, Any]:
    """Returns the ops, as TensorFlow calls them, and the library, as ``ctypes`` does."""
    return _ops, _library


def has_arrays() -> bool:
    """Whether there are kernels for arrays: those of `arrays`."""
    return True


def channel(
    function: Function,
    dim: int,
    native: NativeRound | None = None,
    dtype: DTypeLike = np.float32,
) -> Channel:
    """A way from a graph to a function of Python, or to what does the same in C."""
    return NativeChannel(_ops, _library, function, dim, native, dtype)


def digest_store(every: int, on_change: OnChange) -> DigestStore:
    """Keyed digests of tensors, recorded and compared within a step."""
    return NativeDigestStore(_ops, _library, every, on_change)


def mean(stack_nd: tf.Tensor, *, skip_missing: bool) -> tf.Tensor:
    """Mean of the rows, or of the present values of each coordinate."""
    return _ops.aggregathor_mean(stack_nd, skip_missing=skip_missing)


def window_mean(
    stack_nd: tf.Tensor, *, window: str, f: int, with_share: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean of a window of each coordinate's sorted values, and each row's share in it."""
    return _ops.aggregathor_window_mean(stack_nd, window=window, f=f, with_share=with_share)


def sq_distances(stack_nd: tf.Tensor, *, scaled: bool = True) -> tf.Tensor:
    """Squared distances between the rows."""
    return _ops.aggregathor_sq_distances(stack_nd, scaled=scaled)


def krum_select(sq_dist_nn: tf.Tensor, *, f: int, m: int, rule: str) -> tf.Tensor:
    """The m rows of least Krum score; errors name the rule."""
    return _ops.aggregathor_krum_select(sq_dist_nn, f=f, m=m, rule=rule)


def bulyan_select(sq_dist_nn: tf.Tensor, *, f: int, variant: str) -> tf.Tensor:
    """The rows that make up each of Bulyan's candidates."""
    return _ops.aggregathor_bulyan_select(sq_dist_nn, f=f, selection=variant)


def brute_select(sq_dist_nn: tf.Tensor, *, f: int) -> tf.Tensor:
    """The n - f rows of least diameter."""
    return _ops.aggregathor_brute_select(sq_dist_nn, f=f)


def mean_of_rows(stack_nd: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Mean of the present values of the given rows."""
    return _ops.aggregathor_mean_of_rows(stack_nd, rows)


def bulyan_tail(stack_nd: tf.Tensor, groups: tf.Tensor, *, f: int) -> tf.Tensor:
    """Bulyan's second half: mean of the candidates nearest to their upper median."""
    return _ops.aggregathor_bulyan_tail(stack_nd, groups, f=f)


def geometric_median(
    stack_nd: tf.Tensor, *, f: int, nu: float, tol: float, max_iter: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Weiszfeld's iteration, and the weight of each row in its last mean."""
    return _ops.aggregathor_geometric_median(stack_nd, f=f, nu=nu, tol=tol, max_iter=max_iter)
