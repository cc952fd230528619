"""Plain means: the baselines that tolerate no Byzantine row."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from aggregathor.gars.base import Aggregated, Values, gar
from aggregathor.ops import kernels_for


@gar(
    "average",
    condition="n >= 1",
    robust=False,
    cost="O(nd)",
    source="baseline",
    takes_arrays=True,
    takes_columns=True,
)
def average(stack_nd: Values, *, f: int = 0) -> Aggregated:
    r"""Mean of the rows, whatever they hold: one bad row is enough to choose the result.

    .. math:: \frac{1}{n} \sum_i x_i

    Args:
      stack_nd: float32, float64, float16 or bfloat16, shape [n, d]; row i is worker i's gradient.
      f: ignored.

    Returns:
      Shape [d], same dtype. NaN and infinities propagate.

    Raises:
      ValueError: the stack is not [n, d] with n >= 1.
    Cost: O(nd) time, no memory beyond the input and the output; added in float64.
    Source: synchronous SGD.

    >>> average([[0.], [3.]]).numpy()
    array([1.5], dtype=float32)
    """
    return Aggregated(kernels_for(stack_nd).mean(stack_nd, skip_missing=False), _all_rows(stack_nd))


@gar(
    "average-nan",
    condition="n >= 1",
    robust=False,
    cost="O(nd)",
    source="Damaskinos et al. 2019",
    takes_arrays=True,
    takes_columns=True,
)
def average_nan(stack_nd: Values, *, f: int = 0) -> Aggregated:
    r"""Mean of the present (not NaN) values of each coordinate, 0 where there is none.

    .. math:: \frac{1}{|P_j|} \sum_{i \in P_j} x_{ij}, \quad P_j = \{i : x_{ij} \ne NaN\}

    Tolerates lost datagrams, not Byzantine workers.

    Args:
      stack_nd: float32, float64, float16 or bfloat16, shape [n, d].
      f: ignored.

    Returns:
      Shape [d], same dtype. Infinities propagate.

    Raises:
      ValueError: the stack is not [n, d] with n >= 1.
    Cost: O(nd) time, no memory beyond the input and the output; added in float64.
    Source: Damaskinos et al., AggregaThor: Byzantine Machine Learning via Robust Gradient
      Aggregation, SysML 2019.

    >>> average_nan([[1., float("nan")], [3., float("nan")]]).numpy()
    array([2., 0.], dtype=float32)
    """
    return Aggregated(kernels_for(stack_nd).mean(stack_nd, skip_missing=True), _all_rows(stack_nd))


def _all_rows(stack_nd: Values) -> Values:
    ones_n = np.ones(stack_nd.shape[0])
    return tf.constant(ones_n) if tf.is_tensor(stack_nd) else ones_n
