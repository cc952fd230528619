"""Finds the workers that a rule leaves out more often than chance explains."""

from __future__ import annotations

import math

import numpy as np

LEVEL = 1e-3  # probability that chance makes anybody a suspect, in a run of any length


class Suspicion:
    r"""Judges the workers by the rounds of one optimizer.

    A worker is *left out* of a round if the rule used less than half as much of its gradient as of
    the average gradient that arrived. That alone says little: Multi-Krum leaves out f + 2 of n in
    every round, and Krum all but one. A worker is *suspected* in a round that leaves it out, once
    it has been left out too often for a rule that leaves out as many at random. The round leaves
    out a share p of those that came. Against that chance stand two explanations: the rule uses the
    worker :math:`\kappa` times as often as others, with :math:`\kappa = 0` (never) and 1/4. Each
    round multiplies what speaks for an explanation by how much likelier that makes the round:

    .. math:: M_t = (M_{t-1} + w_t) \cdot
              \begin{cases} (1 - \kappa (1 - p)) / p & \text{left out} \\
              \kappa & \text{used} \end{cases}, \quad w_t = \frac{1}{t (t + 1)}

    w_t is the part of the level that is spent on an attack that begins in round t; all w_t together
    are 1. By chance :math:`E[M_t] \le 1`. So by Ville's inequality the probability that the mean of
    both ever exceeds n / LEVEL, for any of n honest workers, is at most ``LEVEL``, in a run of any
    length, where the rule treats honest workers alike. At the beginning 11 rounds in a row are
    needed if 4 of 11 are left out, 6 if 1 of 5 is, about 10 n for Krum; after 10^6 rounds 37, 23
    and 34 n. A worker that is used in each 14th round is found as well; only who is used more than
    half as often as chance would have it is not. What speaks against a worker grows no further once
    it is suspected, and falls to a quarter with each round that uses it while it leaves out others.

    A suspect need not be Byzantine: its data may differ from the others'. And not every Byzantine
    worker is suspected: some attacks make the rule choose it. ``average`` uses all rows alike, and
    so suspects nobody.

    A worker from which nothing arrived is *missing* from that round, and not left out.

    Attributes:
      rounds: how many rounds it has seen.
      suspected_n: int64 [n], in how many rounds each was suspected, with the rounds in a row that
        led to the suspicion.
      missing_n: int64 [n], from how many rounds each was missing.
    """

    _KAPPA_2 = np.array([0.0, 0.25])

    def __init__(self, num_workers: int, level: float = LEVEL) -> None:
        """Starts without a suspicion; ``level`` is the probability of a false one in a run."""
        self.rounds = 0
        self.suspected_n = np.zeros(num_workers, np.int64)
        self.missing_n = np.zeros(num_workers, np.int64)
        self._streak_n = np.zeros(num_workers, np.int64)  # rounds in a row that left it out
        # The mean of two, so twice n / level for one of them alone.
        self._log_enough = math.log(len(self._KAPPA_2) * num_workers / level)
        self._log_m_2n = np.full((len(self._KAPPA_2), num_workers), -np.inf)

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
        self._streak_n += left_out_n
        if not left_out_n.any():
            return left_out_n  # p is 0: nobody could have been left out
        before_n = self._is_no_chance()
        self._weigh(left_out_n, used_n, left_out_n.sum() / came_n.sum())
        suspected_n = left_out_n & self._is_no_chance()
        self.suspected_n += suspected_n * np.where(before_n, 1, self._streak_n)
        return suspected_n

    def _weigh(self, left_out_n: np.ndarray, used_n: np.ndarray, share: float) -> None:
        t = float(self.rounds)
        grown_2n = np.logaddexp(self._log_m_2n, -math.log(t * (t + 1)))
        with np.errstate(divide="ignore"):
            if_used_2 = np.log(self._KAPPA_2)
        if_left_out_2 = np.log((1 - self._KAPPA_2 * (1 - share)) / share)
        grown_2n[:, left_out_n] += if_left_out_2[:, None]
        grown_2n[:, used_n] += if_used_2[:, None]
        self._log_m_2n = np.minimum(grown_2n, self._log_enough)

    def _is_no_chance(self) -> np.ndarray:
        return np.logaddexp.reduce(self._log_m_2n, axis=0) >= self._log_enough


class Rejections:
    r"""Judges the workers by the gradients that an asynchronous protocol rejects.

    Where all workers are alike, a gradient is rejected with some probability p, whose it may be. p
    is estimated by the n - f workers of which the least share is rejected, and two standard errors
    are added to that. By Chernoff's bound a share s > p of m gradients is rejected by chance with a
    probability of at most :math:`e^{-m D(s, p)}`, with D the Kullback-Leibler divergence. A worker
    is *suspected* while that is below :math:`\text{LEVEL} / (n m (m + 1))`: the sum of these over
    all m and all workers is LEVEL. As p is an estimate, it is not exactly the probability of a
    false suspicion. Reasons that say nothing about a gradient itself, such as that its worker was
    heard too often, do not count.

    Attributes:
      arrivals_n: int64 [n], how many gradients came of each worker.
      rejected_n: int64 [n], how many of them were rejected for what they are.
      suspected_n: int64 [n], at how many of its gradients each was suspected.
    """

    def __init__(self, num_workers: int, f: int, level: float = LEVEL) -> None:
        """Starts without a suspicion."""
        self.arrivals_n = np.zeros(num_workers, np.int64)
        self.rejected_n = np.zeros(num_workers, np.int64)
        self.suspected_n = np.zeros(num_workers, np.int64)
        self._alike = max(1, num_workers - f)
        self._level = level

    def see(self, row: int, rejected: bool) -> np.ndarray:
        """Adds a gradient; returns which workers are suspected now, bool [n]. O(n log n)."""
        self.arrivals_n[row] += 1
        self.rejected_n[row] += rejected
        suspected_n = self._suspected()
        self.suspected_n[row] += suspected_n[row]
        return suspected_n

    def _suspected(self) -> np.ndarray:
        m_n = self.arrivals_n
        share_n = self.rejected_n / np.maximum(m_n, 1)
        came = np.flatnonzero(m_n)
        least = came[np.argsort(share_n[came], kind="stable")][: self._alike]
        m = m_n[least].sum()
        mean = (self.rejected_n[least].sum() + 1) / (m + 2)
        p = min(mean + 2 * math.sqrt(mean * (1 - mean) / (m + 2)), 1 - 1e-9)
        with np.errstate(divide="ignore", invalid="ignore"):
            accepted_n = np.where(share_n < 1, (1 - share_n) * np.log((1 - share_n) / (1 - p)), 0)
            divergence_n = np.where(share_n > 0, share_n * np.log(share_n / p), 0) + accepted_n
        enough_n = np.log(len(m_n) * np.maximum(m_n, 1) * (m_n + 1.0) / self._level)
        return (share_n > p) & (m_n * divergence_n > enough_n)


def left_out(usage_n: np.ndarray, delivered_n: np.ndarray) -> np.ndarray:
    """Returns which workers the rule left out of a round, bool [n]; see ``Suspicion``."""
    came_n = delivered_n > 0
    if not came_n.any():
        return came_n
    usage_n = np.where(np.isfinite(usage_n), usage_n, 0)
    # A rule that judges each coordinate can use half of a row if half of it arrived.
    return came_n & (usage_n < delivered_n * usage_n[came_n].mean() / 2)
