"""Krum and Multi-Krum: the rows that lie closest to their neighbours."""

from __future__ import annotations

from typing import Any

from aggregathor.errors import UserError
from aggregathor.gars.base import Aggregated, Values, gar, is_whole
from aggregathor.gars.distances import mean_of_rows
from aggregathor.ops import kernels_for


@gar(
    "krum",
    condition="n >= 2f + 3",
    minimum="n >= f + 3",
    cost="O(n^2 d)",
    source="Blanchard et al. 2017",
    takes_arrays=True,
)
def krum(stack_nd: Values, *, f: int) -> Aggregated:
    r"""The row lying closest to its n - f - 2 nearest other rows.

    .. math:: \arg\min_i s_i, \quad s_i = \sum_{j \in N_i} \lVert x_i - x_j \rVert_2^2,
              \quad |N_i| = n - f - 2

    N_i are the rows nearest to x_i, never x_i itself. Ties go to the lower row. Missing values:
    see ``sq_distances``; a coordinate that the chosen row lacks is 0 (no update).

    Args:
      stack_nd: float32, float64, float16 or bfloat16, shape [n, d].
      f: how many rows may be Byzantine.

    Returns:
      Shape [d], same dtype: one of the rows.

    Raises:
      ValueError: n < 2f + 3.
      InvalidArgumentError: fewer than n - f - 1 rows are finite, so no score is.
    Resilience: (alpha, f)-Byzantine resilient for n >= 2f + 3 and small enough gradient variance.
    Cost: O(n^2 d) time, O(n^2) memory beyond the input.
    Source: Blanchard et al., Machine Learning with Adversaries, NeurIPS 2017.

    >>> krum([[0.], [1.], [2.], [9.], [9e9]], f=1).numpy()
    array([1.], dtype=float32)
    """
    return _krum(stack_nd, f, 1, "krum")


def _check_m(*, n: int, f: int, m: Any) -> None:
    most = n - f - 2
    if m is None:
        return
    if not is_whole(m) or m < 1:  # whatever n and f are
        raise UserError(f"multi-krum averages a whole number of rows, m >= 1, got m={m!r}")
    if m > most:
        raise UserError(f"multi-krum averages 1 <= m <= n - f - 2 = {most} rows, got m={m}")


@gar(
    "multi-krum",
    condition="n >= 2f + 3",
    minimum="n >= f + 3",
    cost="O(n^2 d)",
    source="Blanchard et al. 2017, Damaskinos et al. 2019",
    takes_arrays=True,
    check=_check_m,
)
def multi_krum(stack_nd: Values, *, f: int, m: int | None = None) -> Aggregated:
    r"""Mean of the m rows of least Krum score (m = 1 is Krum).

    .. math:: \frac{1}{m} \sum_{i \in M} x_i, \quad M = \text{the } m \text{ rows of least } s_i

    Scores and ties as in ``krum``; the mean skips missing values.

    Args:
      stack_nd: float32, float64, float16 or bfloat16, shape [n, d].
      f: how many rows may be Byzantine.
      m: how many rows to average, 1 <= m <= n - f - 2; by default n - f - 2.

    Returns:
      Shape [d], same dtype.

    Raises:
      ValueError: n < 2f + 3, or m out of range.
      InvalidArgumentError: fewer than n - f - 1 rows are finite, so no score is.
    Resilience: weakly Byzantine resilient for n >= 2f + 3 (Damaskinos et al.).
    Cost: O(n^2 d) time, O(n^2) memory beyond the input.
    Source: Blanchard et al., NeurIPS 2017; Damaskinos et al., AggregaThor, SysML 2019.

    >>> multi_krum([[0.], [1.], [2.], [9.], [9e9]], f=1).numpy()
    array([0.5], dtype=float32)
    """
    m = int(stack_nd.shape[0]) - f - 2 if m is None else int(m)
    return _krum(stack_nd, f, m, "multi-krum")


def _krum(stack_nd: Values, f: int, m: int, rule: str) -> Aggregated:
    kernels = kernels_for(stack_nd)
    rows = kernels.krum_select(kernels.sq_distances(stack_nd), f=f, m=m, rule=rule)
    return mean_of_rows(stack_nd, rows)
