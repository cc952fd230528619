"""Zeno: the rows after which the loss on the server's own data is least."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from aggregathor.errors import UserError
from aggregathor.gars.base import Aggregated, Values, gar, is_whole
from aggregathor.gars.context import Context
from aggregathor.gars.distances import mean_of_rows, usage_of

# Values that are squared and added at a time: BLAS adds so few on one thread, so that the sum does
# not depend on the number of threads; and the blocks' sums are added in float64.
_BLOCK = 8192


class _Row(NamedTuple):
    """What is known of a row without its loss.

    Attributes:
      sq_norm: the squared norm of what is there; infinite where that is less than half.
      has_holes: whether something is missing.
    """

    sq_norm: float
    has_holes: bool


def _check(*, n: int, f: int, b: Any, rho: Any, gamma: Any, n_r: Any) -> None:
    if b is not None and not (is_whole(b) and f <= b < n):
        raise UserError(
            f"zeno leaves out a whole number of rows, f <= b < n, got b={b!r} with f={f}, n={n}"
        )
    if rho is not None and not (_is_finite(rho) and rho >= 0):
        raise UserError(f"zeno needs a finite rho >= 0, got rho={rho!r}")
    if gamma is not None and not (_is_finite(gamma) and gamma > 0):
        raise UserError(f"zeno needs a finite gamma > 0, got gamma={gamma!r}")
    if not is_whole(n_r) or not 1 <= n_r < 2**31:
        raise UserError(f"zeno draws a whole number of examples, n_r >= 1, got n_r={n_r!r}")


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return is_number and abs(value) < math.inf


@gar(
    "zeno",
    condition="n >= f + 1",
    minimum="n >= f + 1",
    cost="n + 1 forward passes of n_r examples, and O(nd)",
    source="Xie et al. 2019",
    takes_arrays=True,
    needs_validation=True,
    note=(
        "zeno leaves out b rows, f <= b < n, so more than half of the workers may be Byzantine "
        "(f >= n/2). It needs validation data that only the server has. b > f is safer than the "
        "default b = f: a row that it keeps wrongly does more harm than one that it leaves out."
    ),
    check=_check,
)
def zeno(
    stack_nd: Values,
    *,
    f: int,
    context: Context,
    b: int | None = None,
    rho: float | None = None,
    gamma: float | None = None,
    n_r: int = 4,
) -> Aggregated:
    r"""Mean of the n - b rows that lower the loss on the server's own data most.

    .. math:: \frac{1}{n - b} \sum_{i \in K} u_i, \quad
              K = \text{the } n - b \text{ rows of greatest } s_i, \quad
              s_i = F_r(x) - F_r(x - \gamma u_i) - \rho \lVert u_i \rVert_2^2

    F_r is the loss on n_r examples that only the server has, drawn anew in each round. Ties go to
    the lower row. What a row lacks is 0, for its score and in the mean; a row with less than half
    of its coordinates, or with an infinity, scores minus infinity, and so does one whose score is
    not finite. These are never kept: of fewer than n - b others the mean is theirs, and of none it
    is 0, which is no update.

    Args:
      stack_nd: float32, float64, float16 or bfloat16, shape [n, d].
      f: how many rows may be Byzantine; f >= n/2 is allowed.
      context: the round's, which lends the losses, x within them, and the learning rate.
      b: how many rows are left out, f <= b < n; by default f. A greater b is safer.
      rho: the weight of a row's squared norm, >= 0; by default gamma/200.
      gamma: the step by which a row is tried, > 0; by default the optimizer's learning rate, which
        makes it the step of plain SGD.
      n_r: how many examples the loss is of.

    Returns:
      Shape [d], same dtype.

    Raises:
      ValueError: n < f + 1, a parameter is out of range, nobody lends losses, gamma is not given
        and the learning rate unknown, or the rule is called in a graph.
    Resilience: the loss converges with up to f = n - 1 Byzantine rows as far as the n_r examples
      tell good rows from bad ones (see Source). Near the minimum Byzantine rows are kept too.
    Cost: n + 1 forward passes of n_r examples, and O(nd) time; O(d) memory beyond the input.
    Source: Xie, Koyejo and Gupta, Zeno: Distributed Stochastic Gradient Descent with
      Suspicion-based Fault-tolerance, ICML 2019.

    >>> from aggregathor.gars import GARS
    >>> x_d = np.array([1.0, 0.0])
    >>> def losses(stack_nd, rows, gamma, n_r):  # of F(x) = |x|^2 / 2
    ...     return np.array([v @ v / 2 for v in (x_d, *(x_d - gamma * stack_nd[rows]))])
    >>> context = Context(learning_rate=lambda: 0.5, losses=losses)
    >>> stack_nd = np.array([[1, 0], [0.5, 0], [-1, 0], [9e9, 0]], np.float32)
    >>> GARS["zeno"].apply(stack_nd, {}, context, f=2)[0].grad_d
    array([0.75, 0.  ], dtype=float32)
    """
    if context.losses is None:
        raise UserError(
            "zeno judges gradients by the loss on validation data, and nobody lends it that: call "
            "apply with gars.Context(losses=..., learning_rate=...), as a training does"
        )
    if not isinstance(stack_nd, np.ndarray) and not hasattr(stack_nd, "numpy"):
        raise UserError("zeno asks the server for losses, which a graph cannot: call it eagerly")
    gamma = _rate(context) if gamma is None else float(gamma)
    rho = gamma / 200 if rho is None else float(rho)
    rows_nd = np.asarray(stack_nd)  # the same memory
    known = [_look_at(row_d) for row_d in rows_nd]
    sq_norm_n = np.array([each.sq_norm for each in known])
    score_n = _scores(rows_nd, sq_norm_n, context.losses, gamma=gamma, rho=rho, n_r=n_r)
    best = np.argsort(-score_n, kind="stable")[: len(known) - (f if b is None else b)]
    kept = best[np.isfinite(score_n[best])]
    return _mean(stack_nd, rows_nd, kept, any(known[row].has_holes for row in kept))


def _rate(context: Context) -> float:
    rate = None if context.learning_rate is None else float(context.learning_rate())
    if rate is None or not 0 < rate < math.inf:
        found = "is unknown here" if rate is None else f"is {rate}"
        raise UserError(
            f"zeno tries each gradient by a step of the learning rate, which {found}: give the "
            "step as gar_args gamma=0.1"
        )
    return rate


def _scores(
    stack_nd: np.ndarray,
    sq_norm_n: np.ndarray,
    losses: Callable[..., np.ndarray],
    *,
    gamma: float,
    rho: float,
    n_r: int,
) -> np.ndarray:
    """Returns the scores, float64 [n]; rows of infinite norm are not even tried."""
    score_n = np.full(len(sq_norm_n), -np.inf)
    tried = np.flatnonzero(np.isfinite(sq_norm_n))
    if len(tried):
        loss_k = losses(stack_nd, tried, gamma, n_r)
        with np.errstate(invalid="ignore", over="ignore"):
            score_n[tried] = loss_k[0] - loss_k[1:] - rho * sq_norm_n[tried]
    score_n[~np.isfinite(score_n)] = -np.inf
    return score_n


def _look_at(row_d: np.ndarray) -> _Row:
    sq_norm = _sq_norm(row_d)
    if not math.isnan(sq_norm):
        return _Row(sq_norm, has_holes=False)
    missing_d = np.isnan(row_d)
    if 2 * np.count_nonzero(missing_d) > len(row_d):
        return _Row(math.inf, has_holes=True)
    return _Row(_sq_norm(np.where(missing_d, 0, row_d)), has_holes=True)


def _sq_norm(row_d: np.ndarray) -> float:
    """Returns the squared norm, which may be beyond float32; NaN where something is missing."""
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # the latter is of signalling NaNs
        for first in range(0, len(row_d), _BLOCK):
            block = row_d[first : first + _BLOCK]
            sq_norm = float(block @ block)
            if sq_norm == math.inf:  # in float32, maybe
                block = block.astype(np.float64)
                sq_norm = float(block @ block)
            total += sq_norm
    return total


def _mean(stack_nd: Values, rows_nd: np.ndarray, kept: np.ndarray, has_holes: bool) -> Aggregated:
    """Averages the rows in the order in which they are given; what one lacks is 0."""
    rows: Values = kept if isinstance(stack_nd, np.ndarray) else tf.constant(kept)
    if len(kept) and not has_holes:
        return mean_of_rows(stack_nd, rows)
    sum_d = np.zeros(rows_nd.shape[1])
    for row in kept:
        np.add(sum_d, rows_nd[row], out=sum_d, where=~np.isnan(rows_nd[row]))
    grad_d = (sum_d / max(1, len(kept))).astype(rows_nd.dtype)
    return Aggregated(
        grad_d if isinstance(stack_nd, np.ndarray) else tf.constant(grad_d),
        usage_of(stack_nd, rows),
    )
