"""Who comes when, on the virtual clock of a simulation without rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

from aggregathor.compositions import check_names
from aggregathor.errors import UserError
from aggregathor.gars import State
from lossympi.rng import generator

_DEFAULTS: dict[str, Any] = {"factors": {}, "silent": {}, "most": 10}


class Coming(NamedTuple):
    """The next arrival.

    Attributes:
      row: of the worker whose gradient comes.
      now_s: when.
      version: of the model that it is of; None for the one that the worker was answered with.
    """

    row: int
    now_s: float
    version: int | None = None


class Delays:
    """A queue of (time, row), ties to the lower row, of which each worker has one entry.

    A worker begins with its gradient when it has the answer to the one before. How long it takes
    depends on (seed, ticket, row) alone.
    """

    def __init__(self, model: str, given: Mapping[str, Any], num_workers: int, seed: int) -> None:
        """All begin at 0 s.

        Args:
          model: "equal", "exponential", "truncated-normal" or "staleness".
          given: factors, {row: factor}; silent, {row: since when, in seconds}; most, of
            "staleness".
          num_workers: n.
          seed: of what is drawn.
        """
        check_delays(model, given, num_workers)
        values = _DEFAULTS | dict(given)
        self._model = model
        self._seed = seed
        self._most = values["most"]
        self._factor_n = np.ones(num_workers)
        self._silent_s_n = np.full(num_workers, np.inf)
        for row, factor in values["factors"].items():
            self._factor_n[row] = factor
        for row, since_s in values["silent"].items():
            self._silent_s_n[row] = since_s
        self._ticket_n = np.zeros(num_workers, np.int64)
        self._arrivals = 0
        self._due_s_n = np.array([self._due_s(row, 0.0) for row in range(num_workers)])

    def next(self, version: int) -> Coming:
        """Takes the next arrival out of the queue; ``version`` is that of the model now.

        Raises:
          UserError: all workers are silent.
        """
        self._arrivals += 1
        if self._model == "staleness":
            return self._any(version)
        row = int(np.argmin(self._due_s_n))
        now_s = float(self._due_s_n[row])
        if math.isinf(now_s):
            raise UserError(
                f"no worker is left after {self._arrivals - 1} arrivals: all are silent"
            )
        self._ticket_n[row] += 1
        self._due_s_n[row] = self._due_s(row, now_s)
        return Coming(row, now_s)

    def _any(self, version: int) -> Coming:
        """Draws worker and version."""
        now_s = float(self._arrivals)
        rows = np.flatnonzero(now_s < self._silent_s_n)
        if not len(rows):
            raise UserError(
                f"no worker is left after {self._arrivals - 1} arrivals: all are silent"
            )
        rng = generator("arrivals", self._seed, self._arrivals)
        row, staleness = int(rng.choice(rows)), int(rng.integers(self._most + 1))
        return Coming(row, now_s, max(0, version - staleness))

    def _due_s(self, row: int, now_s: float) -> float:
        """Returns when a worker's next gradient comes that begins now, inf for never."""
        rng = generator("delay", self._seed, int(self._ticket_n[row]), row)
        if self._model == "equal":
            delay_s = 1.0
        elif self._model == "exponential":
            delay_s = rng.standard_exponential()
        else:
            delay_s = 1 + abs(rng.standard_normal())
        due_s = now_s + self._factor_n[row] * delay_s
        return due_s if due_s < self._silent_s_n[row] else math.inf

    @property
    def most_stale(self) -> int:
        """How many updates ago the oldest version is that somebody may come with unexpectedly."""
        return self._most if self._model == "staleness" else 0

    def state(self) -> State:
        """Returns the queue."""
        return {
            "due_s": self._due_s_n.copy(),
            "tickets": self._ticket_n.copy(),
            "arrivals": np.array(self._arrivals),
        }

    def restore(self, state: State) -> None:
        """Goes on from what ``state`` gave."""
        self._due_s_n = np.array(state["due_s"])
        self._ticket_n = np.array(state["tickets"])
        self._arrivals = int(state["arrivals"])


def check_delays(model: str, given: Mapping[str, Any], num_workers: int) -> None:
    """Raises ``UserError`` for parameters of delays that are unknown or out of range."""
    check_names("--delay_args", given, _DEFAULTS)
    values = _DEFAULTS | dict(given)
    for name in ("factors", "silent"):
        each = values[name]
        if not isinstance(each, Mapping) or not all(
            _is_row(row, num_workers) and _is_number(value) and (value > 0 or name == "silent")
            for row, value in each.items()
        ):
            raise UserError(
                f"--delay_args: {name} is a dict from rows 0..{num_workers - 1} to numbers, such "
                f"as {name}={{0:10}}; got {each!r}"
            )
    if not isinstance(values["most"], Integral) or values["most"] < 0:
        raise UserError(f"--delay_args: most is a whole number of updates, got {values['most']!r}")
    if "most" in given and model != "staleness":
        raise UserError("--delay_args: most is for --delays=staleness")
    if "factors" in given and model == "staleness":
        raise UserError("--delay_args: factors are of times, of which --delays=staleness has none")


def _is_row(row: Any, num_workers: int) -> bool:
    return isinstance(row, int) and not isinstance(row, bool) and 0 <= row < num_workers


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    return is_number and 0 <= float(value) < math.inf
