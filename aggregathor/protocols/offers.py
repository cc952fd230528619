"""What arrival rules have in common: a gradient is offered, and a verdict says what it does.

An arrival rule is a state machine without link, clock or TensorFlow. Whoever drives it says who
sent the gradient, of which model it is and when it came.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np

NOT_FINITE = "not finite"
# Floats of a dot product that are multiplied at once: in cache, and too few for a BLAS to share
# among threads (OpenBLAS does so above 10000), which would make the sum depend on their number.
_CHUNK = 8192
# Of a chunk in float32: what underflows in it, 8192 times 1e-38 at most, is 1e-10 of that.
_LEAST = 1e-24


class Offer(NamedTuple):
    """One gradient as it arrives.

    Attributes:
      row: of its worker, 0..n-1.
      version: of the model that the server had handed to that worker: how many updates it had.
      staleness: how many updates have been made since.
      model_d: that model, [d]; never written to.
      params_d: the model as it is now, [d]; never written to.
      grad_d: [d], float32 or float64; written to once the verdict's step was applied.
      now_s: seconds since the first model was handed out.
    """

    row: int
    version: int
    staleness: int
    model_d: np.ndarray
    params_d: np.ndarray
    grad_d: np.ndarray
    now_s: float


class Verdict(NamedTuple):
    """What becomes of it.

    Attributes:
      step_d: what the optimizer applies now, [d] of the gradient's dtype; None for nothing. It may
        be the gradient's own memory.
      why: why the gradient is rejected; "" if it is used, now or as part of a later step.
    """

    step_d: np.ndarray | None
    why: str = ""


class ArrivalRule(Protocol):
    """Decides on gradients one by one."""

    def offer(self, offer: Offer) -> Verdict:
        """Takes in one gradient; a worker sends its next one after this one was answered."""

    def state(self) -> dict[str, np.ndarray]:
        """Returns what the next verdicts depend on, as arrays for a checkpoint."""

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from what ``state`` gave."""


def is_finite(grad_d: np.ndarray) -> bool:
    """Whether all values are. O(d)."""
    return bool(np.isfinite(grad_d).all())


def dot(a_d: np.ndarray, b_d: np.ndarray) -> float:
    """Returns the inner product; the same bits on any number of threads. O(d).

    Chunks of float32 are multiplied in float32, to 1e-5 of the larger of their sum and 1e-24, and
    added in float64.
    """
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        return sum(_dot(a_d[part], b_d[part]) for part in _parts(len(a_d)))


def norm(values_d: np.ndarray) -> float:
    """Returns the Euclidean norm of finite values, also where their squares leave float64. O(d)."""
    square = dot(values_d, values_d)
    if 0 < square < np.inf:
        return math.sqrt(square)
    largest = float(np.max(np.abs(values_d), initial=0.0))
    if largest == 0:
        return 0.0
    scaled_d = values_d / largest
    return largest * math.sqrt(dot(scaled_d, scaled_d))


def distance(a_d: np.ndarray, b_d: np.ndarray) -> float:
    """Returns the Euclidean distance, as exact as ``dot``; inf where its square is. O(d)."""
    square = 0.0
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for part in _parts(len(a_d)):
            between_c = a_d[part] - b_d[part]
            of_part = _dot(between_c, between_c)
            if of_part == np.inf:  # the difference may be too large for float32
                between_c = a_d[part].astype(np.float64) - b_d[part]
                of_part = float(np.dot(between_c, between_c))
            square += of_part
    return math.sqrt(square)


def _parts(d: int) -> Iterator[slice]:
    return (slice(begin, begin + _CHUNK) for begin in range(0, d, _CHUNK))


def _dot(a_c: np.ndarray, b_c: np.ndarray) -> float:
    """Returns the inner product of a chunk, in float64 where float32 has not the range."""
    product = float(np.dot(a_c, b_c))
    if a_c.dtype == np.float64 or _LEAST < abs(product) < np.inf:
        return product
    return float(np.dot(a_c.astype(np.float64), b_c.astype(np.float64)))
