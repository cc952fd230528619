"""DRACO's repetition code: groups of r workers send the same, and the median of a group decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

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

        Where losses leave no more than 2s copies of a coordinate, s wrong ones could decide their
        median. So it is taken there of the workers that agree with the median elsewhere, and is
        verified if those that may still be wrong cannot decide it, or if most of what is left
        agrees: that is right where 2 wrong + lost < r.

        Args:
          stack_nd: [n, d], what the workers sent; NaN is lost.
          rng: of codes that project; not used.
          block: not used.

        Returns:
          ``unverified`` counts coordinates that losses leave without a verified value in a group,
          and all of them where no majority of a group's copies agrees: within ``AGREE`` of its
          median. Only the former are 0.
        Cost: that of the median, and O(n d).
        """
        n, dim = stack_nd.shape
        r = self.redundancy
        groups = [self._decode(stack_nd[first : first + r]) for first in range(0, n, r)]
        lost_d = np.zeros(dim, bool)
        for group in groups:
            if group.lost_d is not None:
                lost_d |= group.lost_d
        mean_d = self._mean([group.median_d for group in groups])
        mean_d[lost_d] = 0
        divided = tuple(number for number, group in enumerate(groups) if group.is_divided)
        unverified = 1.0 if divided else float(lost_d.mean())
        return Decoded(
            mean_d, np.concatenate([group.usage_r for group in groups]), unverified, divided
        )

    def _decode(self, copies_rd: np.ndarray) -> _Group:
        median_d = self._median(copies_rd)
        agrees_r = np.array([np.array_equal(copy_d, median_d) for copy_d in copies_rd])
        missing_rd = None if agrees_r.all() else np.isnan(copies_rd)
        if missing_rd is None or not missing_rd.any():
            for i in np.flatnonzero(~agrees_r):
                agrees_r[i] = _is_copy(copies_rd[i], median_d)
            is_divided = 2 * int(np.count_nonzero(agrees_r)) <= len(agrees_r)
            return _Group(median_d, agrees_r.astype(float), None, is_divided)
        present_rd = ~missing_rd
        num_present_d = np.count_nonzero(present_rd, axis=0)
        is_thin_d = num_present_d <= 2 * self.most_wrong
        is_here_r = present_rd.any(axis=1)
        for i in np.flatnonzero(~agrees_r & is_here_r):
            here_d = present_rd[i] & ~is_thin_d  # where it has none, nothing speaks against it
            agrees_r[i] = _is_copy(copies_rd[i, here_d], median_d[here_d])
        num_here, num_right = (int(np.count_nonzero(each_r)) for each_r in (is_here_r, agrees_r))
        is_divided = 2 * num_right <= num_here
        used_rd = present_rd & ~is_thin_d & agrees_r[:, None]
        lost_d = is_thin_d
        thin_d = np.flatnonzero(is_thin_d & (num_present_d > 0))
        if len(thin_d) and not is_divided:
            more_wrong = max(0, self.most_wrong - (num_here - num_right))
            median_d, where = median_d.copy(), np.ix_(agrees_r, thin_d)
            median_d[thin_d], used_rd[where], lost_d[thin_d] = self._thin(
                copies_rd[where], more_wrong
            )
        return _Group(median_d, used_rd.mean(axis=1), lost_d, is_divided)

    def _thin(
        self, copies_ad: np.ndarray, more_wrong: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Decodes columns of the rows that may be right, [a, d].

        Args:
          copies_ad: of which losses leave at most 2s in a column.
          more_wrong: how many of the rows may be wrong all the same.

        Returns:
          The medians, [d]; which values agree with them, bool [a, d]; and which columns are not
          verified, bool [d].
        """
        median_d = self._median(copies_ad)
        present_ad = ~np.isnan(copies_ad)
        num_present_d = np.count_nonzero(present_ad, axis=0)
        # A row that is a copy but for its rounding agrees everywhere, others where they are equal.
        agrees_ad = (copies_ad == median_d) & present_ad
        for copy_d, here_d, agrees_d in zip(copies_ad, present_ad, agrees_ad, strict=True):
            if _is_copy(copy_d[here_d], median_d[here_d]):
                agrees_d |= here_d
        has_majority_d = 2 * np.count_nonzero(agrees_ad, axis=0) > num_present_d
        is_sure_d = num_present_d > 2 * more_wrong
        is_sure_d |= has_majority_d & (num_present_d > more_wrong)
        return median_d, agrees_ad, ~is_sure_d

    def _mean(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the mean of rows [d]."""
        mean_d = np.empty_like(rows[0])
        weights = np.full(len(rows), 1 / len(rows))
        self._tools.weighted_sum(rows, weights, linear.all_columns(len(mean_d)), mean_d)
        return mean_d


class _Group(NamedTuple):
    """What is decoded of a group.

    Attributes:
      median_d: [d], of its copies.
      usage_r: [r], share of the coordinates for which each copy was used.
      lost_d: bool [d], of which coordinates losses leave no verified value; None for none.
      is_divided: no majority of the copies agrees.
    """

    median_d: np.ndarray
    usage_r: np.ndarray
    lost_d: np.ndarray | None
    is_divided: bool


def _is_copy(copy_d: np.ndarray, median_d: np.ndarray) -> bool:
    """Returns whether it is within ``AGREE`` of the median."""
    sq_distance = sq_norm = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for begin in range(0, len(copy_d), _CHUNK):
            median = median_d[begin : begin + _CHUNK].astype(np.float64)
            difference = copy_d[begin : begin + _CHUNK] - median
            sq_distance += float(difference @ difference)
            sq_norm += float(median @ median)
    return sq_distance <= AGREE**2 * sq_norm
