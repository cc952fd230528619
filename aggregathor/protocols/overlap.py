"""A coordinate-wise rule at work on what is there, while the rest of a round arrives."""

from __future__ import annotations

import numpy as np

from aggregathor.gars import Aggregated, Rule


class StreamingAggregate:
    """The aggregate of a round, made column by column as the rows come to have them.

    It is the aggregate of the whole stack to the last bit: no column depends on another, and what
    has arrived in a round is written once.
    """

    def __init__(self, rule: Rule, f: int, dim: int) -> None:
        """Takes a rule that goes by columns, f, and d."""
        self._rule = rule
        self._f = f
        self._grad_d = np.empty(dim, np.float32)  # memory that is not touched before it is needed
        self._made: list[np.ndarray] = []

    def __call__(self, stack_nd: np.ndarray, ranges_k2: np.ndarray) -> None:
        """Aggregates columns that all rows have: ranges [begin, end), int64 [k, 2]."""
        self._aggregate(stack_nd, ranges_k2)
        self._made.append(ranges_k2)

    def has_begun(self) -> bool:
        """Whether there is anything to finish."""
        return bool(self._made)

    def finish(self, stack_nd: np.ndarray) -> Aggregated:
        """Aggregates all other columns.

        Returns:
          The aggregate, and how much of each row it uses if that does not depend on the columns.
        """
        return self._aggregate(stack_nd, others(self._made, stack_nd.shape[1]))

    def _aggregate(self, stack_nd: np.ndarray, ranges_k2: np.ndarray) -> Aggregated:
        return self._rule.aggregate_columns(stack_nd, ranges_k2, self._grad_d, f=self._f)


def others(ranges: list[np.ndarray], dim: int) -> np.ndarray:
    """Returns the columns of 0..dim in no range: ranges [begin, end), int64 [k, 2], increasing."""
    ranges_k2 = np.concatenate(ranges)
    ranges_k2 = ranges_k2[np.argsort(ranges_k2[:, 0])]
    begin_k, end_k = np.append(0, ranges_k2[:, 1]), np.append(ranges_k2[:, 0], dim)
    between = begin_k < end_k
    return np.stack([begin_k[between], end_k[between]], axis=1)
