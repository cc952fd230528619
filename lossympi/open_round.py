"""What a server knows of a round of whole gradients while it collects them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lossympi.link import RoundStats, WorkerStats


@dataclass(eq=False)
class OpenRound:
    """A round that is being collected.

    Attributes:
      round: its number.
      live_n: bool [n], whom it waits for.
      opened_s: when it began, on the monotonic clock.
      arrived_n: bool [n], whose gradient is in the stack.
      heard_n: bool [n], of whom a gradient came, be it late.
      settled_s_n: float64 [n], when it had arrived, from the opening; NaN where it has not.
      coming: rows whose gradient MPI is writing, and the requests.
      counts: for each worker, of the messages that were dropped, how many for which reason.
    """

    round: int
    live_n: np.ndarray
    opened_s: float = field(default_factory=time.monotonic)
    arrived_n: np.ndarray = field(init=False)
    heard_n: np.ndarray = field(init=False)
    settled_s_n: np.ndarray = field(init=False)
    coming: dict[int, Any] = field(default_factory=dict)
    counts: list[Counter[str]] = field(init=False)

    def __post_init__(self) -> None:
        """Begins with nothing."""
        n = len(self.live_n)
        self.arrived_n = np.zeros(n, bool)
        self.heard_n = np.zeros(n, bool)
        self.settled_s_n = np.full(n, np.nan)
        self.counts = [Counter() for _ in range(n)]

    def elapsed_s(self) -> float:
        """Returns how long it has been open."""
        return time.monotonic() - self.opened_s

    def arrive(self, row: int) -> None:
        """Notes that a row has its gradient."""
        self.arrived_n[row] = True
        self.heard_n[row] = True
        self.settled_s_n[row] = self.elapsed_s()

    def count(self, row: int, reason: str) -> None:
        """Counts a message that was dropped."""
        self.counts[row][reason] += 1
        # Who comes late lives. What is wrong, or comes early, does not count as a sign of life.
        self.heard_n[row] |= reason == "late"

    def missing_n(self) -> np.ndarray:
        """Returns whom it still waits for, bool [n]."""
        return self.live_n & ~self.arrived_n

    def closed_by(self, quorum: int | None) -> str:
        """Returns what closes the round now, "" if nothing does."""
        num_live, num_missing = np.count_nonzero(self.live_n), np.count_nonzero(self.missing_n())
        if num_live and not num_missing:
            return "complete"
        if num_live and num_live - num_missing >= min(quorum or num_live, num_live):
            return "early"
        return ""

    def stats(self, closed_by: str, elapsed_s: float, deadline_s: float) -> RoundStats:
        """Returns how it went."""
        workers = tuple(
            worker_stats(*of)
            for of in zip(
                self.arrived_n.tolist(),
                self.heard_n.tolist(),
                self.live_n.tolist(),
                self.settled_s_n.tolist(),
                self.counts,
                strict=True,
            )
        )
        return RoundStats(self.round, closed_by, elapsed_s, deadline_s, workers)


def worker_stats(
    arrived: bool, heard: bool, live: bool, settled_s: float, counts: Mapping[str, int]
) -> WorkerStats:
    """Returns what is told of a worker whose gradients come whole or not at all."""
    rest = {reason: count for reason, count in counts.items() if count}
    return WorkerStats(
        delivered=float(arrived),
        heard=heard,
        live=live,
        settled_s=settled_s,
        accepted=int(arrived),
        late=rest.pop("late", 0),
        duplicate=rest.pop("duplicate", 0),
        rejected=rest,
    )
