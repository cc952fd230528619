"""The server's half of a protocol, as those see it that drive it or watch over it.

``rounds.py`` has the one of synchronous SGD, ``arrivals.py`` that of asynchronous SGD. The worker's
half is one for all: ``worker.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from aggregathor.gars import State
from aggregathor.protocols.arrivals import ArrivalReport
from aggregathor.protocols.report import RoundReport
from lossympi.link import NativeRound

Report = RoundReport | ArrivalReport


class ServerHalf(Protocol):
    """One server's part: it aggregates what workers send and answers with a model.

    Whoever drives it calls ``aggregate`` or ``collect``, applies the aggregate, and ``publish``es.

    Attributes:
      round: the number of the next aggregate, or arrival.
    """

    round: int

    @property
    def dim(self) -> int:
        """d, floats in a gradient."""

    def collect(self) -> Report:
        """Waits for what the protocol aggregates next, and tries to aggregate it.

        Where single gradients come, the report of one that makes no step has no ``grad_d``, and
        nothing is to be published.

        Raises:
          RefusedError: the rule cannot be applied; ``publish`` comes next all the same.
        """

    def aggregate(self) -> Report:
        """Collects until something can be aggregated; what is refused is answered in between.

        Raises:
          TrainingStopped: nothing can be aggregated any more.
        """

    def publish(self, params_d: np.ndarray) -> Report | None:
        """Answers with the parameters, [d]; returns the report with what observers add."""

    def resume(self) -> None:
        """Lets all workers go on together, from the parameters as they are.

        What a worker had sent before, for an answer that never came, is of no use.
        """

    def rounds(self) -> list[int]:
        """Returns the number of each worker's next gradient."""

    def state(self) -> State:
        """Returns what the next aggregates depend on, beside parameters and optimizer."""

    def restore(self, state: State) -> None:
        """Goes on from what ``state`` gave; all workers have the parameters as they are."""

    def native(self, fail: Callable[[Exception], None]) -> NativeRound | None:
        """Returns where C may write the next model, if the link has such a place."""

    def waiting_for(self) -> list[int]:
        """Returns the rows that it waits for; from any thread."""

    def forget(self, row: int) -> None:
        """Waits no longer for a worker whose process has ended; from any thread."""

    def leave(self) -> None:
        """Lets a call that another thread is in end soon."""

    def close(self) -> None:
        """Ends the link."""
