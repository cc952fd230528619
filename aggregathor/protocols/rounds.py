"""The server's half of rounds: collect all, aggregate once, answer all with one model.

    workers' halves  ---->  link.collect -> fill -> rule (state, context) -> [optimizer]
                     <----  link.broadcast  <-  parameters

Synchronous SGD. It owns no socket, clock, model or optimizer: the link, the clock and what reads
the parameters are handed in; whoever drives it applies the aggregate and publishes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np

from aggregathor.errors import UserError
from aggregathor.gars import Aggregated, State
from aggregathor.protocols.aggregation import Aggregation, RuleError
from aggregathor.protocols.report import RoundReport
from lossympi import Collected, RoundStats, ServerLink
from lossympi.link import NativeRound


class TrainingStopped(UserError):
    """The rule's condition holds no longer on what arrives."""


class RefusedError(RuleError):
    """A round to which the rule cannot be applied.

    Attributes:
      report: of the round, with an aggregate of zeros that was made of no row.
    """

    report: RoundReport


class Observer(Protocol):
    """What looks on at a server's rounds."""

    def arrived(self, stats: RoundStats) -> None:
        """A round was closed."""

    def refused(self) -> None:
        """The rule could not be applied to it."""

    def published(self, report: RoundReport) -> RoundReport:
        """It was published; returns the report with what the observer adds."""


class RoundsServer:
    """One server's rounds over a link.

    Attributes:
      round: the next one to collect.
      aggregation: the fill and the rule, with their state.
    """

    def __init__(
        self,
        link: ServerLink,
        aggregation: Aggregation,
        read: Callable[[], np.ndarray],
        *,
        observer: Observer | None = None,
        corrupt: Callable[[Collected], None] | None = None,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
        first_limit_s: float = 0.0,
        limit_s: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins with round 0.

        Args:
          link: the server's end.
          aggregation: the fill and the rule.
          read: gives the parameters as they are, [d] of the link's dtype.
          observer: sees every round.
          corrupt: changes what has arrived, as a faulty network or memory does: in experiments.
          waiting: gives a context in which rounds are collected and aggregated.
          first_limit_s: how long ``aggregate`` tries where the rule can be applied to no round,
            before the first that it can be applied to.
          limit_s: the same for later rounds.
          now: the clock, in seconds.
        """
        self.round = 0
        self.aggregation = aggregation
        self._link = link
        self._read = read
        self._observer = observer
        self._corrupt = corrupt
        self._waiting = waiting
        self._limit_s, self._later_limit_s = first_limit_s, limit_s
        self._now = now
        self._report: RoundReport | None = None  # of the round that is open
        self._forgotten: set[int] = set()
        self._leaving = False

    @property
    def dim(self) -> int:
        """d, floats in a gradient."""
        return self._link.dim

    def collect(self) -> RoundReport:
        """Collects one round and applies the rule to it; ``publish`` comes next, in any case.

        Raises:
          RefusedError: the rule cannot be applied to what arrived.
        """
        # Corruption hits what has arrived, so until then no column is what it will be.
        streaming = self.aggregation.streaming() if self._corrupt is None else None
        self._report = None
        with self._waiting():
            collected = self._link.collect(self.round, streaming)
            if self._observer is not None and collected.stats is not None:
                self._observer.arrived(collected.stats)
            if self._corrupt is not None:
                self._corrupt(collected)
            self.aggregation.fill(collected)
            missing = np.flatnonzero(collected.delivered_n == 0)
            context = self.aggregation.context(self.round, self._read)
            try:
                aggregated = self.aggregation.aggregate(
                    collected.stack_nd, missing, context, streaming
                )
            except RuleError as error:
                if self._observer is not None:
                    self._observer.refused()
                raise self._refused(error, collected) from None
        self._report = self._report_of(collected, aggregated)
        return self._report

    def aggregate(self) -> RoundReport:
        """Collects rounds until the rule can be applied to one; ``publish`` comes next.

        The model of a round to which it cannot be applied are the parameters as they are.

        Raises:
          TrainingStopped: the rule could be applied to none for too long, or cannot be any more.
        """
        begun_s = self._now()
        while True:
            try:
                report = self.collect()
                break
            except RefusedError as error:
                is_late = self._now() - begun_s >= self._limit_s
                if self._leaving or is_late or self._is_hopeless():
                    raise TrainingStopped(f"round {self.round}: {error}") from None
            self.publish(self._read())
        self._limit_s = self._later_limit_s
        return report

    def publish(self, params_d: np.ndarray) -> RoundReport | None:
        """Broadcasts the model of the round, [d], and ends the round.

        ``params_d`` must stay as it is until the next call.

        Returns:
          The round's report, with what the observer adds, for which no worker has to wait; None for
          a round that was refused.
        """
        self._link.broadcast(self.round, params_d)
        self.round += 1
        report, self._report = self._report, None
        if report is None or self._observer is None:
            return report
        return self._observer.published(report)

    def resume(self) -> None:
        """Lets all workers go on together, with a round for which none of them has sent."""
        self.round += 1

    def rounds(self) -> list[int]:
        """Returns the round of each worker's next gradient."""
        return [self.round] * self._link.num_workers

    def state(self) -> State:
        """Returns what the next rounds depend on, beside parameters and optimizer."""
        return {**self.aggregation.state(), "round": np.array(self.round, np.int64)}

    def restore(self, state: State) -> None:
        """Goes on from what ``state`` gave."""
        self.aggregation.restore(state)
        self.round = int(state["round"])

    def native(self, fail: Callable[[Exception], None]) -> NativeRound | None:
        """Returns where C may write the next model for ``publish``, if the link has such a place.

        ``fail`` is of the other half: nothing of it can fail.
        """
        return self._link.native()

    def waiting_for(self) -> list[int]:
        """Returns the rows that the open round waits for; from any thread."""
        return self._link.waiting_for()

    def forget(self, row: int) -> None:
        """Waits no longer for a worker whose process has ended; from any thread."""
        self._forgotten.add(row)
        self._link.forget(row)

    def leave(self) -> None:
        """Lets a round that another thread is in end soon."""
        self._leaving = True

    def close(self) -> None:
        """Ends the link."""
        self._link.close()

    def _is_hopeless(self) -> bool:
        """Whether the rule cannot be applied any more, as too many processes have ended."""
        if len(self._forgotten) <= self.aggregation.setting.f:
            return False
        try:
            self.aggregation.check(self.aggregation.setting.num_workers - len(self._forgotten))
        except UserError:
            return True
        return False

    def _report_of(self, collected: Collected, aggregated: Aggregated) -> RoundReport:
        return RoundReport(
            collected.stack_nd[:, :: self.aggregation.width],
            np.asarray(aggregated.grad_d),
            np.asarray(aggregated.usage_n),
            collected.delivered_n,
            collected.stats,
            unverified=self.aggregation.unverified,
        )

    def _refused(self, error: RuleError, collected: Collected) -> RefusedError:
        n, values = collected.stack_nd.shape
        zeros_d = np.zeros(values // self.aggregation.width, collected.stack_nd.dtype)
        refused = RefusedError(str(error))
        refused.report = self._report_of(collected, Aggregated(zeros_d, np.zeros(n)))
        return refused
