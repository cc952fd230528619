"""The server's half of arrivals: take whoever comes, offer it to the rule, maybe step, answer it.

    worker's half  ---->  link.take -> arrival rule -> [optimizer]
                   <----  link.reply  <-  parameters

Asynchronous SGD: no worker waits for another. The server alone keeps which version of the model it
has handed to whom, and so how stale a gradient is; what a worker says of that is never asked for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn, Protocol

import numpy as np

from aggregathor.gars import State
from aggregathor.protocols.aggregation import RuleError
from aggregathor.protocols.offers import ArrivalRule, Offer
from aggregathor.protocols.rounds import TrainingStopped
from aggregathor.protocols.state import prefixed, under
from lossympi import Arrival, ServerLink, Topology
from lossympi import fill as fill_lost
from lossympi.link import NativeRound

_SLICE_S = 0.2  # of a wait, between two looks at what else there is


class Need(NamedTuple):
    """What a protocol needs to go on.

    Attributes:
      workers: how many that live.
      words: for the message where it cannot go on.
    """

    workers: int = 1
    words: str = ""


@dataclass(frozen=True, eq=False)
class ArrivalReport:
    """What became of an arrival.

    Attributes:
      row: its worker's.
      ticket: the worker's number of it.
      version: of the model that the worker had, as the server knows.
      staleness: how many updates have been made since.
      grad_d: [d], the step that is to be made, valid until it is published; None for no step.
      why: why the gradient was rejected; "" if it is used, now or in a later step.
      updates: how many have been made in all, with this one.
      now_s: when it was decided, in seconds since the first model was handed out.
      dropped: gives how many messages of each row were dropped since it was asked last, by reason.
      suspected: in a job, the workers whose gradients are rejected more often than chance explains:
        see ``aggregathor.monitor.suspicion``.
    """

    row: int
    ticket: int
    version: int
    staleness: int
    grad_d: np.ndarray | None = field(repr=False)
    why: str
    updates: int
    now_s: float
    dropped: Callable[[], list[dict[str, int]]] = field(repr=False)
    suspected: tuple[int, ...] = ()

    @property
    def is_step(self) -> bool:
        """Whether an update is made."""
        return self.grad_d is not None

    @property
    def verdict(self) -> str:
        """ "step", "kept" for a later one, or why not."""
        return self.why or ("step" if self.is_step else "kept")


class ArrivalObserver(Protocol):
    """What looks on at a server's arrivals."""

    def decided(self, report: ArrivalReport) -> ArrivalReport:
        """One was decided on; returns the report with what the observer adds."""


