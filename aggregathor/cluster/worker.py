"""A worker's side of one optimizer's rounds: its gradient leaves, the model comes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from aggregathor.cluster.attackers import Attacker
from aggregathor.cluster.config import Config
from aggregathor.cluster.ranks import Patience, Ranks, TrainingEnded
from lossympi import LinkError, WorkerLink
from lossympi.link import Rounds

_SLICE_S = 0.2  # between two looks at what else the server says
_Got = TypeVar("_Got")


class WorkerChannel:
    """Rounds of one optimizer, as a worker sees them.

    Attributes:
      attacker: what it does to its gradient, if any worker attacks so.
    """

    def __init__(
        self, link: WorkerLink, ranks: Ranks, config: Config, attacker: Attacker | None
    ) -> None:
        """Takes over a link; ``attacker`` makes of the gradient what a Byzantine worker sends."""
        self.attacker = attacker
        self._link = link
        self._ranks = ranks
        self._give_up_s = float(config.link_args["give_up_s"])
        self._round = 0
        self._native: Rounds | None = None
        self._wait: _Wait | None = None  # of the native rounds
        self._leaving = False

    @property
    def round(self) -> int:
        """The next round of the link that it sends a gradient for.

        A worker that was left behind goes on with the round after the model that it receives.
        """
        return self._round if self._native is None else self._native.round

    @round.setter
    def round(self, round: int) -> None:
        self._round = round
        if self._native is not None:
            self._native.round = round

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
        self._until(lambda: self._link.send(round, grad_d, wait_s=_SLICE_S), is_sending=True)
        model = self._until(lambda: self._link.receive(round, wait_s=_SLICE_S), is_sending=False)
        self.round = model.round + 1
        return model.params_d

    def native(self, fail: Callable[[Exception], None]) -> Rounds | None:
        """Returns what does the same without Python, if the link has it and nobody attacks.

        ``fail`` is called with what ``exchange`` would raise.
        """

        def idle(is_sending: bool, has_left: bool, waited_s: float) -> None:
            if self._wait is None or waited_s < self._wait.waited_s:
                self._wait = _Wait(self, is_sending)
            try:
                if has_left:
                    raise LinkError(f"the server has closed the link in round {self.round}")
                self._wait.look(waited_s)
            except LinkError as error:
                ended = self._ended_after(error)
                fail(ended)
                raise ended from None
            except Exception as error:
                fail(error)
                raise

        if self.attacker is None:
            self._native = self._link.native(idle)
            self.round = self._round
        return self._native

    def leave(self) -> None:
        """Lets a round that another thread is in end soon."""
        self._leaving = True

    def close(self) -> None:
        """Ends this end of the link."""
        with contextlib.suppress(LinkError):  # the server may have gone before
            self._link.close()

    def _until(self, verb: Callable[[], _Got | None], *, is_sending: bool) -> _Got:
        """Repeats a verb of the link, which waits for a while, until it has something to return."""
        wait = _Wait(self, is_sending)
        begun = time.monotonic()
        while True:
            try:
                result = verb()
            except LinkError as error:
                raise self._ended_after(error) from None
            if result is not None:
                return result
            wait.look(time.monotonic() - begun)

    def _ended_after(self, error: LinkError) -> Exception:
        """Returns what it means that the link has failed: the end, if the server has said so."""
        return TrainingEnded(self._ranks.end_reason) if self._ranks.ended_soon() else error


class _Wait:
    """A verb of the link that has not come to its end.

    Attributes:
      waited_s: how long it had been when it was looked at last.
    """

    def __init__(self, channel: WorkerChannel, is_sending: bool) -> None:
        self.waited_s = 0.0
        self._channel = channel
        self._what = f"the server to {'take a gradient' if is_sending else 'send a model'} of round"
        self._is_over = False
        self._patience = Patience(channel._ranks.rank, lambda: f"{self._what} {channel.round}")

    def look(self, waited_s: float) -> None:
        """Decides whether to go on.

        Raises:
          TrainingEnded: the server goes no further.
          LinkError: it has been too long.
        """
        self.waited_s = waited_s
        ranks, channel = self._channel._ranks, self._channel
        if self._is_over or channel._leaving:
            raise TrainingEnded(ranks.end_reason)
        # What was sent before the end may be there, though it was not when last looked for.
        self._is_over = ranks.ended() or ranks.state_is_there()
        self._patience.look()
        if waited_s > channel._give_up_s:
            raise LinkError(
                f"rank {ranks.rank} has waited {channel._give_up_s:g} s for {self._what} "
                f"{channel.round}. If it may take longer, raise give_up_s in link_args; else see "
                "whether it still runs."
            )
