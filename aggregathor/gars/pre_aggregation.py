"""Pre-aggregations: [n, d] gradients to the [n', d] rows that a rule then aggregates."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from aggregathor.compositions import Known, check_names, declare
from aggregathor.errors import Registry, UserError
from aggregathor.gars.base import (
    Condition,
    ConditionError,
    Kind,
    Values,
    check_new,
    defaults_of,
    is_whole,
    registered,
)
from aggregathor.gars.context import Context
from aggregathor.gars.stacks import plain
from aggregathor.ops import kernels_for
from aggregathor.ops.errors import too_few


class Mixed(NamedTuple):
    """The rows that a pre-aggregation makes.

    Attributes:
      rows_md: shape [n', d], dtype of the stack; NaN where a row has no value.
      weight_mn: float64 [n', n], >= 0, the share of each gradient in each new row. A row adds up to
        1 where gradients are averaged, to less where they are shrunk.
    """

    rows_md: Values
    weight_mn: Values


@dataclass(frozen=True)
class PreAggregation:
    """A pre-aggregation with what is known about it.

    Attributes:
      name: as in compositions such as "bucketing(s=2)+median".
      condition: under which f Byzantine gradients make no more than f Byzantine rows.
      cost: in n, d, f and the parameters.
      source: who proposed it.
      parameters: name and default of what it takes beside ``f``.
      rows_text: n' in terms of n, such as "ceil({n}/{s})".
    """

    name: str
    condition: Condition
    cost: str
    source: str
    parameters: dict[str, Any]
    rows_text: str
    function: Callable[..., Mixed]
    _num_rows: Callable[..., int]
    _check: Callable[..., None] | None

    def __call__(
        self, stack_nd: Values, *, f: int, context: Context | None = None, **parameters: Any
    ) -> Mixed:
        """Makes the rows of a stack, float32 or float64 [n, d], a tensor or an array."""
        stack_nd = plain(self.name, stack_nd)
        self.check(n=int(stack_nd.shape[0]), f=f, **parameters)
        return self.function(stack_nd, f=f, context=context or Context(), **parameters)

    def check(self, *, n: int, f: int, **parameters: Any) -> None:
        """Raises what a call with n gradients would raise, without any gradients.

        Raises:
          UserError: a parameter is unknown or out of range.
          ConditionError: n is too small for f.
        """
        self.check_parameters(**parameters)
        if n < self.condition.least_n(f):
            raise ConditionError(self.condition.refusal(self.name, n, f))

    def check_parameters(self, **parameters: Any) -> None:
        """Raises ``UserError`` for a parameter that is unknown or out of range."""
        check_names(self.name, parameters, self.parameters)
        if self._check is not None:
            self._check(**{**self.parameters, **parameters})

    def num_rows(self, n: int, **parameters: Any) -> int:
        """Returns n', how many rows it makes of n."""
        return self._num_rows(n, **{**self.parameters, **parameters})

    def rows_text_of(self, n_text: str, **parameters: Any) -> str:
        """Returns n' as text: ``rows_text_of("n", s=2)`` is "ceil(n/2)"."""
        return self.rows_text.format(n=n_text, **{**self.parameters, **parameters})


def pre_aggregation(
    name: str,
    *,
    condition: str,
    cost: str,
    source: str,
    num_rows: Callable[..., int] = lambda n, **parameters: n,
    rows_text: str = "{n}",
    check: Callable[..., None] | None = None,
) -> Callable[[Callable[..., Mixed]], Callable[..., Mixed]]:
    """Makes a pre-aggregation of ``(stack_nd, *, f, context, **parameters) -> Mixed``.

    The function receives a float32 or float64 tensor of static n, or an array float32 [n, d], and
    gives rows of the same kind. It must be pure: what is random in it comes from ``context.rng``.

    Args:
      name: unique among rules too, in lower case with hyphens.
      condition: as ``"n >= 2f + 1"``.
      cost: such as ``"O(nd)"``.
      source: the paper.
      num_rows: ``num_rows(n, **parameters)`` is n', how many rows it makes of n; n by default.
      rows_text: the same as text, such as "ceil({n}/{s})".
      check: ``check(**parameters)`` raises ``UserError`` for values that are out of range.
    """

    def register(function: Callable[..., Mixed]) -> Callable[..., Mixed]:
        check_new(name)
        own = inspect.signature(function).parameters
        made = PreAggregation(
            name=name,
            condition=Condition.parse(condition),
            cost=cost,
            source=source,
            parameters=defaults_of(name, (p for p in own.values() if p.name != "context")),
            rows_text=rows_text,
            function=function,
            _num_rows=num_rows,
            _check=check,
        )
        registered[name] = made
        known = (made.condition, rows_text, made.parameters)
        declare(name, Known(False, tuple(made.parameters), *known))

        @functools.wraps(function)
        def checked(stack_nd: Values, **given: Any) -> Mixed:
            return made(stack_nd, **given)

        return checked

    return register


PRE_AGGREGATIONS: Registry[PreAggregation] = Registry("pre-aggregation", Kind(PreAggregation))


@pre_aggregation("nnm", condition="n >= 2f + 1", cost="O(n^2 d)", source="Allouah et al. 2023")
def nnm(stack_nd: Values, *, f: int, context: Context) -> Mixed:
    r"""Nearest-neighbour mixing: each row becomes the mean of its n - f nearest, itself included.

    .. math:: y_i = \frac{1}{n-f} \sum_{j \in N_i} x_j, \quad N_i = \text{the } n-f \text{ nearest
              to } x_i

    Ties go to the lower row. Distances are those of ``sq_distances``; means skip missing values,
    and a coordinate that none of the n - f rows has stays missing.

    Args:
      stack_nd: float32 or float64, shape [n, d].
      f: how many rows may be Byzantine; as many of the new rows are.
      context: not used.

    Returns:
      n rows.

    Raises:
      ConditionError: n < 2f + 1.
      InvalidArgumentError: fewer than n - f rows have n - f rows at finite distance.
    Cost: O(n^2 d) time, O(nd) memory.
    Source: Allouah et al., Fixing by Mixing: A Recipe for Optimal Byzantine ML under
      Heterogeneity, AISTATS 2023.
    """
    kernels = kernels_for(stack_nd)
    n = int(stack_nd.shape[0])
    sq_dist_nn = kernels.sq_distances(stack_nd)
    if isinstance(stack_nd, np.ndarray):
        groups = nearest(sq_dist_nn, f)
        return _means(stack_nd, list(groups), _weights(list(groups), n))
    groups = tf.numpy_function(lambda sq: nearest(sq, f), [sq_dist_nn], tf.int64, stateful=False)
    groups.set_shape([n, n - f])
    return _means(stack_nd, tf.unstack(groups), _weights_of_tensor(groups, n))


def nearest(sq_dist_nn: np.ndarray, f: int) -> np.ndarray:
    """Returns the n - f rows nearest to each row, nearest first, int64 [n, n - f].

    Raises:
      InvalidArgumentError: fewer than n - f rows have n - f rows at finite distance.
    """
    n = len(sq_dist_nn)
    finite_n = np.count_nonzero(np.isfinite(sq_dist_nn), axis=1)
    if np.count_nonzero(finite_n >= n - f) < n - f:
        raise too_few("nnm", n, f)
    return np.argsort(sq_dist_nn, axis=1, kind="stable")[:, : n - f]


def _check_bucketing(*, s: Any) -> None:
    if not is_whole(s) or s < 1:
        raise UserError(f"bucketing needs a whole s >= 1, the size of a bucket, got s={s!r}")


@pre_aggregation(
    "bucketing",
    condition="n >= 1",
    cost="O(nd)",
    source="Karimireddy et al. 2022",
    num_rows=lambda n, s: -(-n // s),
    rows_text="ceil({n}/{s})",
    check=_check_bucketing,
)
def bucketing(stack_nd: Values, *, f: int, context: Context, s: int = 2) -> Mixed:
    r"""Means of ceil(n/s) buckets of s rows each, drawn anew in each round.

    .. math:: y_b = \frac{1}{|B_b|} \sum_{i \in B_b} x_i, \quad B_b = \{\pi(bs), \ldots,
              \pi(\min(bs+s, n)-1)\}

    pi is a permutation of the round's generator. A Byzantine row spoils one bucket, so f of the
    ceil(n/s) rows may be Byzantine: the rule that follows needs its condition for so few. Means
    skip missing values, and a coordinate that no row of a bucket has stays missing.

    Args:
      stack_nd: float32 or float64, shape [n, d].
      f: how many rows may be Byzantine.
      context: lends the generator. Used by itself, the permutation is always the same.
      s: how many rows a bucket has; the last may have fewer.

    Returns:
      ceil(n/s) rows.

    Raises:
      UserError: s is not a whole number >= 1.
    Cost: O(nd) time, O(nd/s) memory.
    Source: Karimireddy et al., Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing,
      ICLR 2022.
    """
    n = int(stack_nd.shape[0])
    order = context.rng("bucketing").permutation(n).astype(np.int64)
    # In row order, so that a bucket's mean does not depend on how it was drawn.
    buckets = [np.sort(order[first : first + s]) for first in range(0, n, s)]
    return _means(stack_nd, buckets, _weights(buckets, n))


def _means(stack_nd: Values, groups: Sequence[Any], weight_mn: Values) -> Mixed:
    """Averages the present values of each group of rows; NaN where a group has none."""
    kernels = kernels_for(stack_nd)
    if isinstance(stack_nd, np.ndarray):
        rows_md = np.empty((len(groups), stack_nd.shape[1]), stack_nd.dtype)
        missing_nd = np.isnan(stack_nd)
        any_missing = missing_nd.any()
        for row_d, group in zip(rows_md, groups, strict=True):
            row_d[:] = kernels.mean_of_rows(stack_nd, np.ascontiguousarray(group))
            if any_missing:
                row_d[missing_nd[group].all(axis=0)] = np.nan
        return Mixed(rows_md, weight_mn)
    missing_nd = tf.math.is_nan(stack_nd)
    nan = tf.constant(np.nan, stack_nd.dtype)
    rows = [
        tf.where(
            tf.reduce_all(tf.gather(missing_nd, group), axis=0),
            nan,
            kernels.mean_of_rows(stack_nd, group),
        )
        for group in groups
    ]
    return Mixed(tf.stack(rows), weight_mn)


def _weights(groups: Sequence[np.ndarray], n: int) -> np.ndarray:
    weight_mn = np.zeros((len(groups), n))
    for weight_n, group in zip(weight_mn, groups, strict=True):
        weight_n[group] = 1 / len(group)
    return weight_mn


def _weights_of_tensor(groups: tf.Tensor, n: int) -> tf.Tensor:
    return tf.reduce_mean(tf.one_hot(groups, n, dtype=tf.float64), axis=1)