class ArrivalsServer:
    """One server's arrivals over a link: a ``ServerHalf``.

    Attributes:
      round: how many there have been.
      version: of the model: how many updates have been made.
    """

    def __init__(
        self,
        link: ServerLink,
        rule: ArrivalRule,
        read: Callable[[], np.ndarray],
        *,
        need: Need | None = None,
        fill: str = "zero",
        observer: ArrivalObserver | None = None,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
        first_limit_s: float = math.inf,
        limit_s: float = math.inf,
        now: Callable[[], float] | None = None,
    ) -> None:
        """Begins before the first arrival, when all workers have the parameters as they are.

        Args:
          link: the server's end.
          rule: decides on each gradient.
          read: gives the parameters as they are, [d] of the link's dtype.
          need: what the protocol needs to go on.
          fill: what replaces values that the link has lost: "zero", or "previous" for those of the
            worker's gradient before, at first 0.
          observer: sees every arrival.
          waiting: gives a context in which gradients are waited for and decided on.
          first_limit_s: how long the first update may take.
          limit_s: how long there may be no further one.
          now: the clock, in seconds since the first model was handed out; by default from here on.
        """
        self.round = 0
        self.version = 0
        self._link = link
        self._rule = rule
        self._read = read
        self._need = need or Need()
        self._fill = fill
        keeps = fill == "previous"
        shape = link.num_workers, link.dim
        self._previous_nd = np.zeros(shape, link.dtype) if keeps else None
        self._observer = observer
        self._waiting = waiting
        self._limit_s = self._first_limit_s = first_limit_s
        self._later_limit_s = limit_s
        self._earlier_s = 0.0  # of the clock, before a checkpoint
        self._begun_s = time.monotonic()
        self._now = now or (lambda: self._earlier_s + time.monotonic() - self._begun_s)
        # Of v1 variables there is nothing to read before a session runs.
        self._params_d: np.ndarray | None = None
        self._held: list[tuple[int, np.ndarray]] = []
        self._tickets = [0] * link.num_workers  # of each row's next gradient
        self._heard_s = [0.0] * link.num_workers
        self._waited_s = 0.0  # in `collect`, since the last update
        self._since_s = 0.0  # when the wait at hand began
        self._open: ArrivalReport | None = None  # whose step is to be published
        self._has_begun = False  # since all workers last went on together
        self._may_be_older: set[int] = set()  # rows whose next gradient may be from before that
        self._forgotten: set[int] = set()
        self._leaving = False

    @property
    def dim(self) -> int:
        """d, floats in a gradient."""
        return self._link.dim

    def held(self, row: int) -> tuple[int, np.ndarray]:
        """Returns version and parameters that were handed to a worker; never written to."""
        self._current()
        return self._held[row]

    def hand(self, row: int, version: int, params_d: np.ndarray) -> None:
        """In a simulation: lets a worker have another version than the one it was answered with."""
        self._current()
        self._held[row] = version, params_d

    def newest(self) -> tuple[int, np.ndarray]:
        """Returns the version and the parameters as they are; never written to."""
        return self.version, self._current()

    def collect(self) -> ArrivalReport:
        """Waits for the next gradient and decides on it; what makes no step is answered at once.

        A step is to be made, and ``publish``ed.

        Raises:
          TrainingStopped: there has been no update for too long, or too few workers are left.
          RuleError: BASGD's rule cannot be applied to the buffers.
        """
        self._has_begun = True
        self._since_s = self._now()
        with self._waiting():
            while (report := self._look()) is None:
                self._check_time()
        if not report.is_step:
            self._check_time()
            self._waited_s += self._now() - self._since_s
        return report

    def aggregate(self) -> ArrivalReport:
        """Collects until there is a step, which ``publish`` follows.

        Raises:
          TrainingStopped: there can be none any more.
        """
        try:
            while not (report := self.collect()).is_step:
                pass
        except RuleError as error:
            raise TrainingStopped(str(error)) from None
        return report

    def publish(self, params_d: np.ndarray) -> ArrivalReport | None:
        """Answers the gradient that made a step with the parameters after it, [d].

        Returns the report of that gradient.
        """
        report, self._open = self._open, None
        assert report is not None
        self.version += 1
        self._params_d = self._snapshot(params_d)
        self._waited_s, self._limit_s = 0.0, self._later_limit_s
        self._answer(report.row, report.ticket)
        return report if self._observer is None else self._observer.decided(report)

    def _look(self) -> ArrivalReport | None:
        """Decides on an arrival, if one comes soon."""
        arrival = self._link.take(_SLICE_S)
        if arrival is None:
            return None
        row, now_s = arrival.row, self._now()
        self._heard_s[row] = now_s
        if row in self._may_be_older:
            self._may_be_older.discard(row)
            self._answer(row, arrival.ticket)
            return None
        self._replace_lost(arrival)
        version, model_d = self.held(row)
        staleness = self.version - version
        verdict = self._rule.offer(
            Offer(row, version, staleness, model_d, self._current(), arrival.grad_d, now_s)
        )
        is_step = verdict.step_d is not None
        self.round += 1
        report = ArrivalReport(
            *(row, arrival.ticket, version, staleness),
            *(verdict.step_d, verdict.why, self.version + is_step, now_s),
            self._link.dropped,
        )
        if is_step:
            self._open = report
            return report
        self._answer(row, arrival.ticket)
        return report if self._observer is None else self._observer.decided(report)

    def _answer(self, row: int, ticket: int) -> None:
        params_d = self._current()
        self._link.reply(row, params_d)
        self._held[row] = self.version, params_d
        self._tickets[row] = ticket + 1

    def _replace_lost(self, arrival: Arrival) -> None:
        """Fills, in place, what of a gradient did not arrive."""
        row, _, grad_d, arrived_c, floats = arrival
        previous_nd = None if self._previous_nd is None else self._previous_nd[row : row + 1]
        if arrived_c is not None:
            fill_lost(
                grad_d[None],
                arrived_c[None],
                self._fill,
                previous_nd=previous_nd,
                floats_per_datagram=floats,
            )
        if previous_nd is not None:
            previous_nd[0] = grad_d

    def _check_time(self) -> None:
        left = self._link.num_workers - len(self._forgotten)
        if left < self._need.workers:
            whom = self._described(sorted(self._forgotten))
            self._stop(f"{whom} ended, and {left} of {self._link.num_workers} workers are left")
        # Not what the server does else, such as to validate: workers wait for it meanwhile.
        waited_s = self._waited_s + self._now() - self._since_s
        if not self._leaving and waited_s < self._limit_s:
            return
        # Who has fallen silent may have been heard after the last update.
        half_s = min(waited_s, self._limit_s) / 2
        silent = [i for i, heard_s in enumerate(self._heard_s) if heard_s <= self._now() - half_s]
        whom = "gradients came from all workers"
        if silent:
            whom = f"nothing came from {self._described(silent)} for {half_s:.2g} s or longer"
        self._stop(f"the model has had no update for {waited_s:.0f} s, and {whom}")

    def _stop(self, words: str) -> NoReturn:
        raise TrainingStopped(f"{words}: {self._need.words}." if self._need.words else f"{words}.")

    def _described(self, rows: Sequence[int]) -> str:
        return Topology(servers=1, workers=self._link.num_workers).describe_rows(rows)

    def resume(self) -> None:
        """Lets all workers go on together, from the parameters as they are.

        What a worker had sent before is of no use: it may be of other parameters. So the next
        gradient of each worker fetches the model, and is not offered.
        """
        if self._has_begun:
            self._may_be_older = set(range(self._link.num_workers))
        self._has_begun = False
        self._params_d = None
        self._waited_s, self._limit_s = 0.0, self._first_limit_s  # they may trace and compile

    def rounds(self) -> list[int]:
        """Returns the ticket of each worker's next gradient."""
        return list(self._tickets)

    def state(self) -> State:
        """Returns what the next verdicts depend on, beside parameters, optimizer and workers.

        Of workers nothing outlives their processes: see ``state_of_workers``.
        """
        previous = {} if self._previous_nd is None else {"previous": self._previous_nd.copy()}
        return {
            **previous,
            **prefixed("rule", self._rule.state()),
            "round": np.array(self.round, np.int64),
            "version": np.array(self.version, np.int64),
            "now_s": np.array(self._now()),
        }

    def restore(self, state: State) -> None:
        """Goes on from what ``state`` gave, once the parameters are those of then.

        All workers have these, as after a start of their processes.
        """
        self._rule.restore(under("rule", state))
        if self._previous_nd is not None:
            self._previous_nd[:] = state["previous"]
        self.round, self.version = int(state["round"]), int(state["version"])
        self._earlier_s, self._begun_s = float(state["now_s"]), time.monotonic()
        self._params_d = None
        self._waited_s = 0.0
        self._heard_s = [self._earlier_s] * self._link.num_workers

    def state_of_workers(self) -> State:
        """Returns which models the workers have, for a simulation that goes on with them."""
        self._current()
        versions = sorted({version for version, _ in self._held})
        models = dict(self._held)
        return {
            "tickets": np.array(self._tickets, np.int64),
            "held": np.array([version for version, _ in self._held], np.int64),
            "versions": np.array(versions, np.int64),
            "models": np.stack([models[version] for version in versions]),
        }

    def restore_workers(self, state: State) -> None:
        """Goes on from what ``state_of_workers`` gave, after ``restore``."""
        models = dict(zip(state["versions"].tolist(), np.array(state["models"]), strict=True))
        for model_d in models.values():
            model_d.setflags(write=False)
        models[self.version] = self._current()
        self._held = [(version, models[version]) for version in state["held"].tolist()]
        self.expect(state["tickets"].tolist())

    def native(self, fail: Callable[[Exception], None]) -> NativeRound | None:
        """Returns None: models differ by worker, and each is kept as long as one has it."""
        return None

    def waiting_for(self) -> list[int]:
        """Returns the rows of which no gradient is there; from any thread."""
        return self._link.waiting_for()

    def forget(self, row: int) -> None:
        """Notes that a worker's process has ended; from any thread."""
        self._forgotten.add(row)
        self._link.forget(row)

    def leave(self) -> None:
        """Lets a wait that another thread is in end soon."""
        self._leaving = True

    def close(self) -> None:
        """Ends the link; workers that wait for an answer learn it."""
        self._link.close()

    def expect(self, tickets: Sequence[int]) -> None:
        """Says which ticket each worker's next gradient has, before the first arrival."""
        self._link.expect(tickets)
        self._tickets = list(tickets)

    def _current(self) -> np.ndarray:
        """Returns the parameters as they are, which all workers have where they are read anew."""
        if self._params_d is None:
            self._params_d = self._snapshot(self._read())
            self._held = [(self.version, self._params_d)] * self._link.num_workers
        return self._params_d

    @staticmethod
    def _snapshot(params_d: np.ndarray) -> np.ndarray:
        """Returns a copy that is never written to, as workers may hold it for long."""
        params_d = np.array(params_d)
        params_d.setflags(write=False)
        return params_d
