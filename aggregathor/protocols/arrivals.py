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
from dataclasses import dataclass

import numpy as np

from aggregathor.gars import State
from aggregathor.protocols.offers import ArrivalRule, Offer
from aggregathor.protocols.rounds import TrainingStopped
from aggregathor.protocols.state import prefixed, under
from lossympi import Arrival, ServerLink, Topology
from lossympi import fill as fill_lost

_SLICE_S = 0.2  # of a wait, between two looks at what else there is


@dataclass(frozen=True, eq=False)
class ArrivalReport:
    """What became of an arrival.

    Attributes:
      row: its worker's.
      ticket: the worker's number of it.
      version: of the model that the worker had, as the server knows.
      staleness: how many updates have been made since.
      is_step: whether an update was made.
      why: why the gradient was rejected; "" if it is used, now or in a later step.
      updates: how many have been made in all.
      now_s: when it was decided, in seconds since the first model was handed out.
      dropped: gives how many messages of each row were dropped since it was asked last, by reason.
    """

    row: int
    ticket: int
    version: int
    staleness: int
    is_step: bool
    why: str
    updates: int
    now_s: float
    dropped: Callable[[], list[dict[str, int]]]

    @property
    def verdict(self) -> str:
        """ "step", "kept" for a later one, or why not."""
        return self.why or ("step" if self.is_step else "kept")


