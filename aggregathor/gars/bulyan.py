"""Bulyan: rows chosen by repeated Krum, then a trimmed mean of each coordinate."""

from __future__ import annotations

from typing import Any

from aggregathor.errors import UserError, near
from aggregathor.gars.base import Aggregated, Values, gar
from aggregathor.gars.distances import usage_of
from aggregathor.ops import kernels_for

VARIANTS = ("aggregathor", "paper")


def _check_variant(*, n: int, f: int, variant: Any) -> None:
    if variant not in VARIANTS:
        raise UserError(f"bulyan: variant={variant!r}: {near(str(variant), VARIANTS)}")


@gar(
    "bulyan",
    condition="n >= 4f + 3",
    minimum="n >= 2f + 3",
    cost="O(n^2 d)",
    source="El Mhamdi et al. 2018",
    takes_arrays=True,
    check=_check_variant,
)
def bulyan(stack_nd: Values, *, f: int, variant: str = "aggregathor") -> Aggregated:
    r"""Coordinate-wise mean of the beta candidates nearest to the candidates' upper median.

    .. math:: \frac{1}{\beta} \sum_{c \in N} c, \quad N = \text{the } \beta = \theta - 2f
              \text{ candidates nearest to the upper median of all } \theta

    The candidates depend on the variant:

    - "aggregathor": theta = n - 2f - 2. At iteration k the candidate is the mean of the m - k rows
      of least Krum score, m = n - f - 2, and the row of least score leaves. Scores are kept up to
      date, not made anew: of each row's distances to the n - 1 others the f + 1 largest count as 0
      throughout, and so does the leaving row's. Krum's own condition holds at every iteration.
    - "paper": theta = n - 2f. The candidate is Krum's choice among the n_k rows that remain, with
      scores over max(1, n_k - f - 2) neighbours, and leaves. Where that is one neighbour, two rows
      nearest to each other tie, and the lower is taken.

    Ties go to the lower row. Means skip missing values; where f > 0 and loss leaves k <= 2f
    candidates, the result is their upper median, and 0 where none is present.

    Args:
      stack_nd: float32, float64, float16 or bfloat16, shape [n, d].
      f: how many rows may be Byzantine.
      variant: "aggregathor" or "paper".

    Returns:
      Shape [d], same dtype.

    Raises:
      ValueError: n < 4f + 3, or the variant is unknown.
      InvalidArgumentError: fewer than n - f - 1 rows are finite, so no score is.
    Resilience: strongly Byzantine resilient for n >= 4f + 3 (El Mhamdi et al.).
    Cost: O(n^2 d) time, O(n^2) memory beyond the input.
    Source: El Mhamdi et al., The Hidden Vulnerability of Distributed Learning in Byzantium, ICML
      2018; the default variant: Damaskinos et al., AggregaThor, SysML 2019.

    >>> bulyan([[0.], [1.], [2.], [3.], [4.], [5.], [9e9]], f=1).numpy()
    array([2.5], dtype=float32)
    """
    kernels = kernels_for(stack_nd)
    groups = kernels.bulyan_select(kernels.sq_distances(stack_nd), f=f, variant=variant)
    grad_d = kernels.bulyan_tail(stack_nd, groups, f=f)
    return Aggregated(grad_d, usage_of(stack_nd, groups))
