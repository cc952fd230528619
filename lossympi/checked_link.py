"""What all links share: their verbs, which check their arguments once, and what they remember.

A link derives its two ends from ``CheckedServerLink`` and ``CheckedWorkerLink`` and implements the
verbs of the same names with an underscore. These are called with arguments that are right, while
the link is open.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from numbers import Real

import numpy as np

from lossympi.link import (
    Arrival,
    Collected,
    Idle,
    LinkError,
    Model,
    NativeRound,
    NativeWorkerRounds,
    OnColumns,
    check_array,
)
from lossympi.timeout import Waiting


class CheckedServerLink(ABC):
    """The server's end of a link; see ``ServerLink``.

    Attributes:
      num_workers: n.
      dim: d, floats in a gradient and in the parameters.
      dtype: float32; ``float64_link`` has the other.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, num_workers: int, dim: int, waiting: Waiting) -> None:
        """Starts with no round collected or broadcast; `waiting` is of n workers."""
        self.num_workers = num_workers
        self.dim = dim
        self._waiting = waiting
        self._collected_round = -1  # the last, or the one that is being collected
        self._broadcast_round = -1
        self._tickets = [0] * num_workers  # of each row's next gradient, or of the one to answer
        self._unanswered: set[int] = set()  # rows that were taken
        self._last_taken = num_workers - 1
        self._dropped_of: list[Counter[str]] = [Counter() for _ in range(num_workers)]
        self._verbs: tuple[str, ...] | None = None  # those that it is used with
        self._closed = False

    def collect(self, round: int, on_columns: OnColumns | None = None) -> Collected:
        """Returns the gradients that arrived in `round`, which must be later than any before.

        A round that was begun counts, also if the call was interrupted.

        Args:
          round: its number.
          on_columns: called on this thread with columns that all rows have, where gradients come in
            parts; with each column once, and with the last ones perhaps never.
        Raises:
          ValueError: the link is closed, or the round was collected before.
        """
        self._check_not_closed()
        self._check_verbs("collect", "broadcast")
        self._check_collect(round)
        self._collected_round = round
        return self._collect(round, on_columns)

    def broadcast(self, round: int, params_d: np.ndarray) -> None:
        """Sends the parameters of `round`, float32 [d], reliably to every worker.

        Raises:
          ValueError: the link is closed, the parameters have another shape or dtype, or the round
            is not later than the one broadcast before.
        """
        self._check_not_closed()
        self._check_verbs("collect", "broadcast")
        check_round(round)
        check_array("params_d", params_d, np.float32, (self.dim,))
        if round <= self._broadcast_round:
            raise ValueError(
                f"broadcast rounds must increase; round {self._broadcast_round} has been "
                f"broadcast, got round {round}. Broadcast once a round, with a later number."
            )
        self._broadcast_round = round
        self._broadcast(round, params_d)

    def take(self, wait_s: float) -> Arrival | None:
        """Returns the next gradient that has come, of any worker; None if none does in time.

        Rows are served in turn, from the one after the last taken.

        Args:
          wait_s: how long to wait, 0 for not at all.
        Raises:
          ValueError: the link is closed, is used in rounds, or cannot take.
        """
        self._check_not_closed()
        self._check_verbs("take", "reply")
        _check_wait(wait_s)
        arrival = self._take(wait_s)
        if arrival is not None:
            self._last_taken = arrival.row
            self._unanswered.add(arrival.row)
        return arrival

    def reply(self, row: int, params_d: np.ndarray) -> None:
        """Answers the gradient that was taken of a row with parameters, float32 [d].

        Raises:
          ValueError: the link is closed, nothing of the row waits for an answer, or the parameters
            have another shape or dtype.
        """
        self._check_not_closed()
        self._check_row(row)
        check_array("params_d", params_d, np.float32, (self.dim,))
        if row not in self._unanswered:
            raise ValueError(
                f"a gradient is answered once; none of row {row} waits for an answer. Take one."
            )
        self._unanswered.discard(row)
        self._reply(row, self._tickets[row], params_d)
        self._tickets[row] += 1

    def expect(self, tickets: Sequence[int]) -> None:
        """Says which ticket each row's next gradient has, before the first `take`: else all 0.

        Raises:
          ValueError: there are not n whole numbers, or the link is in use.
        """
        if self._verbs is not None or len(tickets) != self.num_workers:
            raise ValueError(
                f"{self.num_workers} tickets are named, before the first `take`; got {tickets}."
            )
        for ticket in tickets:
            check_round(ticket)
        self._tickets[:] = [int(ticket) for ticket in tickets]

    def dropped(self) -> list[dict[str, int]]:
        """Returns how many messages of each row were dropped since the last call, by reason."""
        counts = [dict(each) for each in self._dropped_of]
        for each in self._dropped_of:
            each.clear()
        return counts

    def waiting_for(self) -> list[int]:
        """Returns the rows that the open round waits for; from any thread, and never for long.

        Empty if no round is open. With `take`, the rows of which no gradient is there.
        """
        return self._waiting_for()

    def forget(self, row: int) -> None:
        """Waits for a worker no more, until it is heard again; from any thread.

        For callers that know that its process has ended.

        Raises:
          ValueError: there is no such row.
        """
        self._check_row(row)
        self._waiting.forget(row)
        self._forget(row)

    def native(self) -> NativeRound | None:
        """Returns where C may write what is broadcast; None for nowhere."""
        return None

    def close(self) -> None:
        """Ends the link; closing twice is allowed, collecting or broadcasting then is an error."""
        if not self._closed:
            self._closed = True
            self._close()

    @abstractmethod
    def _collect(self, round: int, on_columns: OnColumns | None) -> Collected:
        """Collects a round later than any before."""

    @abstractmethod
    def _broadcast(self, round: int, params_d: np.ndarray) -> None:
        """Broadcasts parameters of the right shape, which may be strided, in a later round."""

    def _take(self, wait_s: float) -> Arrival | None:
        """Returns a gradient that is there, of the row whose turn it is.

        A link that can do this also has `_reply`.
        """
        raise ValueError("this link collects rounds of all workers and takes no single gradients.")

    def _reply(self, row: int, ticket: int, params_d: np.ndarray) -> None:
        """Answers a ticket with parameters of the right shape, which may be strided."""
        raise NotImplementedError  # nothing was taken

    @abstractmethod
    def _waiting_for(self) -> list[int]:
        """Returns the rows that the open round waits for; another thread may close it meanwhile."""

    @abstractmethod
    def _forget(self, row: int) -> None:
        """Tells the open round, if there is one that can learn it, that a worker has gone."""

    @abstractmethod
    def _close(self) -> None:
        """Ends the link; called once."""

    def _next(self, stack_nd: np.ndarray, there_n: np.ndarray) -> Arrival | None:
        """Returns the gradient of the first of these rows, bool [n], after the last that was taken.

        Of those that wait for no answer.
        """
        rows = set(np.flatnonzero(there_n).tolist()) - self._unanswered
        if not rows:
            return None
        row = min(rows, key=lambda row: (row - self._last_taken - 1) % self.num_workers)
        return Arrival(row, self._tickets[row], stack_nd[row])

    def _check_collect(self, round: int) -> None:
        check_round(round)
        check_later(round, self._collected_round)

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self.num_workers:
            raise ValueError(f"rows are 0..{self.num_workers - 1}, got {row}.")

    def _check_verbs(self, *verbs: str) -> None:
        if self._verbs is not None and self._verbs != verbs:
            used, others = " and ".join(self._verbs), " or ".join(verbs)
            raise ValueError(f"this link is used with {used}, and not with {others}.")
        self._verbs = verbs

    def _check_not_closed(self) -> None:
        if self._closed:
            raise ValueError("the server has closed this link. Connect a new one.")


