"""A worker's side of one optimizer's rounds: its gradient leaves, the model comes."""

from __future__ import annotations

import contextlib
import time

import numpy as np

from aggregathor.cluster.attackers import Attacker
from aggregathor.cluster.config import Config
from aggregathor.cluster.ranks import Patience, Ranks, TrainingEnded
from lossympi import LinkError, WorkerLink

_SLICE_S = 0.2  # between two looks at what else the server says


class WorkerChannel:
    """Rounds of one optimizer, as a worker sees them.

    Attributes:
      round: of the link, the next one that it sends a gradient for. A worker that was left behind
        goes on with the round after the model that it receives.
      attacker: what it does to its gradient, if any worker attacks so.
    """

    def __init__(
        self, link: WorkerLink, ranks: Ranks, config: Config, attacker: Attacker | None
    ) -> None:
        """Takes over a link; ``attacker`` makes of the gradient what a Byzantine worker sends."""
        self.round = 0
        self._link = link
        self._ranks = ranks
        self._give_up_s = float(config.link_args["give_up_s"])
        self.attacker = attacker
        self._leaving = False

    def exchange(self, grad_d: np.ndarray) -> np.ndarray:
        """Sends a gradient, float32 [d], and returns the model that comes of it, float32 [d].

        The model stays as it is until the next call.

        Raises:
          TrainingEnded: the server goes no further.
          LinkError: nothing was heard of the server for too long.
        """
        if self.attacker is not None:
            grad_d = self.attacker.make(self.round, grad_d)
        grad_d = np.ascontiguousarray(grad_d)
        round = self.round
        self._until(lambda: self._link.send(round, grad_d, wait_s=_SLICE_S), "to take a gradient")
        model = self._until(lambda: self._link.receive(round, wait_s=_SLICE_S), "to send a model")
        self.round = model.round + 1
        return model.params_d

    def leave(self) -> None:
        """Lets a round that another thread is in end soon."""
        self._leaving = True

    def close(self) -> None:
        """Ends this end of the link."""
        with contextlib.suppress(LinkError):  # the server may have gone before
            self._link.close()

    def _until(self, verb, what: str):  # noqa: ANN001 - one verb of the link
        """Repeats a verb of the link, which waits for a while, until it has something to return."""
        patience = Patience(self._ranks.rank, lambda: f"the server {what} of round {self.round}")
        begun = time.monotonic()
        while True:
            over = self._ranks.ended() or self._ranks.state_is_there()
            try:
                result = verb()
            except LinkError:
                if self._ranks.ended_soon():
                    raise TrainingEnded(self._ranks.end_reason) from None
                raise
            if result is not None:
                return result
            if over or self._leaving:  # what was sent before the end has come before it
                raise TrainingEnded(self._ranks.end_reason)
            patience.look()
            if time.monotonic() - begun > self._give_up_s:
                raise LinkError(
                    f"rank {self._ranks.rank} has waited {self._give_up_s:g} s for the server "
                    f"{what} of round {self.round}. If it may take longer, raise give_up_s in "
                    "link_args; else see whether it still runs."
                )
