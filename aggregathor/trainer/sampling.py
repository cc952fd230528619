"""Which examples each worker draws in each step: a pure function of (seed, worker, step).

Nothing is consumed, so the position in the data is the step's number and a resumed run draws what
an uninterrupted one would have drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aggregathor.errors import UserError, near
from lossympi.rng import generator

PARTITIONS = ("sampling", "shards", "dirichlet")


@dataclass(frozen=True)
class Batches:
    """n workers' batches from one training set.

    Attributes:
      images: [N, ...], any dtype.
      labels: int [N].
      batch_size: examples a worker draws in a step.
      parts: for each worker the indices of its part of the training set.
      with_replacement: draw independently each time; else go through the part in a new random
        order each epoch.
      seed: of all draws.
    """

    images: np.ndarray
    labels: np.ndarray
    batch_size: int
    parts: list[np.ndarray]
    with_replacement: bool
    seed: int

    def at(self, step: int, workers: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns the step's images [n, batch, ...] and labels [n, batch].

        Args:
          step: 0, 1, ...
          workers: whose; all n if not given.
        """
        workers = range(len(self.parts)) if workers is None else workers
        chosen = np.stack([self._indices(worker, step) for worker in workers])
        return self.images[chosen], self.labels[chosen]

    def _indices(self, worker: int, step: int) -> np.ndarray:
        part = self.parts[worker]
        if self.with_replacement:
            random = generator("batches", self.seed, step, worker)
            return part[random.integers(len(part), size=self.batch_size)]
        position = step * self.batch_size + np.arange(self.batch_size)
        chosen = np.empty(self.batch_size, np.int64)
        for epoch in np.unique(position // len(part)):
            here = position // len(part) == epoch
            order = generator("epochs", self.seed, int(epoch), worker).permutation(len(part))
            chosen[here] = part[order[position[here] % len(part)]]
        return chosen


def batches(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    num_workers: int,
    batch_size: int,
    partition: str = "sampling",
    alpha: float = 1.0,
    seed: int = 0,
) -> Batches:
    r"""Divides a training set among workers.

    - "sampling": every worker draws from the whole set, independently (i.i.d.).
    - "shards": disjoint random shards of equal size, gone through epoch by epoch.
    - "dirichlet": disjoint shards of unequal label mix; class c is divided in the proportions
      :math:`p_c \sim \mathrm{Dir}(\alpha, \dots, \alpha)`: the smaller alpha, the more a worker
      sees of few classes only (Hsu et al., 2019). Gone through epoch by epoch.

    Args:
      images: [N, ...].
      labels: int [N].
      num_workers: n.
      batch_size: examples a worker draws in a step.
      partition: one of ``PARTITIONS``.
      alpha: of "dirichlet", > 0.
      seed: of the division and of all draws.

    Raises:
      UserError: an unknown partition, alpha <= 0, or fewer examples than workers.
    """
    if partition not in PARTITIONS:
        raise UserError(f"no partition is called {partition!r}: {near(partition, PARTITIONS)}")
    if len(labels) < num_workers:
        raise UserError(f"{len(labels)} examples cannot be divided among {num_workers} workers")
    random = generator("partition", seed, 0)
    if partition == "sampling":
        parts = [np.arange(len(labels))] * num_workers
    elif partition == "shards":
        parts = np.array_split(random.permutation(len(labels)), num_workers)
    else:
        parts = _dirichlet_parts(labels, num_workers, alpha, random)
    return Batches(images, labels, batch_size, parts, partition == "sampling", seed)


def _dirichlet_parts(
    labels: np.ndarray, num_workers: int, alpha: float, random: np.random.Generator
) -> list[np.ndarray]:
    if not 0 < alpha * num_workers < np.inf:  # NumPy adds them up
        raise UserError(f"the Dirichlet partition needs a finite alpha > 0, got {alpha}")
    pieces: list[list[np.ndarray]] = [[] for _ in range(num_workers)]
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        share = random.dirichlet(np.full(num_workers, alpha))
        cuts = np.round(np.cumsum(share)[:-1] * len(members)).astype(int)
        for piece, taken in zip(pieces, np.split(members, cuts), strict=True):
            piece.append(taken)
    parts = [np.concatenate(piece) for piece in pieces]
    for worker in range(num_workers):
        if len(parts[worker]) == 0:  # a worker without any example could not take part
            largest = max(range(num_workers), key=lambda w: len(parts[w]))
            parts[worker], parts[largest] = parts[largest][:1], parts[largest][1:]
    return parts
