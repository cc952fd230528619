"""Finds the workers that a rule leaves out in more rounds in a row than chance explains."""

from __future__ import annotations

import math

import numpy as np

CHANCE = 1e-6  # a probability below this is taken to be no chance


class Suspicion:
    """Judges the workers by the rounds of one optimizer.

    A worker is *left out* of a round if the rule used less than half as much of its gradient as of
    the average gradient that arrived. That alone says little: Multi-Krum leaves out f + 2 of n in
    every round, and Krum all but one. A worker is *suspected* once it has been left out in so many
    rounds in a row that a rule which leaves out as many at random would do that with a probability
    of one in a million: 14 rounds if 4 of 11 are left out, 9 if 1 of 5 is, about 14 n for Krum. The
    suspicion ends when the rule uses the worker again.

    A suspect need not be Byzantine: its data may differ from the others'. And not every Byzantine
    worker is suspected: some attacks make the rule choose it. ``average`` uses all rows alike, and
    so suspects nobody.

    A worker from which nothing arrived is *missing* from that round, and not left out.

    Attributes:
      rounds: how many rounds it has seen.
      suspected_n: int64 [n], in how many rounds each was suspected, with the rounds that led to the
        suspicion.
      missing_n: int64 [n], from how many rounds each was missing.
    """

    def __init__(self, num_workers: int) -> None:
        """Starts without a suspicion."""
        self.rounds = 0
        self.suspected_n = np.zeros(num_workers, np.int64)
        self.missing_n = np.zeros(num_workers, np.int64)
        self._streak_n = np.zeros(num_workers, np.int64)  # rounds in a row that left it out
        self._log_chance_n = np.zeros(num_workers)  # of that streak

    def see(self, usage_n: np.ndarray, delivered_n: np.ndarray) -> np.ndarray:
        """Adds a round; returns which workers are suspected in it, bool [n]. O(n).

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
    # A rule that judges each coordinate can use half of a row if half of it arrived.
    return came_n & (usage_n < delivered_n * usage_n[came_n].mean() / 2)
