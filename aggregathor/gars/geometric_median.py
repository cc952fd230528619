"""The geometric median by Weiszfeld's iteration."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from aggregathor.errors import UserError
from aggregathor.gars.base import Aggregated, Values, gar, is_whole
from aggregathor.ops import kernels_for

# In float32, in which they are handed to the op: far above the least, and the greatest.
LEAST_NU, GREATEST = 1e-30, float(np.finfo(np.float32).max)


def _check(*, n: int, f: int, nu: Any, tol: Any, max_iter: Any) -> None:
    fits = _is_number(nu) and _is_number(tol) and LEAST_NU <= nu <= GREATEST
    if not (fits and (0 <= tol <= GREATEST or tol == math.inf)):
        raise UserError(
            f"geometric-median needs {LEAST_NU} <= nu < inf and tol >= 0, in float32, "
            f"got nu={nu!r}, tol={tol!r}"
        )
    if not is_whole(max_iter) or not 0 <= max_iter < 2**31:
        raise UserError(f"geometric-median needs a whole max_iter >= 0, got {max_iter!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


@gar(
    "geometric-median",
    condition="n >= 2f + 1",
    cost="O(nd log^2 n), then O(nd) an iteration",
    source="Chen et al. 2017, Pillutla et al. 2022",
    takes_arrays=True,
    check=_check,
)
def geometric_median(
    stack_nd: Values,
    *,
    f: int,
    nu: float = 1e-6,
    tol: float = 1e-6,
    max_iter: int = 100,
) -> Aggregated:
    r"""The point of least summed distance to the rows, smoothed.

    .. math:: v \leftarrow \frac{\sum_i w_i x_i}{\sum_i w_i}, \quad
              w_i = \frac{1}{\max(\nu s, \lVert v - x_i \rVert_2)}

    s is the typical distance of a row from the start: the lower median of the finite ones. Fewer
    than half of the rows cannot make it larger than those of the others, and gradients c times as
    long give c times the result.

    Starts at the coordinate-wise median and ends when a step is at most ``tol`` times the norm of
    the new point, or after ``max_iter`` steps. Distances skip and rescale for missing values as in
    ``sq_distances``; a row at infinite distance has weight 0; a coordinate's mean is over the rows
    that have it, 0 where none has. Where the start coincides with a row, that row's weight is
    1 / (nu s) and steps are of the length nu s: the result is then the coordinate-wise median.

    Args:
      stack_nd: float32, float64, float16 or bfloat16, shape [n, d].
      f: how many rows may be Byzantine; enters the condition and the start only.
      nu: the smoothing, in units of s, at least 1e-30.
      tol: the relative step at which the iteration ends, >= 0.
      max_iter: the most steps, >= 0.

    Returns:
      Shape [d], same dtype.

    Raises:
      ValueError: n < 2f + 1, or a parameter out of range.
    Resilience: the exact geometric median is off by at most 2 (n-f) / (n-2f) times the farthest
      honest row's distance from the honest mean; this one by what the iteration leaves besides.
    Cost: that of the median, then O(nd) an iteration; O(d) memory beyond the input.
    Source: Chen et al., Distributed Statistical Machine Learning in Adversarial Settings, 2017;
      Pillutla et al., Robust Aggregation for Federated Learning, 2022 (smoothing).

    >>> geometric_median([[0., 0.], [6., 0.], [3., 4.], [2., 2.], [9e9, -9e9]], f=1).numpy()
    array([2.785445, 1.44159 ], dtype=float32)
    """
    kernels = kernels_for(stack_nd)
    return Aggregated(
        *kernels.geometric_median(stack_nd, f=f, nu=nu, tol=tol, max_iter=int(max_iter))
    )
