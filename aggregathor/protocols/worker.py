"""The worker's half of a protocol: my gradient leaves, the model that answers it comes.

    gradient -> [attack] -> link.send    ---->    the server's half
    assign   <-------------- link.receive <----

A round is the worker's own ticket: "my gradient number r, and the model that answers it". Nothing
here says that rounds are common to all workers, so this half serves synchronous and asynchronous
protocols alike, in simulation, under mpirun and in the drop-in. It owns no model and no clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np

from aggregathor.gars import State
from aggregathor.protocols.state import prefixed, under
from lossympi import LinkError, WorkerLink
from lossympi.link import NativeWorkerRounds

SLICE_S = 0.2  # of a wait, between two looks at what else the server says
_Got = TypeVar("_Got")


class Attacker(Protocol):
    """What a Byzantine worker does; honest ones that feed it have one too."""

    def __call__(self, round: int, grad_d: np.ndarray) -> np.ndarray:
        """Returns what is sent in a round instead of the gradient."""

    def state(self) -> State:
        """Returns what the next rounds depend on."""

    def restore(self, state: State) -> None:
        """Goes on from what ``state`` gave."""


class Watch(Protocol):
    """Decides, while a round waits, whether it goes on."""

    def look(self, sending: bool, round: int, waited_s: float) -> None:
        """Called every 0.2 s of a wait, for the server to take a gradient or to send a model.

        Raises:
          Exception: whatever shall end the round.
        """

    def ended(self, error: LinkError) -> Exception:
        """Returns what it means that the link has failed."""

    def leave(self) -> None:
        """Lets the next look end the round, whatever it finds."""


class WorkerHalf:
    """One worker's rounds over a link.

    A worker that the server has left behind goes on with the round after the model that it
    receives.
    """

    def __init__(
        self,
        link: WorkerLink,
        *,
        attack: Attacker | None = None,
        watch: Watch | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins with round 0.

        Args:
          link: the worker's end.
          attack: what the worker does to its gradients.
          watch: is asked while a round waits; without one a wait ends as the link says.
          now: the clock of waits, in seconds.
        """
        self._link = link
        self._attack = attack
        self._watch = watch
        self._now = now
        self._round = 0
        self._native: NativeWorkerRounds | None = None

    @property
    def round(self) -> int:
        """The ticket of the next gradient."""
        return self._round if self._native is None else self._native.round

    @round.setter
    def round(self, round: int) -> None:
        self._round = round
        if self._native is not None:
            self._native.round = round

    def exchange(self, grad_d: np.ndarray) -> np.ndarray:
        """Sends a gradient, [d] of the link's dtype, and returns the model that answers it.

        The model stays as it is until the next call.

        Raises:
          LinkError: the server cannot be reached; or what the watch raises.
        """
        self.send(grad_d)
        return self.receive()

    def send(self, grad_d: np.ndarray) -> None:
        """The first half of a round: the gradient leaves."""
        round = self.round
        if self._attack is not None:
            grad_d = self._attack(round, grad_d)
        grad_d = np.ascontiguousarray(grad_d)
        self._until(lambda wait_s: self._link.send(round, grad_d, wait_s), sending=True)

    def receive(self) -> np.ndarray:
        """The second half: the model comes, and the next round is the one after it."""
        round = self.round
        model = self._until(lambda wait_s: self._link.receive(round, wait_s), sending=False)
        self.round = model.round + 1
        return model.params_d

    def native(self, fail: Callable[[Exception], None]) -> NativeWorkerRounds | None:
        """Returns a fast path that does the same without Python, if the link has one.

        It does what ``exchange`` does, message for message, and shares ``round`` with it. Not where
        somebody attacks.

        Args:
          fail: called with what ``exchange`` would raise; the caller of C gets its text only.
        """
        if self._attack is not None:
            return None

        def idle(sending: bool, server_left: bool, waited_s: float) -> None:
            try:
                if server_left:
                    raise self._failed(
                        LinkError(f"the server has closed the link in round {self.round}")
                    )
                if self._watch is not None:
                    self._watch.look(sending, self.round, waited_s)
            except Exception as error:
                fail(error)
                raise

        self._native = self._link.native(idle)
        self.round = self._round
        return self._native

    def state(self) -> State:
        """Returns what the next rounds depend on, beside the parameters."""
        attack = {} if self._attack is None else self._attack.state()
        return {"round": np.array(self.round, np.int64), **prefixed("attack", attack)}

    def restore(self, state: State) -> None:
        """Goes on from what ``state`` gave."""
        self.round = int(state["round"])
        if self._attack is not None:
            self._attack.restore(under("attack", state))

    def leave(self) -> None:
        """Lets a round that another thread is in end soon."""
        if self._watch is not None:
            self._watch.leave()

    def close(self) -> None:
        """Ends this end of the link."""
        try:
            self._link.close()
        except LinkError:  # the server may have gone before
            return

    def _until(self, verb: Callable[[float | None], _Got | None], *, sending: bool) -> _Got:
        """Repeats a verb of the link, which waits for a slice, until it has something to return."""
        begun_s = self._now()
        while True:
            try:
                result = verb(None if self._watch is None else SLICE_S)
            except LinkError as error:
                raise self._failed(error) from None
            if result is not None:
                return result
            if self._watch is not None:
                self._watch.look(sending, self.round, self._now() - begun_s)

    def _failed(self, error: LinkError) -> Exception:
        return error if self._watch is None else self._watch.ended(error)
