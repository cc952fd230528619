"""What codes do to gradients: projections, block by block of columns, and weighted sums.

In NumPy, in float64. ``decoding.py`` has the same by kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

_CHUNK = 1 << 13  # columns at a time, so that a chunk in float64 stays in a core's cache


def project(stack_nd: np.ndarray, table_bm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Projects each row, block by block of its columns.

    Args:
      stack_nd: float or complex [n, d].
      table_bm: float64 [b, m]: m directions for a block of b columns, the same for each block. Of
        a short last block the first ones count.

    Returns:
      Projections [n, c, m] of the c = ceil(d / b) blocks, float64 or complex128; and squared norms
      of the blocks, float64 [n, c]. Neither is finite where a value of the block is not.
    Cost: O(n d m) time; memory O(n d m / b) beside a chunk.
    """
    n, dim = stack_nd.shape
    b, m = table_bm.shape
    wide = np.complex128 if np.iscomplexobj(stack_nd) else np.float64
    projected_ncm = np.empty((n, -(-dim // b), m), wide)
    sq_norm_nc = np.empty(projected_ncm.shape[:2])
    step = max(1, _CHUNK // b)
    with np.errstate(invalid="ignore", over="ignore"):
        for first in range(0, dim // b, step):
            last = min(first + step, dim // b)
            part_nkb = stack_nd[:, first * b : last * b].astype(wide).reshape(n, last - first, b)
            projected_ncm[:, first:last] = part_nkb @ table_bm
            sq_norm_nc[:, first:last] = _sq_norms(part_nkb)
        if dim % b:
            part_nb = stack_nd[:, dim - dim % b :].astype(wide)
            projected_ncm[:, -1] = part_nb @ table_bm[: dim % b]
            sq_norm_nc[:, -1] = _sq_norms(part_nb)
    return projected_ncm, sq_norm_nc


def weighted_sum(
    rows: Sequence[np.ndarray], weights: np.ndarray, ranges_k2: np.ndarray, out_d: np.ndarray
) -> None:
    """Writes the real part of a weighted sum of rows into some columns of ``out_d``.

    Args:
      rows: m rows, float or complex [d].
      weights: float64 or complex128 [m].
      ranges_k2: int64 [k, 2], which columns: [begin, end).
      out_d: float [d]; the sums are made in float64, in the order of the rows, and rounded once.
    """
    for begin, end in ranges_k2.tolist():
        for at in range(begin, end, _CHUNK):
            columns = slice(at, min(end, at + _CHUNK))
            total = np.zeros(columns.stop - at, weights.dtype)
            with np.errstate(over="ignore", invalid="ignore"):
                for row_d, weight in zip(rows, weights, strict=True):
                    total += row_d[columns] * weight
                out_d[columns] = total.real


def all_columns(d: int) -> np.ndarray:
    """Returns the one range of all d columns, int64 [1, 2]."""
    return np.array([[0, d]])


class Tools(NamedTuple):
    """What codes work on gradients by: these functions, or what does the same faster."""

    project: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] = project
    weighted_sum: Callable[[Sequence[np.ndarray], np.ndarray, np.ndarray, np.ndarray], None] = (
        weighted_sum
    )


def _sq_norms(values: np.ndarray) -> np.ndarray:
    if np.iscomplexobj(values):
        return _sq_norms(values.real) + _sq_norms(values.imag)
    return np.einsum("...b,...b->...", values, values)
