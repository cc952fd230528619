"""What the rules that compare rows share: distances, and which rows they chose."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from aggregathor.gars.base import COMPUTED_IN, Aggregated, Values, as_stack
from aggregathor.ops import kernels, kernels_for


def sq_distances(stack_nd: tf.Tensor) -> tf.Tensor:
    r"""Squared Euclidean distances between the rows, over what both rows have.

    .. math:: D_{ij} = \frac{d}{|P_{ij}|} \sum_{c \in P_{ij}} (x_{ic} - x_{jc})^2

    P_ij are the coordinates that are NaN in neither row. A row with less than half of its
    coordinates, or with an infinity in any, is infinitely far from all, and so is any pair whose
    sum is not finite. Differences are squared and added, never a Gram matrix, over parts of d that
    do not depend on the number of threads: float64 rows in float64; float32 rows in float32 runs
    that are added in float64, with a relative error of at most 1.1e-6 in each distance.

    Args:
      stack_nd: float32, float64, float16 or bfloat16, shape [n, d].

    Returns:
      float64, shape [n, n], symmetric, diagonal 0.

    Raises:
      ValueError: the stack is not [n, d] with n >= 1 and d >= 1.
    """
    stack_nd, _ = as_stack("sq_distances", stack_nd)
    return kernels().sq_distances(tf.cast(stack_nd, COMPUTED_IN[stack_nd.dtype]), scaled=False)


def mean_of_rows(stack_nd: Values, rows: Values) -> Aggregated:
    """Averages the present values of the chosen rows, in the order in which they are given."""
    grad_d = kernels_for(stack_nd).mean_of_rows(stack_nd, rows)
    return Aggregated(grad_d, usage_of(stack_nd, rows))


def usage_of(stack_nd: Values, rows: Values) -> Values:
    """Returns float64 [n]: 1 for the rows named at least once, 0 for the rest; -1 names none."""
    if isinstance(rows, np.ndarray):
        usage_n = np.zeros(len(stack_nd))
        usage_n[rows[rows >= 0]] = 1
        return usage_n
    flat = tf.reshape(rows, [-1])
    # Drops what is negative, and takes no more memory than the rows do.
    times_n = tf.math.unsorted_segment_sum(tf.ones_like(flat), flat, int(stack_nd.shape[0]))
    return tf.cast(tf.minimum(times_n, 1), tf.float64)
