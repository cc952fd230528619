"""What is measured at which sizes."""

from __future__ import annotations

from typing import NamedTuple


class Plan(NamedTuple):
    """Sizes and patience of a run.

    Attributes:
      n: gradients of the table; ``f`` of them may be Byzantine.
      f: see n.
      d: coordinates of the table.
      growth_ns: n of the growth, and
      growth_ds: d of the growth.
      repeats: pairs of each measurement, fewer where that takes more than ``patience_s``.
      patience_s: seconds for one measurement, which a single pair may exceed.
    """

    n: int
    f: int
    d: int
    growth_ns: tuple[int, ...]
    growth_ds: tuple[int, ...]
    repeats: int
    patience_s: float


FULL = Plan(
    # The parameter server of AggregaThor's paper, and its network.
    n=19,
    f=4,
    d=1_750_000,
    # 33: sorting changes its method after 32.
    growth_ns=(7, 11, 19, 32, 33, 64, 100, 200),
    growth_ds=(10_000, 90_000, 1_750_000, 25_000_000),
    repeats=20,
    patience_s=4.0,
)
QUICK = Plan(
    n=19,
    f=4,
    d=2_000,
    growth_ns=(7, 19, 32, 33),
    growth_ds=(1_000, 5_000),
    repeats=2,
    patience_s=0.1,
)
