"""What rules are tried on, and how near their results must be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

DTYPES = ("float32", "float64", "float16", "bfloat16")
# Of the truth: ten standard deviations of the honest rows. Rows of 1e30 move a mean by more, and
# so do f rows of 0 at the smallest n; the geometric median, the least exact of our rules, by less.
NEAR = 0.1
# How far rounding may take two ways to compute one result apart, relative to the truth.
ROUNDING = {"float32": 1e-5, "float64": 1e-12, "float16": 2e-3, "bfloat16": 2e-2}
D = 64
# Of two, that rows are multiplied by. What comes of squares of rows of 100 still fits the dtype.
POWERS = {
    "float16": (-4, 4),
    "bfloat16": (-40, -10, 10, 40),
    "float32": (-40, -10, 10, 40),
    "float64": (-400, -10, 10, 400),
}
# 1, 2^k - 1, 2^k and 2^k + 1 for vector units of 8 and 16 values and for blocks of 64 and 1024.
ODD_DS = (1, 7, 15, 16, 17, 63, 64, 65, 1025)
LARGE_D = 2**16 + 1  # worked on by several threads
OMNISCIENT, RANDOM_BITS = "omniscient", "random bits"
Hostile = float | str
# A Byzantine row, in sizes of the truth, shortened to the dtype's range; or what makes one.
HOSTILE: dict[str, Hostile] = {
    "0": 0.0,
    "1e30": 1e30,
    "+inf": np.inf,
    "-inf": -np.inf,
    "NaN": np.nan,
    "-1e20 times the honest sum": OMNISCIENT,
}
LOST = 0.1  # the share of coordinates that are lost at random


# Stacks.


def truth(d: int) -> np.ndarray:
    """What honest rows scatter around: sizes of 0.1 to 100, both signs, no two coordinates alike.

    A prefix of the same endless sequence for every d, and so spread out that a rule which clips,
    forgets a sign, or writes a coordinate to the place of another is far off.
    """
    j = np.arange(d)
    sizes_d = 10 ** (3 * (j * 0.6180339887498949 % 1) - 1)
    return np.where(j * 1.4142135623730951 % 1 < 0.5, sizes_d, -sizes_d)


def honest_rows(rng: np.random.Generator, n: int, d: int, dtype: str) -> np.ndarray:
    """n rows of the truth times 1 + 0.01 N(0, 1)."""
    return cast(_honest(rng, n, d), dtype)


def attacked(
    rng: np.random.Generator, n: int, f: int, d: int, dtype: str, value: Hostile
) -> np.ndarray:
    """n - f honest rows and f hostile ones, shuffled: ``value`` times the truth's size, or so made.

    Random bits are another row each, of values of all sizes, and NaN here and there.
    """
    honest = _honest(rng, n - f, d)
    if value == RANDOM_BITS:
        numpy_dtype = np.dtype(tf.as_dtype(dtype).as_numpy_dtype)
        bits_fd = np.frombuffer(rng.bytes(f * d * numpy_dtype.itemsize), numpy_dtype)
        with np.errstate(invalid="ignore"):  # of signalling NaNs, which become quiet ones
            quiet_fd = np.where(np.isnan(bits_fd), numpy_dtype.type(np.nan), bits_fd)
        return rng.permutation(np.vstack([cast(honest, dtype), quiet_fd.reshape(f, d)]))
    row_d = -1e20 * honest.sum(axis=0) if isinstance(value, str) else value * np.abs(truth(d))
    if np.isfinite(row_d).all():  # shortened to the dtype's range, in the same direction
        row_d *= min(1.0, float(tf.as_dtype(dtype).max) / max(np.abs(row_d).max(), 1.0))
    return cast(rng.permutation(np.vstack([honest, np.tile(row_d, (f, 1))])), dtype)


def _honest(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    return truth(d) * (1 + 0.01 * rng.standard_normal((n, d)))


def lose_some(rng: np.random.Generator, stack_nd: np.ndarray) -> np.ndarray:
    """The stack with a share ``LOST`` of its values NaN."""
    stack_nd = stack_nd.copy()
    stack_nd[rng.random(stack_nd.shape) < LOST] = np.nan
    return stack_nd


def cast(stack_nd: np.ndarray, dtype: str) -> np.ndarray:
    """To the dtype, finite values clipped to its range."""
    tf_dtype = tf.as_dtype(dtype)
    most = float(tf_dtype.max)
    clipped_nd = np.where(np.isfinite(stack_nd), np.clip(stack_nd, -most, most), stack_nd)
    return clipped_nd.astype(tf_dtype.as_numpy_dtype)


def is_nan(stack_nd: np.ndarray) -> np.ndarray:
    """Which values are NaN, for half types too."""
    return np.isnan(stack_nd.astype(np.float64))


# Failures.


def told(stack_nd: tf.Tensor | np.ndarray, f: int) -> str:
    """What was tried, for a failure: ``n=7 f=2 d=64 float32``."""
    n, d = stack_nd.shape
    dtype = tf.as_dtype(stack_nd.dtype).name
    return f"n={n} f={f} d={d} {dtype}"


def far(
    grad_d: np.ndarray, expected_d: np.ndarray, case: str, zero_allowed: Any = None
) -> Iterator[str]:
    """What is wrong with a result that should be near the truth everywhere.

    A quarter of the coordinates may be 0 where ``zero_allowed``.
    """
    grad_d = grad_d.astype(np.float64)
    off = ~(np.abs(grad_d - expected_d) <= NEAR * np.abs(expected_d))  # True for NaN
    if zero_allowed is not None:
        zero = (grad_d == 0) & zero_allowed
        if np.mean(zero) <= 0.25:
            off &= ~zero
    if off.any():
        worst = np.flatnonzero(off)[0]
        yield (
            f"{case}: expected every coordinate within {NEAR:.0%} of the honest mean, found "
            f"{grad_d[worst]:.6g} for {expected_d[worst]:.6g} in coordinate {worst} "
            f"({off.sum()} such)"
        )


def unequal(
    grad_d: np.ndarray, expected_d: np.ndarray, case: str, within_d: np.ndarray
) -> Iterator[str]:
    """What is wrong with a result that should be another one but for ``within_d``."""
    grad_d, expected_d = grad_d.astype(np.float64), expected_d.astype(np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf
        off = ~(np.abs(grad_d - expected_d) <= within_d) & ~same(grad_d, expected_d)
    if off.any():
        worst = np.flatnonzero(off)[0]
        yield (
            f"{case}: expected {expected_d[worst]:.9g} within {within_d[worst]:.3g}, found "
            f"{grad_d[worst]:.9g} in coordinate {worst} ({off.sum()} such)"
        )


def rounding(d: int, dtype: str) -> np.ndarray:
    """How far rounding may take each coordinate of a result near the truth."""
    return ROUNDING[dtype] * np.abs(truth(d))


def same(one_d: np.ndarray, other_d: np.ndarray) -> np.ndarray:
    """Where both are one value, NaN or infinity."""
    return (one_d == other_d) | (np.isnan(one_d) & np.isnan(other_d))