class ArrivalsServer:
    """One server's arrivals over a link.

    Attributes:
      round: how many there have been.
      version: of the model: how many updates have been made.
    """

    def __init__(
        self,
        link: ServerLink,
        rule: ArrivalRule,
        apply: Callable[[np.ndarray], None],
        read: Callable[[], np.ndarray],
        *,
        need: str = "",
        fill: str = "zero",
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
        first_limit_s: float = math.inf,
        limit_s: float = math.inf,
        now: Callable[[], float] | None = None,
    ) -> None:
        """Begins before the first arrival, when all workers have the parameters as they are.

        Args:
          link: the server's end.
          rule: decides on each gradient.
          apply: makes a step [d] with the optimizer.
          read: gives the parameters as they are, [d] of the link's dtype.
          need: what the protocol needs to go on, for the message where it does not.
          fill: what replaces values that the link has lost: "zero", or "previous" for those of the
            worker's gradient before, at first 0.
          waiting: gives a context in which gradients are waited for and decided on.
          first_limit_s: how long the first update may take.
          limit_s: how long there may be no further one.
          now: the clock, in seconds since the first model was handed out; by default from here on.
        """
        self.round = 0
        self.version = 0
        self._link = link
        self._rule = rule
        self._apply = apply
        self._read = read
        self._need = need
        self._fill = fill
        keeps = fill == "previous"
        shape = link.num_workers, link.dim
        self._previous_nd = np.zeros(shape, link.dtype) if keeps else None
        self._waiting = waiting
        self._limit_s, self._later_limit_s = first_limit_s, limit_s
        self._earlier_s = 0.0  # of the clock, before a checkpoint
        self._begun_s = time.monotonic()
        self._now = now or (lambda: self._earlier_s + time.monotonic() - self._begun_s)
        self._params_d = self._snapshot()
        self._held = [(0, self._params_d)] * link.num_workers
        self._heard_s = [0.0] * link.num_workers
        self._updated_s = 0.0
        self._leaving = False

    @property
    def dim(self) -> int:
        """d, floats in a gradient."""
        return self._link.dim

    def held(self, row: int) -> tuple[int, np.ndarray]:
        """Returns version and parameters that were handed to a worker; never written to."""
        return self._held[row]

    def hand(self, row: int, version: int, params_d: np.ndarray) -> None:
        """In a simulation: lets a worker have another version than the one it was answered with."""
        self._held[row] = version, params_d

    def newest(self) -> tuple[int, np.ndarray]:
        """Returns the version and the parameters as they are; never written to."""
        return self.version, self._params_d

    def next(self) -> ArrivalReport:
        """Waits for the next gradient, decides on it, and answers it.

        Raises:
          TrainingStopped: there has been no update for too long.
          RuleError: BASGD's rule cannot be applied to the buffers.
        """
        with self._waiting():
            while (report := self._look()) is None:
                self._check_time()
        self._check_time()
        return report

    def _look(self) -> ArrivalReport | None:
        """Makes one arrival, if one comes soon."""
        arrival = self._link.take(_SLICE_S)
        if arrival is None:
            return None
        row, now_s = arrival.row, self._now()
        self._replace_lost(arrival)
        version, model_d = self._held[row]
        staleness = self.version - version
        verdict = self._rule.offer(
            Offer(row, version, staleness, model_d, self._params_d, arrival.grad_d, now_s)
        )
        if verdict.step_d is not None:
            self._apply(verdict.step_d)
            self.version += 1
            self._params_d = self._snapshot()
            self._updated_s, self._limit_s = now_s, self._later_limit_s
        self._link.reply(row, self._params_d)
        self._held[row] = self.version, self._params_d
        self._heard_s[row] = now_s
        self.round += 1
        return ArrivalReport(
            *(row, arrival.ticket, version, staleness),
            *(verdict.step_d is not None, verdict.why, self.version, now_s),
            self._link.dropped,
        )

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
        waited_s = self._now() - self._updated_s
        if not self._leaving and waited_s < self._limit_s:
            return
        since_s = self._now() - min(waited_s, self._limit_s)
        silent = [row for row, heard_s in enumerate(self._heard_s) if heard_s <= since_s]
        whom = Topology(servers=1, workers=self._link.num_workers).describe_rows(silent)
        came = f"nothing came from {whom}" if silent else "gradients came from all workers"
        raise TrainingStopped(
            f"the model has had no update for {waited_s:.0f} s, in which {came}"
            + (f": {self._need}" if self._need else "")
        )

    def state(self) -> State:
        """Returns what the next verdicts depend on, beside parameters and optimizer."""
        versions = sorted({version for version, _ in self._held})
        models = dict(self._held)
        previous = {} if self._previous_nd is None else {"previous": self._previous_nd.copy()}
        return {
            **previous,
            **prefixed("rule", self._rule.state()),
            "round": np.array(self.round, np.int64),
            "version": np.array(self.version, np.int64),
            "now_s": np.array(self._now()),
            "updated_s": np.array(self._updated_s),
            "heard_s": np.array(self._heard_s),
            "held": np.array([version for version, _ in self._held], np.int64),
            "versions": np.array(versions, np.int64),
            "models": np.stack([models[version] for version in versions]),
        }

    def restore(self, state: State, *, anew: bool = False) -> None:
        """Goes on from what ``state`` gave, once the parameters are those of then.

        Args:
          state: what it gave.
          anew: all workers have the newest parameters, as after a start of their processes.
        """
        self._rule.restore(under("rule", state))
        if self._previous_nd is not None:
            self._previous_nd[:] = state["previous"]
        self.round, self.version = int(state["round"]), int(state["version"])
        self._earlier_s, self._begun_s = float(state["now_s"]), time.monotonic()
        self._params_d = self._snapshot()
        models = dict(zip(state["versions"].tolist(), np.array(state["models"]), strict=True))
        for model_d in models.values():
            model_d.setflags(write=False)
        models[self.version] = self._params_d
        held = [self.version] * len(self._held) if anew else state["held"].tolist()
        self._held = [(version, models[version]) for version in held]
        self._updated_s = self._earlier_s if anew else float(state["updated_s"])
        self._heard_s = state["heard_s"].tolist()

    def waiting_for(self) -> list[int]:
        """Returns the rows of which no gradient is there; from any thread."""
        return self._link.waiting_for()

    def forget(self, row: int) -> None:
        """Notes that a worker's process has ended; from any thread."""
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

    def _snapshot(self) -> np.ndarray:
        params_d = np.array(self._read())
        params_d.setflags(write=False)
        return params_d
