"""What the links share whose gradients come whole or not at all: MPI's and shared memory's."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lossympi.checked_link import CheckedServerLink
from lossympi.closing import closed_by
from lossympi.link import Collected, OnColumns, RoundStats, WorkerStats, aligned_zeros
from lossympi.options import Options
from lossympi.timeout import Terms, Waiting, most_of


class LosslessServerLink(CheckedServerLink):
    """The server's end."""

    def __init__(self, num_workers: int, dim: int, options: Options) -> None:
        """Allocates the stack."""
        # Nothing is learnt: where more than f workers pause, their gradients come all the same.
        cap_s = options.timeout_s
        waiting = Waiting(
            num_workers, patience=options.patience, f=options.f, cap_s=cap_s, floor_s=cap_s
        )
        super().__init__(num_workers, dim, waiting)
        self._options = options
        self._quorum = options.quorum or num_workers
        self._stack_nd = aligned_zeros((num_workers, dim))
        self._open: OpenRound | None = None
        self._desk: Desk | None = None  # of a link that takes worker by worker

    def _collect(self, round: int, on_columns: OnColumns | None) -> Collected:
        """Returns the gradients of `round` that came before every live worker's had, or the quorum
        had, or the others had used up how long they may be waited for, or `timeout_s` had passed.
        """
        terms = self._waiting.terms()
        opened = OpenRound(round, terms)
        self._open = opened
        try:
            closed_by, elapsed_s = self._take_until_closed(opened)
        finally:
            self._open = None
        self._waiting.observe(
            terms,
            live_n=opened.live_n,
            settled_s_n=opened.settled_s_n,
            heard_n=opened.heard_n,
            elapsed_s=elapsed_s,
            closed_by=closed_by,
        )
        stats = opened.stats(closed_by, elapsed_s)
        return Collected(round, self._stack_nd, opened.arrived_n[:, None], self.dim, stats)

    @abstractmethod
    def _take_until_closed(self, opened: OpenRound) -> tuple[str, float]:
        """Writes what comes into the stack and notes it in the round.

        Returns:
          What closed the round, and how many seconds after its opening.
        """

    def _at_desk(self) -> Desk:
        """Returns where gradients come in one by one, from now on."""
        if self._desk is None:
            self._desk = Desk(self._tickets, self._dropped_of)
        return self._desk

    def _waiting_for(self) -> list[int]:
        """Returns the rows of live workers whose gradient has not come."""
        opened = self._open
        if opened is None:
            return np.flatnonzero(~self._desk.arrived_n).tolist() if self._desk else []
        return np.flatnonzero(opened.missing_n()).tolist()

    def _forget(self, row: int) -> None:
        """The open round does not wait for it either."""
        opened = self._open
        if opened is not None:
            opened.live_n[row] = False