class CheckedWorkerLink(ABC):
    """A worker's end of a link; see ``WorkerLink``.

    Attributes:
      rank: the worker's row in the server's stack, 0..n-1.
      dim: d, floats in a gradient and in the parameters.
      dtype: float32; ``float64_link`` has the other.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, rank: int, dim: int, give_up_s: float = math.inf) -> None:
        """Starts with no model; a verb without `wait_s` waits for `give_up_s`."""
        self.rank = rank
        self.dim = dim
        self._give_up_s = give_up_s
        self._held: Model | None = None  # what `receive` returned last
        self._closed = False

    def send(self, round: int, grad_d: np.ndarray, wait_s: float | None = None) -> bool | None:
        """Sends the gradient of `round`, float32 [d].

        Args:
          round: its number.
          grad_d: the gradient.
          wait_s: how long it may take to leave; None for `give_up_s`.
        Returns:
          False if the server closed the round before all of it had left. None, only if `wait_s` is
          given, if it has not left within that: call again, with the same gradient.
        Raises:
          ValueError: the end is closed, or the gradient has another shape or dtype.
          LinkError: the server has left, or was not heard for `give_up_s`.
        """
        self._check_not_closed()
        check_round(round)
        check_array("grad_d", grad_d, np.float32, (self.dim,))
        _check_wait(wait_s)
        return self._send(round, grad_d, self._limit_s(wait_s))

    def receive(self, round: int, wait_s: float | None = None) -> Model | None:
        """Returns the newest parameters, of `round` or later.

        A worker that was away gets those of a later round: the next gradient that the server wants
        is that of ``model.round + 1``.

        Args:
          round: the first that is wanted.
          wait_s: how long to wait for it; None for `give_up_s`.
        Returns:
          The parameters, which stay as they are until the next call that returns others; None, only
          if `wait_s` is given, if it has passed first: call again.
        Raises:
          ValueError: the end is closed.
          LinkError: the server has left, or was not heard for `give_up_s`.
        """
        self._check_not_closed()
        check_round(round)
        _check_wait(wait_s)
        held, begun = self._held, time.monotonic()
        if held is not None and held.round >= round:
            newer = self._receive(held.round + 1, 0.0)  # only if it is there
        else:
            held = None
            newer = self._receive(round, self._limit_s(wait_s))
        if newer is not None:
            self._held = held = newer
        if held is None:
            self._check_server(f"send the parameters of round {round}", begun)
        return held

    def native(self, idle: Idle) -> NativeWorkerRounds | None:
        """Returns what C may call in place of `send` and `receive`; None where there is nothing."""
        return None

    def close(self) -> None:
        """Ends this worker's end only; closing twice is allowed, sending or receiving is not."""
        if not self._closed:
            self._closed = True
            self._close()

    @abstractmethod
    def _send(self, round: int, grad_d: np.ndarray, wait_s: float) -> bool | None:
        """Sends a gradient of the right shape, which may be strided; see `send`."""

    @abstractmethod
    def _receive(self, round: int, wait_s: float) -> Model | None:
        """Returns the newest parameters of `round` or later.

        None if there are none within `wait_s`, or the server has left. What it returned before
        stays as it is until it returns others.
        """

    @abstractmethod
    def _server_left(self) -> bool:
        """Returns whether the server has said that it leaves."""

    @abstractmethod
    def _close(self) -> None:
        """Ends this end; called once."""

    def _limit_s(self, wait_s: float | None) -> float:
        return self._give_up_s if wait_s is None else min(wait_s, self._give_up_s)

    def _check_server(self, awaited: str, begun: float) -> None:
        """Raises LinkError if what is awaited since `begun` is awaited in vain."""
        if self._server_left():
            raise LinkError(
                f"worker {self.rank} waited for the server to {awaited}, but it has closed the "
                "link. Its own output says why."
            )
        if time.monotonic() - begun >= self._give_up_s:
            raise LinkError(
                f"worker {self.rank} waited {self._give_up_s:g} s for the server to {awaited} and "
                "heard nothing. If it may take longer, raise give_up_s; else see whether it still "
                "runs."
            )

    def _check_not_closed(self) -> None:
        if self._closed:
            raise ValueError(f"worker {self.rank} has closed its end. Connect a new link.")


def check_round(round: int) -> None:
    """Raises ValueError unless `round` is a whole number of 0 or more."""
    if isinstance(round, (int, np.integer)) and not isinstance(round, bool) and 0 <= round < 2**63:
        return
    raise ValueError(f"rounds are whole numbers from 0 on, got {round!r}. Count them in the loop.")


def check_later(round: int, before: int, caller: str = "got") -> None:
    """Raises ValueError unless `round` is later than `before`, the one collected last."""
    if round <= before:
        raise ValueError(
            f"collected rounds must increase; round {before} has been collected, {caller} round "
            f"{round}. Name a later one."
        )


def _check_wait(wait_s: float | None) -> None:
    if wait_s is not None and not (isinstance(wait_s, Real) and wait_s >= 0):
        raise ValueError(f"wait_s is a time of 0 s or more, or None; got {wait_s!r}.")
