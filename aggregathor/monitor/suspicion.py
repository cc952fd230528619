"""Which workers a rule leaves out so many times in a row that it is no chance."""

from __future__ import annotations

import math

import numpy as np

CHANCE = 1e-6  # below which it is none


class Suspicion:
    """Judges the workers by the rounds of one optimizer.

    A worker is *left out* of a round where the rule used less than half as much of what came of it
    as of the average gradient that came. That alone says little: Multi-Krum leaves out f + 2 of n
    in every round, and Krum all but one. A worker is *suspected* once it has been left out of so
    many rounds in a row that a rule which draws as many at random would do that in one case of a
    million: 14 rounds where 4 of 11 are left out, 9 where 1 of 5 is, some 14 n for Krum. It is no
    longer when the rule uses it again.

    A suspect need not be Byzantine: its data may differ from the others'. Nor is a Byzantine worker
    always suspected: some attacks make the rule choose it. ``average`` uses all rows alike, and so
    suspects nobody.

    A worker of which nothing came is *missing* from that round, which is not held against it.

    Attributes:
      rounds: how many it has seen.
      suspected_n: int64 [n], of how many rounds each was left out in those that count: once it is
        suspected, all that led to it do.
      missing_n: int64 [n], from how many rounds each was missing.
    """

    def __init__(self, num_workers: int) -> None:
        """Begins without a suspicion."""
        self.rounds = 0
        self.suspected_n = np.zeros(num_workers, np.int64)
        self.missing_n = np.zeros(num_workers, np.int64)
        self._streak_n = np.zeros(num_workers, np.int64)  # rounds in a row without it
        self._log_chance_n = np.zeros(num_workers)  # of that

    def see(self, usage_n: np.ndarray, delivered_n: np.ndarray) -> np.ndarray:
        """Takes in one round; returns which workers are suspected in it, bool [n]. O(n).

        Args:
          usage_n: how much of each row the rule used, 0..1.
          delivered_n: share of each worker's coordinates that arrived, 0..1.
        """
        came_n = delivered_n > 0
        left_out_n = left_out(usage_n, delivered_n)
        used_n = came_n & ~left_out_n
        self.rounds += 1
        self.missing_n += ~came_n
        self._streak_n[used_n] = 0
        self._log_chance_n[used_n] = 0
        if not left_out_n.any():
            return left_out_n
        before_n = self._is_no_chance()
        self._streak_n += left_out_n
        self._log_chance_n[left_out_n] += math.log(left_out_n.sum() / came_n.sum())
        suspected_n = left_out_n & self._is_no_chance()
        self.suspected_n += suspected_n * np.where(before_n, 1, self._streak_n)
        return suspected_n

    def _is_no_chance(self) -> np.ndarray:
        return self._log_chance_n < math.log(CHANCE)


def left_out(usage_n: np.ndarray, delivered_n: np.ndarray) -> np.ndarray:
    """Returns which workers the rule left out of a round, bool [n]; see ``Suspicion``."""
    came_n = delivered_n > 0
    if not came_n.any():
        return came_n
    usage_n = np.where(np.isfinite(usage_n), usage_n, 0)
    # Of a row of which half has come, a rule that judges each coordinate can use half.
    return came_n & (usage_n < delivered_n * usage_n[came_n].mean() / 2)
