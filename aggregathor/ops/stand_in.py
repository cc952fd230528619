"""The kernels in plain TensorFlow, for where the native library is missing. Slower, same results.

But for subnormal numbers: TensorFlow's own ops take them for 0.

The functions are those of `ops/native.py`; the table in `ops/__init__.py` says what they return.
The number of rows must be known when a ``tf.function`` is traced. Selections are small ([n, n])
and run in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
from numpy.typing import DTypeLike

from aggregathor.ops.digests import DigestStore, OnChange, PythonDigestStore
from aggregathor.ops.errors import too_few
from aggregathor.ops.exchange import Channel, Function, PythonChannel

if TYPE_CHECKING:
    from lossympi.link import NativeRound


def has_arrays() -> bool:
    """Whether `arrays` can be used: it is of the native library."""
    return False


def channel(
    function: Function,
    dim: int,
    native: NativeRound | None = None,
    dtype: DTypeLike = np.float32,
) -> Channel:
    """A way from a graph to a function of Python."""
    return PythonChannel(function, dim, dtype)


def digest_store(every: int, on_change: OnChange) -> DigestStore:
    """Keyed digests of tensors, recorded and compared within a step."""
    return PythonDigestStore(every, on_change)


def mean(stack_nd: tf.Tensor, *, skip_missing: bool) -> tf.Tensor:
    """Mean of the rows, or of the present values of each coordinate."""
    if not skip_missing:
        return tf.cast(_mean_where(stack_nd, tf.ones_like(stack_nd, tf.bool)), stack_nd.dtype)
    present = ~tf.math.is_nan(stack_nd)
    return tf.cast(_mean_where(stack_nd, present), stack_nd.dtype)


def window_mean(
    stack_nd: tf.Tensor, *, window: str, f: int, with_share: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean of a window of each coordinate's sorted values, and each row's share in it."""
    present = ~tf.math.is_nan(stack_nd)
    k_d = tf.reduce_sum(tf.cast(present, tf.int32), axis=0)
    few = k_d <= 2 * f
    # Missing values sort last, where no window reaches: windows end at k.
    sorted_nd = tf.sort(tf.where(present, stack_nd, np.inf), axis=0)
    middle = _window(window if window.startswith("median") else "median", k_d)
    if window.startswith("median"):
        begin_d, end_d = middle
    elif window == "trimmed-mean":
        begin_d = tf.where(few, middle[0], f)
        end_d = tf.where(few, middle[1], k_d - f)
    else:
        center = middle if window == "meamed" else (tf.fill(tf.shape(k_d), f), k_d - f)
        center_d = _mean_between(sorted_nd, *center)
        begin_d = _nearest_begin(stack_nd, center_d, k_d - f)
        end_d = begin_d + k_d - f
        begin_d = tf.where(few, middle[0], begin_d)
        end_d = tf.where(few, middle[1], end_d)
    grad_d = tf.cast(_mean_between(sorted_nd, begin_d, end_d), stack_nd.dtype)
    grad_d = tf.where(few & ~tf.math.is_finite(grad_d), tf.zeros_like(grad_d), grad_d)
    if not with_share:
        return grad_d, tf.zeros([0], tf.float64)
    low_d = _at(sorted_nd, begin_d)
    high_d = _at(sorted_nd, end_d - 1)
    kept = (stack_nd >= low_d) & (stack_nd <= high_d) & (k_d > 0)
    return grad_d, tf.reduce_mean(tf.cast(kept, tf.float64), axis=1)


def sq_distances(stack_nd: tf.Tensor, *, scaled: bool = True) -> tf.Tensor:
    """Squared distances between the rows."""
    comparable = _comparable(stack_nd)
    both = comparable[:, None] & comparable[None, :]

    def in_unit(unit: int) -> tf.Tensor:
        rows = tf.unstack(tf.cast(stack_nd, tf.float64))
        sq_dist_nn = tf.stack([_sq_distances_to(stack_nd, row, unit) for row in rows])
        sq_dist_nn = tf.where(both, sq_dist_nn, np.inf)
        return tf.linalg.set_diag(sq_dist_nn, tf.zeros([len(rows)], tf.float64))

    def rescaled() -> tf.Tensor:
        units = [in_unit(unit) for unit in (0, _UNIT, -_UNIT)]
        return tf.ensure_shape(tf.numpy_function(_in_one_unit, units, tf.float64), both.shape)

    sq_dist_nn = in_unit(0)
    if not scaled or stack_nd.dtype == tf.float32:
        return sq_dist_nn
    sure = (sq_dist_nn >= _LEAST_SURE) & (sq_dist_nn <= _MOST_SURE)
    sure = tf.linalg.set_diag(sure, tf.ones_like(comparable))
    return tf.cond(tf.reduce_all(sure), lambda: sq_dist_nn, rescaled)


