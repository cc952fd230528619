"""What arrival rules do with one gradient: sums over it, a running mean, a multiple.

In NumPy, for float32 and float64. For float32 there are kernels (``ops/kernels/vectors.cc``;
``arrival_rules.py`` chooses), whose sums have the same bits on any number of threads and for each
instruction set; means and multiples are these to the last bit. All sums are float64, in which
squares of float32 neither overflow nor vanish: a sum of squares is finite exactly where all values
are. They are made in chunks that stay in cache, and are too short for a BLAS to share among
threads (OpenBLAS does so above 10000), which would make a sum depend on their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

_CHUNK = 8192


class Vectors(NamedTuple):
    """Functions of vectors [d] of one dtype, float32 or float64.

    Attributes:
      squares: ``squares(a_d, copy_d)`` returns <a, a>, and copies a unless ``copy_d`` is None.
      products: ``products(a_d, b_d)`` returns <a, a> and <a, b>.
      sq_distance: ``sq_distance(a_d, b_d, copy_d)`` returns the squared norm of a - b, which is
        rounded to the dtype, and copies a unless ``copy_d`` is None.
      move_mean: ``move_mean(mean_d, value_d, count)`` makes the mean of count - 1 values, at least
        1, that of one more.
      scale: ``scale(a_d, factor, out_d)`` writes factor a, the factor rounded to the dtype.
    """

    squares: Callable[[np.ndarray, np.ndarray | None], float]
    products: Callable[[np.ndarray, np.ndarray], tuple[float, float]]
    sq_distance: Callable[[np.ndarray, np.ndarray, np.ndarray | None], float]
    move_mean: Callable[[np.ndarray, np.ndarray, int], None]
    scale: Callable[[np.ndarray, float, np.ndarray], None]


def _squares(a_d: np.ndarray, copy_d: np.ndarray | None) -> float:
    if copy_d is not None:
        copy_d[:] = a_d
    return dot(a_d, a_d)


def _products(a_d: np.ndarray, b_d: np.ndarray) -> tuple[float, float]:
    return dot(a_d, a_d), dot(a_d, b_d)


def _sq_distance(a_d: np.ndarray, b_d: np.ndarray, copy_d: np.ndarray | None) -> float:
    if copy_d is not None:
        copy_d[:] = a_d
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        between = ((a_d[p] - b_d[p]).astype(np.float64) for p in _parts(len(a_d)))
        return sum(float(np.dot(each_c, each_c)) for each_c in between)


def _move_mean(mean_d: np.ndarray, value_d: np.ndarray, count: int) -> None:
    # Halves, as the difference of two values may be larger than any.
    half = mean_d.dtype.type(0.5)
    with np.errstate(under="ignore"):
        mean_d += (value_d * half - mean_d * half) * mean_d.dtype.type(2 / count)


def _scale(a_d: np.ndarray, factor: float, out_d: np.ndarray) -> None:
    with np.errstate(over="ignore", under="ignore"):
        np.multiply(a_d, a_d.dtype.type(factor), out=out_d)


NUMPY = Vectors(_squares, _products, _sq_distance, _move_mean, _scale)


def is_finite(values_d: np.ndarray, square: float = math.nan) -> bool:
    """Whether all values are.

    Args:
      values_d: [d].
      square: a sum of squares that all values are in, which may be infinite where no value is.
    Cost: O(d), and O(1) if the sum is finite.
    """
    return math.isfinite(square) or bool(np.isfinite(values_d).all())


def dot(a_d: np.ndarray, b_d: np.ndarray) -> float:
    """Returns the inner product. O(d)."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        parts = ([each_d[p].astype(np.float64) for each_d in (a_d, b_d)] for p in _parts(len(a_d)))
        return sum(float(np.dot(a_c, b_c)) for a_c, b_c in parts)


def norm(values_d: np.ndarray, square: float) -> float:
    """Returns the Euclidean norm of finite values, also where their squares leave float64.

    Args:
      values_d: [d].
      square: <values, values>.
    """
    if 0 < square < np.inf:
        return math.sqrt(square)
    largest = float(np.max(np.abs(values_d), initial=0.0))
    if largest == 0:
        return 0.0
    scaled_d = values_d / largest
    return largest * math.sqrt(dot(scaled_d, scaled_d))


def wide_distance(a_d: np.ndarray, b_d: np.ndarray) -> float:
    """Returns the Euclidean distance in float64; inf where its square is. O(d)."""
    with np.errstate(over="ignore", invalid="ignore"):
        between = (a_d[p].astype(np.float64) - b_d[p] for p in _parts(len(a_d)))
        return math.sqrt(sum(float(np.dot(each_c, each_c)) for each_c in between))


def _parts(d: int) -> Iterator[slice]:
    return (slice(begin, begin + _CHUNK) for begin in range(0, d, _CHUNK))
