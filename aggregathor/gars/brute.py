"""Brute (minimum-diameter averaging): the tightest n - f rows."""

from __future__ import annotations

from aggregathor.gars.base import Aggregated, Values, gar
from aggregathor.gars.distances import mean_of_rows
from aggregathor.ops import kernels_for


@gar(
    "brute",
    condition="n >= 2f + 1",
    minimum="n >= f + 1",
    cost="O(n^2 d + 1.47^f n^2 log n)",
    source="El Mhamdi et al. 2018",
    takes_arrays=True,
)
def brute(stack_nd: Values, *, f: int) -> Aggregated:
    r"""Mean of the n - f rows of least diameter, also called MDA.

    .. math:: \frac{1}{n-f} \sum_{i \in S} x_i, \quad
              S = \arg\min_{|S| = n-f} \max_{i,j \in S} \lVert x_i - x_j \rVert_2

    Exact: which rows to drop at a given diameter is a vertex cover of the pairs that are farther
    apart, found by branch and bound, and the least diameter by bisection over the distances.
    Ties: the lexicographically first subset; they are common, as a subset's diameter is that of its
    two farthest rows alone. Missing values: see ``sq_distances``; the mean skips
    them.

    Args:
      stack_nd: float32, float64, float16 or bfloat16, shape [n, d].
      f: how many rows may be Byzantine.

    Returns:
      Shape [d], same dtype.

    Raises:
      ValueError: n < 2f + 1.
      InvalidArgumentError: fewer than n - f rows are at finite distances of each other.
    Cost: O(n^2 d) time for the distances, at most O(1.47^f n^2 log n) for the subset; O(n^2 + n f)
      memory, never C(n, f). f colluders choose which pairs are far apart, but all of these are
      covered by themselves: at f = 28 of 57, the worst of random such choices takes 3 ms, while the
      bound allows for minutes. From f = 40 on take a rule without a search where this matters.
    Source: El Mhamdi et al., ICML 2018.

    >>> brute([[0.], [1.], [9e9]], f=1).numpy()
    array([0.5], dtype=float32)
    """
    kernels = kernels_for(stack_nd)
    rows = kernels.brute_select(kernels.sq_distances(stack_nd), f=f)
    return mean_of_rows(stack_nd, rows)
