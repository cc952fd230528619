"""DRACO's repetition code: groups of r workers send the same, and the median of a group decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aggregathor.protocols import linear
from aggregathor.protocols.decoded import Decoded

AGREE = 1e-4  # how far a copy may be from its group's median, in norms of that, and be a copy of it
_CHUNK = 1 << 13  # columns at a time, so that a chunk stays in a core's cache

Median = Callable[[np.ndarray], np.ndarray]  # of the present values of each column: [r, d] -> [d]


def median_of_present(copies_rd: np.ndarray) -> np.ndarray:
    """Returns the median of what is not NaN in each column, 0 where nothing is."""
    sorted_rd = np.sort(copies_rd, axis=0)  # NaN last
    present_d = np.count_nonzero(~np.isnan(copies_rd), axis=0)
    low_d, high_d = (
        np.take_along_axis(sorted_rd, np.maximum(at_d, 0)[None], axis=0)[0]
        for at_d in ((present_d - 1) // 2, present_d // 2)
    )
    half_d = np.where(low_d == high_d, low_d, low_d / 2 + high_d / 2)
    return np.where(present_d > 0, half_d, 0).astype(copies_rd.dtype)


class Repetition:
    """Workers l r to l r + r - 1 are group l: all send the mean of the batches of these numbers.

    The decoder takes the coordinate-wise median of each group, and the mean of those. Where more
    than half of a group's copies are equal to the bit, the median is that value exactly, so the
    result is the same to the bit whatever the others send. Where copies differ by rounding, it lies
    within the honest ones' range: there is no tolerance to set.

    Attributes:
      num_workers: n, and how many batches a step has.
      redundancy: r, workers in a group.
      most_wrong: s = floor((r - 1) / 2): as many workers of a group may send anything, fewer where
        some are lost: 2 wrong + lost < r.
      most_lost: how many workers may be lost at the very most, the same number in each group.
      width: values on the wire for each coordinate, 1.
    """

    width = 1

    def __init__(
        self,
        num_workers: int,
        redundancy: int,
        median: Median = median_of_present,
        tools: linear.Tools | None = None,
    ) -> None:
        """Takes n, and r, which divides it.

        Args:
          num_workers: n.
          redundancy: r.
          median: gives the coordinate-wise median of a group's copies [r, d], each NaN left out.
          tools: the work on whole gradients; NumPy's by default.
        """
        if num_workers % redundancy:
            raise ValueError(f"r={redundancy} does not divide n={num_workers}")
        self.num_workers = num_workers
        self.redundancy = redundancy
        self.most_wrong = (redundancy - 1) // 2
        # More than s copies are needed in each group: so many can all be wrong.
        self.most_lost = num_workers // redundancy * (redundancy - self.most_wrong - 1)
        self._median = median
        self._tools = tools or linear.Tools()

    def group_of(self, worker: int) -> int:
        """Returns the number of a worker's group."""
        return worker // self.redundancy

    def batches_of(self, worker: int) -> list[int]:
        """Returns the numbers of the batches that a worker computes."""
        first = self.group_of(worker) * self.redundancy
        return [*range(first, first + self.redundancy)]

    def encode(self, rows: Sequence[np.ndarray], worker: int) -> np.ndarray:
        """Returns what a worker sends of its batches' gradients.

        Args:
          rows: gradient [d] of each batch, in the order of ``batches_of``.
          worker: 0..n-1.

        Returns:
          [d] of their dtype: each times 1 / r, added in float64 in that order and rounded once.
        """
        return self._mean(rows)

    def decode(
        self, stack_nd: np.ndarray, rng: np.random.Generator | None = None, block: int = 1
    ) -> Decoded:
        """Returns the mean over all batches.

        Args:
          stack_nd: [n, d], what the workers sent; NaN is lost.
          rng: of codes that project; not used.
          block: not used.

        Returns:
          ``unverified`` counts coordinates of which a group has no more than s copies, and all of
          them where no majority of a group's copies agrees: within ``AGREE`` of its median. Only
          the former are 0.
        Cost: that of the median, and O(n d).
        """
        n, dim = stack_nd.shape
        r = self.redundancy
        groups = [stack_nd[first : first + r] for first in range(0, n, r)]
        medians = [self._median(copies_rd) for copies_rd in groups]
        usage_n = np.zeros(n)
        lost_d = np.zeros(dim, bool)
        divided = []
        for number, (copies_rd, median_d) in enumerate(zip(groups, medians, strict=True)):
            agrees_r, missing_rd = _compare(copies_rd, median_d)
            present_r = np.ones(r)
            if missing_rd is not None:
                present_r = 1 - missing_rd.mean(axis=1)
                lost_d |= r - np.count_nonzero(missing_rd, axis=0) <= self.most_wrong
            usage_n[number * r : (number + 1) * r] = agrees_r * present_r
            if 2 * np.count_nonzero(agrees_r) <= np.count_nonzero(present_r):
                divided.append(number)
        mean_d = self._mean(medians)
        mean_d[lost_d] = 0
        unverified = 1.0 if divided else float(lost_d.mean())
        return Decoded(mean_d, usage_n, unverified, tuple(divided))

    def _mean(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the mean of rows [d]."""
        mean_d = np.empty_like(rows[0])
        weights = np.full(len(rows), 1 / len(rows))
        self._tools.weighted_sum(rows, weights, linear.all_columns(len(mean_d)), mean_d)
        return mean_d


def _compare(copies_rd: np.ndarray, median_d: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns which copies agree with the median, bool [r], and what is lost, None for nothing."""
    agrees_r = np.array([np.array_equal(copy_d, median_d) for copy_d in copies_rd])
    missing_rd = None
    for i in np.flatnonzero(~agrees_r):
        sq_distance, sq_norm = _distance(copies_rd[i], median_d)
        if np.isnan(sq_distance):
            if missing_rd is None:
                missing_rd = np.isnan(copies_rd)
            here_d = ~missing_rd[i]
            sq_distance, sq_norm = _distance(copies_rd[i, here_d], median_d[here_d])
            if not here_d.any():
                continue
        agrees_r[i] = sq_distance <= AGREE**2 * sq_norm
    return agrees_r, missing_rd


def _distance(copy_d: np.ndarray, median_d: np.ndarray) -> tuple[float, float]:
    """Returns the squared distance, NaN where a value is, and the squared norm of the median."""
    sq_distance = sq_norm = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for begin in range(0, len(copy_d), _CHUNK):
            median = median_d[begin : begin + _CHUNK].astype(np.float64)
            difference = copy_d[begin : begin + _CHUNK] - median
            sq_distance += float(difference @ difference)
            sq_norm += float(median @ median)
    return sq_distance, sq_norm