def krum_select(sq_dist_nn: tf.Tensor, *, f: int, m: int, rule: str) -> tf.Tensor:
    """The m rows of least Krum score; errors name the rule."""
    rows = tf.numpy_function(lambda sq_dist: _krum(sq_dist, f, m, rule), [sq_dist_nn], tf.int64)
    return tf.ensure_shape(rows, [m])


def bulyan_select(sq_dist_nn: tf.Tensor, *, f: int, variant: str) -> tf.Tensor:
    """The rows that make up each of Bulyan's candidates."""
    select = _bulyan_paper if variant == "paper" else _bulyan
    groups = tf.numpy_function(lambda sq_dist: select(sq_dist, f), [sq_dist_nn], tf.int64)
    n = sq_dist_nn.shape[0]
    return tf.ensure_shape(groups, [n - 2 * f, 1] if variant == "paper" else [n - 2 * f - 2, None])


def brute_select(sq_dist_nn: tf.Tensor, *, f: int) -> tf.Tensor:
    """The n - f rows of least diameter."""
    rows = tf.numpy_function(lambda sq_dist: _brute(sq_dist, f), [sq_dist_nn], tf.int64)
    return tf.ensure_shape(rows, [sq_dist_nn.shape[0] - f])


def mean_of_rows(stack_nd: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Mean of the present values of the given rows."""
    return mean(tf.gather(stack_nd, rows), skip_missing=True)


def bulyan_tail(stack_nd: tf.Tensor, groups: tf.Tensor, *, f: int) -> tf.Tensor:
    """Bulyan's second half: mean of the candidates nearest to their upper median."""
    candidates = []
    for group in tf.unstack(groups):
        rows_md = tf.gather(stack_nd, tf.boolean_mask(group, group >= 0))
        present = ~tf.math.is_nan(rows_md)
        mean_d = tf.cast(_mean_where(rows_md, present), stack_nd.dtype)
        candidates.append(tf.where(tf.reduce_any(present, axis=0), mean_d, np.nan))
    stack_td = tf.stack(candidates)
    present = ~tf.math.is_nan(stack_td)
    k_d = tf.reduce_sum(tf.cast(present, tf.int32), axis=0)
    few = k_d <= 2 * f
    sorted_td = tf.sort(tf.where(present, stack_td, np.inf), axis=0)
    begin_d, end_d = _window("median-upper", k_d)
    center_d = _mean_between(sorted_td, begin_d, end_d)
    nearest_d = _nearest_begin(stack_td, center_d, k_d - 2 * f)
    begin_d = tf.where(few, begin_d, nearest_d)
    end_d = tf.where(few, end_d, nearest_d + k_d - 2 * f)
    grad_d = tf.cast(_mean_between(sorted_td, begin_d, end_d), stack_nd.dtype)
    return tf.where(few & ~tf.math.is_finite(grad_d), tf.zeros_like(grad_d), grad_d)


def geometric_median(
    stack_nd: tf.Tensor, *, f: int, nu: float, tol: float, max_iter: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Weiszfeld's iteration, and the weight of each row in its last mean."""
    comparable = _comparable(stack_nd)

    def distances_to(v_d: tf.Tensor, unit: tf.Tensor) -> tf.Tensor:
        sq_dist_n = _sq_distances_to(stack_nd, tf.cast(v_d, tf.float64), unit)
        return tf.sqrt(tf.where(comparable, sq_dist_n, np.inf))

    def weights_of(distance_n: tf.Tensor) -> tf.Tensor:
        """Over the largest of them; with floor = 0 rows at v have all the weight."""
        distance_n = tf.maximum(floor, distance_n)
        least = tf.reduce_min(distance_n)
        weight_n = tf.where(
            tf.equal(distance_n, least), tf.ones_like(distance_n), least / distance_n
        )
        return tf.where(tf.math.is_finite(distance_n), weight_n, 0.0)

    def step(_: tf.Tensor, v_d: tf.Tensor, weight_n: tf.Tensor) -> tuple:
        used = ~tf.math.is_nan(stack_nd) & (weight_n > 0)[:, None]
        next_d = tf.cast(_mean_where(stack_nd, used, weight_n[:, None]), stack_nd.dtype)
        wide_d, before_d = tf.cast(next_d, tf.float64), tf.cast(v_d, tf.float64)
        sq_step = tf.reduce_sum(tf.square(_difference(wide_d, before_d, unit)))
        sq_norm = tf.reduce_sum(tf.square(_difference(wide_d, tf.zeros_like(wide_d), unit)))
        return sq_step > tol**2 * sq_norm, next_d, weights_of(distances_to(next_d, unit))

    start_d, _ = window_mean(stack_nd, window="median", f=f, with_share=False)
    typical, unit = _typical(lambda unit: distances_to(start_d, unit), stack_nd.dtype)
    floor = np.float32(nu).astype(np.float64) * typical
    _, v_d, weight_n = tf.while_loop(
        lambda moving, *_: moving,
        step,
        (tf.constant(True), start_d, weights_of(distances_to(start_d, unit))),
        maximum_iterations=max_iter,
    )
    return v_d, weight_n


def _typical(distances: Callable[[Any], tf.Tensor], dtype: tf.DType) -> tuple[Any, Any]:
    """Returns the lower median of the finite distances, and the unit in which none is lost."""

    def in_unit(unit: int) -> tf.Tensor:
        ascending = tf.sort(distances(unit))
        finite = tf.reduce_sum(tf.cast(tf.math.is_finite(ascending), tf.int32))
        return ascending[tf.maximum(finite - 1, 0) // 2]

    typical = in_unit(0)
    if dtype == tf.float32:
        return typical, 0
    large, small = in_unit(_UNIT), in_unit(-_UNIT)
    is_large = tf.math.is_finite(large) & (large > 2.0 ** (450 - _UNIT))
    is_small = ~is_large & (typical <= 2.0**-450)
    unit = tf.where(is_large, _UNIT, tf.where(is_small, -_UNIT, 0))
    return tf.where(is_large, large, tf.where(is_small, small, typical)), unit


# Windows of the sorted values.


def _window(name: str, k_d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The begin and end of the middle of k sorted values; [0, 0) where k = 0."""
    lower_d, upper_d = (k_d - 1) // 2, k_d // 2
    begin_d = upper_d if name == "median-upper" else lower_d
    end_d = (lower_d if name == "median-lower" else upper_d) + 1
    return tf.where(k_d > 0, begin_d, 0), tf.where(k_d > 0, end_d, 0)


def _mean_between(sorted_nd: tf.Tensor, begin_d: tf.Tensor, end_d: tf.Tensor) -> tf.Tensor:
    """Mean of the sorted values [begin, end) of each column in float64, 0 where there are none."""
    rank_n = tf.range(tf.shape(sorted_nd)[0])[:, None]
    return _mean_where(sorted_nd, (rank_n >= begin_d) & (rank_n < end_d))


def _mean_where(
    values_nd: tf.Tensor, chosen_nd: tf.Tensor, weight_nd: tf.Tensor | float = 1.0
) -> tf.Tensor:
    """Weighted mean of the chosen values of each column in float64, 0 where there are none."""
    weight_nd = tf.where(chosen_nd, tf.cast(weight_nd, tf.float64), 0.0)
    total_d = tf.reduce_sum(weight_nd, axis=0)

    def mean(chosen_values: tf.Tensor) -> tf.Tensor:
        return tf.math.divide_no_nan(tf.reduce_sum(weight_nd * chosen_values, axis=0), total_d)

    wide_nd = tf.cast(values_nd, tf.float64)
    values = tf.where(chosen_nd, wide_nd, 0.0)
    mean_d = mean(values)
    if values_nd.dtype == tf.float32:
        return mean_d
    # Sums of float64 may overflow where their mean does not.
    part = 2.0**-64
    least_d = tf.reduce_min(tf.where(chosen_nd, wide_nd, np.inf), axis=0)
    most_d = tf.reduce_max(tf.where(chosen_nd, wide_nd, -np.inf), axis=0)
    of_large_d = tf.minimum(tf.maximum(mean(part * values) / part, least_d), most_d)
    overflows = ~tf.math.is_finite(mean_d) & tf.math.is_finite(least_d) & tf.math.is_finite(most_d)
    return tf.where(overflows, of_large_d, mean_d)


def _at(sorted_nd: tf.Tensor, rank_d: tf.Tensor) -> tf.Tensor:
    """The sorted value of rank ``rank_d`` of each column."""
    rank_d = tf.maximum(rank_d, 0)
    return tf.gather(tf.transpose(sorted_nd), rank_d, batch_dims=1)


def _nearest_begin(stack_nd: tf.Tensor, center_d: tf.Tensor, keep_d: tf.Tensor) -> tf.Tensor:
    """Where the window of the ``keep_d`` values nearest to ``center_d`` begins when sorted.

    Rows are ranked by (distance, row), so that a tie goes to the lower row. The values kept are
    neighbours once sorted: the window begins after the values below the center that are not kept.
    """
    value_dn = tf.transpose(tf.cast(stack_nd, tf.float64))
    present_dn = ~tf.math.is_nan(value_dn)
    # An infinite value is farther than any other, and a missing one is farther still.
    # Halves, as differences may overflow.
    distance_dn = tf.abs(0.5 * value_dn - 0.5 * center_d[:, None])
    distance_dn = tf.minimum(distance_dn, np.finfo(np.float64).max)
    distance_dn = tf.where(present_dn, distance_dn, np.inf)
    order_dn = tf.argsort(distance_dn, axis=1, stable=True)
    rank_dn = tf.argsort(order_dn, axis=1, stable=True)
    dropped_dn = present_dn & (rank_dn >= keep_d[:, None])
    below_dn = dropped_dn & (value_dn < center_d[:, None])
    return tf.reduce_sum(tf.cast(below_dn, tf.int32), axis=1)


# Distances.


def _comparable(stack_nd: tf.Tensor) -> tf.Tensor:
    """Which rows have half of their coordinates or more, and no infinity."""
    present = tf.reduce_mean(tf.cast(~tf.math.is_nan(stack_nd), tf.float64), axis=1)
    return (present >= 0.5) & ~tf.reduce_any(tf.math.is_inf(stack_nd), axis=1)


# Squares of float64 that are surely complete: see `kernels/wide.h`.
_LEAST_SURE, _MOST_SURE = 2.0**-900, 2.0**1000
_UNIT = 700  # 2^700 and 2^-700 are units for what is too large or too small for squares


def _difference(one: tf.Tensor, other: tf.Tensor, unit: Any) -> tf.Tensor:
    """``one - other`` in units of 2^unit: 0, or plus or minus ``_UNIT``."""
    unit = tf.cast(unit, tf.float64)
    before = tf.pow(tf.constant(2.0, tf.float64), tf.minimum(-unit, 0.0))
    after = tf.pow(tf.constant(2.0, tf.float64), tf.maximum(-unit, 0.0))
    return (one * before - other * before) * after


def _sq_distances_to(stack_nd: tf.Tensor, v_d: tf.Tensor, unit: Any) -> tf.Tensor:
    """Squared distance of each row to v (float64) in a unit, scaled for what either lacks."""
    difference_nd = _difference(tf.cast(stack_nd, tf.float64), v_d, unit)
    present = ~tf.math.is_nan(difference_nd)
    both_n = tf.reduce_sum(tf.cast(present, tf.float64), axis=1)
    # tf.square, for ** 2 is tf.pow, whose last bit depends on where in the tensor a value stands.
    sum_n = tf.reduce_sum(tf.where(present, tf.square(difference_nd), 0.0), axis=1)
    sq_dist_n = sum_n * tf.math.divide_no_nan(tf.cast(tf.size(v_d), tf.float64), both_n)
    return tf.where((both_n > 0) & tf.math.is_finite(sq_dist_n), sq_dist_n, np.inf)


def _in_one_unit(sq_dist_nn: np.ndarray, large_nn: np.ndarray, small_nn: np.ndarray) -> np.ndarray:
    """The distances, of which two more units are given, times one power of 2 (`kernels/wide.h`)."""
    is_large = (sq_dist_nn > _MOST_SURE) & np.isfinite(large_nn)
    is_small = (sq_dist_nn < _LEAST_SURE) & np.isfinite(small_nn)
    value_nn = np.where(is_large, large_nn, np.where(is_small, small_nn, sq_dist_nn))
    of_unit_nn = 2 * _UNIT * (is_large.astype(np.int64) - is_small)
    n = len(value_nn)
    exponent_nn = (np.frexp(value_nn)[1] + of_unit_nn).astype(np.float64)
    exponent_nn[value_nn == 0] = -np.inf
    exponent_nn[~np.isfinite(value_nn)] = np.inf
    of_rows = []
    for i, exponent_n in enumerate(exponent_nn):
        others = np.sort(np.delete(exponent_n, i))
        middle = others[n // 2 - 1]
        of_rows.append(
            middle if middle > -np.inf else np.append(others[others > middle], np.inf)[0]
        )
    typical = np.sort(of_rows)[n // 2]
    if not np.isfinite(typical) or abs(typical) <= 500:
        typical = 0
    with np.errstate(over="ignore"):
        return np.ldexp(value_nn, of_unit_nn - int(typical))


# Selections from the [n, n] distances, in NumPy.


def _others(sq_dist_nn: np.ndarray, rows: list[int], i: int) -> np.ndarray:
    others = [j for j in rows if j != i]
    return np.array(others, int)[np.argsort(sq_dist_nn[i, others], kind="stable")]


def _best(score_n: np.ndarray, rows: list[int], count: int, rule: str, f: int) -> list[int]:
    best = sorted(rows, key=lambda i: score_n[i])[:count]
    if len(best) < count or not np.all(np.isfinite(score_n[best])):
        raise too_few(rule, len(score_n), f)
    return best


def _krum_scores(sq_dist_nn: np.ndarray, rows: list[int], neighbours: int) -> np.ndarray:
    score_n = np.full(len(sq_dist_nn), np.inf)
    for i in rows:
        nearest = _others(sq_dist_nn, rows, i)[:neighbours]
        score_n[i] = sum(sq_dist_nn[i, nearest])
    return score_n


def _krum(sq_dist_nn: np.ndarray, f: int, m: int, rule: str) -> np.ndarray:
    rows = list(range(len(sq_dist_nn)))
    score_n = _krum_scores(sq_dist_nn, rows, len(rows) - f - 2)
    return np.array(_best(score_n, rows, m, rule, f), np.int64)


def _bulyan(sq_dist_nn: np.ndarray, f: int) -> np.ndarray:
    n = len(sq_dist_nn)
    theta, m = n - 2 * f - 2, n - f - 2
    rows = list(range(n))
    counted = [_others(sq_dist_nn, rows, i)[:m] for i in rows]
    groups = np.full((theta, m), -1, np.int64)
    for k in range(theta):
        score_n = np.array(
            [sum(sq_dist_nn[i, j] for j in counted[i] if j in rows) for i in range(n)]
        )
        groups[k, : m - k] = _best(score_n, rows, m - k, "bulyan", f)
        rows.remove(groups[k, 0])
    return groups


def _bulyan_paper(sq_dist_nn: np.ndarray, f: int) -> np.ndarray:
    rows = list(range(len(sq_dist_nn)))
    groups = []
    for _ in range(len(rows) - 2 * f):
        score_n = _krum_scores(sq_dist_nn, rows, max(1, len(rows) - f - 2))
        groups.append(_best(score_n, rows, 1, "bulyan", f))
        rows.remove(groups[-1][0])
    return np.array(groups, np.int64)


def _brute(sq_dist_nn: np.ndarray, f: int) -> np.ndarray:
    """Grows subsets row by row in lexicographic order, and cuts what is no better than the best."""
    n = len(sq_dist_nn)
    keep = n - f
    best_diameter, best = np.inf, None

    def grow(chosen: list[int], diameter: float, first: int) -> None:
        nonlocal best_diameter, best
        if len(chosen) == keep:
            best_diameter, best = diameter, chosen
            return
        for i in range(first, n - (keep - len(chosen)) + 1):
            grown = max([diameter, *sq_dist_nn[i, chosen]])
            if grown < best_diameter:
                grow([*chosen, i], grown, i + 1)

    grow([], 0.0, 0)
    if best is None:
        _best(np.full(n, np.inf), list(range(n)), keep, "brute", f)
    return np.array(best, np.int64)
