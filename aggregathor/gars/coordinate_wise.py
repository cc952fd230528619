"""Rules that treat every coordinate on its own: each is the mean of a window of sorted values.

Of a coordinate's n values the k that are present (not NaN) are sorted, infinities at the ends.
Where loss leaves k <= 2f, each rule falls back to the median of what is present, and to 0 (no
update) where nothing is, or where that median is infinite because bad values may be the majority.
"""

from __future__ import annotations

import functools
from typing import Any

from aggregathor.errors import UserError, near
from aggregathor.gars.base import Aggregated, Values, gar
from aggregathor.ops import kernels_for

MEDIANS = {None: "median", "aggregathor": "median-upper", "torch": "median-lower"}


def _check_compat(*, n: int, f: int, compat: Any) -> None:
    if not (compat is None or isinstance(compat, str)) or compat not in MEDIANS:
        raise UserError(f"median: compat={compat!r}: {near(str(compat), filter(None, MEDIANS))}")


@gar(
    "median",
    condition="n >= 2f + 1",
    coordinate_wise=True,
    cost="O(nd log^2 n)",
    source="Yin et al. 2018",
    takes_arrays=True,
    takes_columns=True,
    check=_check_compat,
)
def median(stack_nd: Values, *, f: int, compat: str | None = None) -> Aggregated:
    r"""Coordinate-wise median of the present values.

    .. math:: \tfrac12 (x_{(\lfloor (k-1)/2 \rfloor)} + x_{(\lfloor k/2 \rfloor)})

    Args:
      stack_nd: float32, float64, float16 or bfloat16, shape [n, d].
      f: how many rows may be Byzantine; enters the condition only.
      compat: which middle an even k takes: None the mean of both, "aggregathor" the upper one,
        "torch" the lower one.

    Returns:
      Shape [d], same dtype; within the range of the honest values.

    Raises:
      ValueError: n < 2f + 1, or compat is unknown.
    Resilience: every coordinate lies between two honest values for n >= 2f + 1.
    Cost: O(n log^2 n) compare-exchanges a coordinate, 64 coordinates at a time; memory O(n).
    Source: Yin et al., Byzantine-Robust Distributed Learning, ICML 2018.

    >>> median([[0.], [1.], [9e9]], f=1).numpy()
    array([1.], dtype=float32)
    """
    return _window_mean(stack_nd, MEDIANS[compat], f)


@gar(
    "trimmed-mean",
    condition="n >= 2f + 1",
    coordinate_wise=True,
    cost="O(nd log^2 n)",
    source="Yin et al. 2018",
    takes_arrays=True,
    takes_columns=True,
)
def trimmed_mean(stack_nd: Values, *, f: int) -> Aggregated:
    r"""Mean of what is left when the f lowest and the f highest values of a coordinate are dropped.

    .. math:: \frac{1}{k-2f} \sum_{i=f}^{k-f-1} x_{(i)}

    Args:
      stack_nd: float32, float64, float16 or bfloat16, shape [n, d].
      f: how many rows may be Byzantine, and how many values are dropped at each end.

    Returns:
      Shape [d], same dtype; within the range of the honest values.

    Raises:
      ValueError: n < 2f + 1.
    Cost: O(n log^2 n) compare-exchanges a coordinate, 64 coordinates at a time; memory O(n).
    Source: Yin et al., ICML 2018; Xie et al., Phocas, 2018, definition 7.

    >>> trimmed_mean([[0.], [1.], [2.], [3.], [9e9]], f=1).numpy()
    array([2.], dtype=float32)
    """
    return _window_mean(stack_nd, "trimmed-mean", f)


@gar(
    "meamed",
    condition="n >= 2f + 1",
    coordinate_wise=True,
    cost="O(nd log^2 n)",
    source="Xie et al. 2018",
    takes_arrays=True,
    takes_columns=True,
)
def meamed(stack_nd: Values, *, f: int) -> Aggregated:
    r"""Mean of the k - f values nearest to the coordinate's median ("mean around the median").

    .. math:: \frac{1}{k-f} \sum_{i \in N} x_i, \quad N = \text{the } k-f
              \text{ nearest to } \mathrm{med}(x)

    Called averaged-median by AggregaThor. Of two equally near values the lower row's is taken.

    Args:
      stack_nd: float32, float64, float16 or bfloat16, shape [n, d].
      f: how many rows may be Byzantine, and how many values are left out.

    Returns:
      Shape [d], same dtype.

    Raises:
      ValueError: n < 2f + 1.
    Cost: O(n log^2 n) compare-exchanges a coordinate, 64 coordinates at a time; memory O(n).
      Where values tie, another O(n); O(n f) if many distances differ by less than a
      double can represent.
    Source: Xie et al., Generalized Byzantine-tolerant SGD, 2018.

    >>> meamed([[0.], [1.], [3.], [9e9]], f=1).numpy()
    array([1.3333334], dtype=float32)
    """
    return _window_mean(stack_nd, "meamed", f)


@gar(
    "phocas",
    condition="n >= 2f + 1",
    coordinate_wise=True,
    cost="O(nd log^2 n)",
    source="Xie et al. 2018 (Phocas)",
    takes_arrays=True,
    takes_columns=True,
)
def phocas(stack_nd: Values, *, f: int) -> Aggregated:
    r"""Mean of the k - f values nearest to the coordinate's f-trimmed mean.

    .. math:: \frac{1}{k-f} \sum_{i \in N} x_i, \quad N = \text{the } k-f
              \text{ nearest to } \mathrm{Trmean}_f(x)

    Of two equally near values the lower row's is taken.

    Args:
      stack_nd: float32, float64, float16 or bfloat16, shape [n, d].
      f: how many rows may be Byzantine, and how many values are left out.

    Returns:
      Shape [d], same dtype.

    Raises:
      ValueError: n < 2f + 1.
    Cost: O(n log^2 n) compare-exchanges a coordinate, 64 coordinates at a time; memory O(n).
      Where values tie, another O(n); O(n f) if many distances differ by less than a
      double can represent.
    Source: Xie et al., Phocas: dimensional Byzantine-resilient stochastic gradient descent, 2018,
      definition 8.

    >>> phocas([[0.], [1.], [3.], [9e9]], f=1).numpy()
    array([1.3333334], dtype=float32)
    """
    return _window_mean(stack_nd, "phocas", f)


def _window_mean(stack_nd: Values, window: str, f: int) -> Aggregated:
    window_mean = functools.partial(kernels_for(stack_nd).window_mean, stack_nd, window=window, f=f)
    # Which row a value came from takes some 10 times as long as the value.
    return Aggregated(window_mean(with_share=False)[0], lambda: window_mean(with_share=True)[1])