@dataclass(eq=False)
class OpenRound:
    """A round that is being collected.

    Attributes:
      round: its number.
      terms: on which it waits.
      live_n: bool [n], whom it waits for; who is known to have ended is taken out.
      opened_s: when it began, on the monotonic clock.
      arrived_n: bool [n], whose gradient is in the stack.
      heard_n: bool [n], of whom a gradient came, be it late.
      settled_s_n: float64 [n], when it had arrived, from the opening; NaN where it has not.
      coming: rows whose gradient MPI is writing, and the requests.
      counts: for each worker, of the messages that were dropped, how many for which reason.
    """

    round: int
    terms: Terms
    live_n: np.ndarray = field(init=False)
    opened_s: float = field(default_factory=time.monotonic)
    arrived_n: np.ndarray = field(init=False)
    heard_n: np.ndarray = field(init=False)
    settled_s_n: np.ndarray = field(init=False)
    coming: dict[int, Any] = field(default_factory=dict)
    counts: list[Counter[str]] = field(init=False)

    def __post_init__(self) -> None:
        """Begins with nothing."""
        self.live_n = np.array(self.terms.live_n)
        n = len(self.live_n)
        self.arrived_n = np.zeros(n, bool)
        self.heard_n = np.zeros(n, bool)
        self.settled_s_n = np.full(n, np.nan)
        self.counts = [Counter() for _ in range(n)]

    def round_of(self, row: int) -> int:
        """Returns the round that a row's gradient is wanted of."""
        return self.round

    def elapsed_s(self) -> float:
        """Returns how long it has been open."""
        return time.monotonic() - self.opened_s

    def arrive(self, row: int) -> None:
        """Notes that a row has its gradient."""
        self.arrived_n[row] = True
        self.heard_n[row] = True
        self.settled_s_n[row] = self.elapsed_s()

    def count(self, row: int, reason: str, count: int = 1) -> None:
        """Counts messages that were dropped."""
        self.counts[row][reason] += count
        # Who comes late lives. What is wrong, or comes early, does not count as a sign of life.
        self.heard_n[row] |= reason == "late" and count > 0

    def missing_n(self) -> np.ndarray:
        """Returns whom it still waits for, bool [n]."""
        return self.live_n & ~self.arrived_n

    def check(self, quorum: int) -> tuple[str | None, float]:
        """Returns what closes the round now, None if nothing does, and when to ask again if nothing
        comes, in seconds from now.
        """
        num_live = int(self.live_n.sum())
        missing = np.flatnonzero(self.missing_n())
        num_arrived = num_live - len(missing)
        elapsed_s = self.elapsed_s()
        left_s = [self.terms.longest_s - elapsed_s]
        is_late = left_s[0] <= 0
        num_given_up = 0
        most = most_of(num_live, self.terms.f)
        if self.terms.f and len(missing) and num_arrived >= most:
            settled_s = np.sort(self.settled_s_n[self.live_n & self.arrived_n])
            waited_s = elapsed_s - max(self.terms.free_s, float(settled_s[most - 1]))
            over_s = [self.terms.allowance_s_n[row] - waited_s for row in missing.tolist()]
            num_given_up = sum(each <= 0 for each in over_s)
            left_s += [each for each in over_s if each > 0]
        reason = closed_by(num_live, num_arrived, num_arrived, quorum, is_late, num_given_up)
        return reason, min(left_s)

    def stats(self, closed_by: str, elapsed_s: float) -> RoundStats:
        """Returns how it went."""
        workers = tuple(
            _worker_stats(*of)
            for of in zip(
                self.arrived_n.tolist(),
                self.heard_n.tolist(),
                self.live_n.tolist(),
                self.terms.allowance_s_n,
                self.settled_s_n.tolist(),
                self.counts,
                strict=True,
            )
        )
        return RoundStats(self.round, closed_by, elapsed_s, self.terms.deadline_s, workers)


@dataclass(eq=False)
class Desk:
    """Where gradients come in one by one.

    Attributes:
      tickets: of each row's next gradient, or of the one that is to be answered.
      counts: for each worker, of the messages that were dropped, how many for which reason.
      arrived_n: bool [n], whose gradient is in its row and not answered.
      coming: rows whose gradient MPI is writing, and the requests.
    """

    tickets: list[int]
    counts: list[Counter[str]]
    arrived_n: np.ndarray = field(init=False)
    coming: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begins with nothing."""
        self.arrived_n = np.zeros(len(self.tickets), bool)

    def round_of(self, row: int) -> int:
        """Returns the ticket that a row's gradient is wanted of."""
        return self.tickets[row]

    def arrive(self, row: int) -> None:
        """Notes that a row has its gradient."""
        self.arrived_n[row] = True

    def count(self, row: int, reason: str, count: int = 1) -> None:
        """Counts messages that were dropped."""
        self.counts[row][reason] += count


def _worker_stats(
    arrived: bool,
    heard: bool,
    live: bool,
    allowance_s: float,
    settled_s: float,
    counts: Mapping[str, int],
) -> WorkerStats:
    """Returns the statistics of a worker whose gradients come whole or not at all."""
    rest = {reason: count for reason, count in counts.items() if count}
    return WorkerStats(
        delivered=float(arrived),
        heard=heard,
        live=live,
        allowance_s=allowance_s,
        settled_s=settled_s,
        accepted=int(arrived),
        late=rest.pop("late", 0),
        duplicate=rest.pop("duplicate", 0),
        rejected=rest,
    )
