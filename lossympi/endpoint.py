"""What a data plane offers to a link: one UDP socket, its peers, and four verbs.

Two planes offer it, with the same bytes on the wire (``WIRE.md``): ``_core.Endpoint`` in C++ and
``plane.endpoint.Endpoint`` in Python. Both receive on a thread of their own; the verbs below are
called from one thread. Times are seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lossympi.topology import Topology

REASONS = (
    "truncated",
    "oversized",
    "version",
    "foreign",
    "forged",
    "malformed",
    "replayed",
    "early",
    "late",
    "duplicate",
)


def check_rate(rate_kbps: int) -> None:
    """Raises ValueError unless a rate is one that GRANT can carry."""
    if not 1 <= rate_kbps < 2**32:
        raise ValueError(f"rate_kbps must be in 1..{2**32 - 1}, got {rate_kbps}. Change it.")


@dataclass(frozen=True)
class Setup:
    """What an endpoint is made with.

    Attributes:
      rank: 0 is the server, 1..n are workers.
      num_workers: n.
      address: numeric IPv4 address to bind to.
      session: 32 bits that tell this job from others.
      dim: d, floats in a vector.
      wire: "float32", "float16" or "bfloat16": the type on the wire; buffers are float32.
      mtu: bytes of an IP packet.
      cipher: "aes256gcm", "chacha20poly1305" or "none".
      drop: probability that a datagram is lost on arrival, for tests.
      drop_seed: of those losses.
      receive_buffer: bytes to ask the kernel for.
    """

    rank: int
    num_workers: int
    address: str
    session: int
    dim: int
    wire: str = "float32"
    mtu: int = 1500
    cipher: str = "none"
    drop: float = 0.0
    drop_seed: int = 0
    receive_buffer: int = 32 << 20

    @property
    def topology(self) -> Topology:
        """Which rank is the server, and which row a worker has."""
        return Topology(servers=1, workers=self.num_workers)


@dataclass(frozen=True)
class ClosePolicy:
    """When the server closes a round (``WIRE.md``), and what it grants.

    Attributes:
      deadline_s: t_B, from the opening of the round, for all but f of the live rows.
      grace_s: how long nothing may come before an early close.
      quiet_s: after how long without a datagram a row that has begun has ended.
      max_loss: share of a row that may be missing when it is settled, 0..1.
      quorum: how many live rows must be settled, at least 1.
      live_n: who is waited for.
      rate_kbps: what each worker is granted, kbit/s of UDP payload: one number for all, or [n].
      f: how many live rows are waited for no longer than they are allowed, once all others are
        settled; 0: none, and the deadline is that of all.
      longest_s: for none of them longer, from the opening of the round.
      free_s: for all of them so long, from the opening of the round.
      allowance_s_n: how long beyond that for each, n values where f is above 0.
    """

    deadline_s: float
    grace_s: float
    quiet_s: float
    max_loss: float
    quorum: int
    live_n: tuple[bool, ...]
    rate_kbps: int | tuple[int, ...]
    f: int = 0
    longest_s: float = 0.0
    free_s: float = 0.0
    allowance_s_n: tuple[float, ...] = ()

    def rates_kbps(self, n: int) -> tuple[int, ...]:
        """Returns what each of n workers is granted.

        Raises:
          ValueError: it is not one number for all, nor n numbers, or they are not in 1..2^32-1.
        """
        rates = self.rate_kbps if isinstance(self.rate_kbps, tuple) else (self.rate_kbps,) * n
        if len(rates) != n:
            raise ValueError(
                f"rate_kbps must be one number or {n}, got {len(rates)}. Pass one for each row."
            )
        for rate in rates:
            check_rate(rate)
        return rates


@dataclass(frozen=True, eq=False)
class Closed:
    """How a round went.

    Attributes:
      reason: "complete", "early" or "deadline".
      elapsed_s: from the opening to the close.
      arrived_nc: bool [n, c], which datagrams are in the stack.
      heard_n: bool [n], from whom DATA, END or READY was accepted since the last close before.
      settled_s_n: float64 [n], when each row was settled, NaN where it was not.
    """

    reason: str
    elapsed_s: float
    arrived_nc: np.ndarray
    heard_n: np.ndarray
    settled_s_n: np.ndarray


class Endpoint(Protocol):
    """A socket, its peers, and the thread that receives.

    The server's peers are the ranks 1..n, a worker's only peer is rank 0.
    """

    port: int

    def add_peer(
        self, rank: int, address: str, port: int, send_key: bytes, receive_key: bytes
    ) -> None:
        """Makes a peer known, before `start`; the keys are 32 bytes, or empty without a cipher."""

    def start(self) -> None:
        """Starts the receive thread; datagrams that came before it are handled then."""

    def probe(self, timeout_s: float) -> dict[int, int]:
        """Sends PROBE of 100 bytes and of the MTU to every peer, every 20 ms, until all are echoed.

        Returns:
          For each peer's rank the size of the longest that was echoed, in bytes of an IP packet,
          or 0.
        """

    def collect(
        self,
        round: int,
        stack_nd: np.ndarray,
        policy: ClosePolicy,
        on_whole: Callable[[np.ndarray], None] | None = None,
    ) -> Closed:
        """Server: opens `round`, grants it, and returns when it is closed.

        What arrives is written into `stack_nd`, float32 [n, d] in C order, until then and never
        after. Meanwhile `on_whole` is called, on this thread, with datagrams that all rows have,
        some 16th of them at a time; with each once, and with the last ones perhaps never.
        """

    def send(self, round: int, grad_d: np.ndarray, max_loss: float, timeout_s: float) -> bool:
        """Worker: sends float32 [d] when granted; False if not all has left.

        The round was closed, or `timeout_s` has passed: then another call goes on.
        """

    def broadcast(
        self,
        round: int,
        params_d: np.ndarray,
        to_n: tuple[bool, ...],
        rate_kbps: int,
        timeout_s: float,
        silence_s: float,
    ) -> np.ndarray:
        """Server: sends float32 [d] reliably; returns, bool [n], who has said DONE.

        `rate_kbps` is shared by all workers; one that says nothing for `silence_s` is left behind.
        """

    def await_row(self, row: int, round: int, stack_nd: np.ndarray, policy: ClosePolicy) -> None:
        """Server: grants `round` to one worker as soon as it asks for it, by the policy of one row.

        What arrives is written into its row of `stack_nd`, float32 [n, d] and always the same one,
        until the round is closed. From the first call on there are no other rounds.
        """

    def take_closed(self, timeout_s: float) -> list[tuple[int, Closed]]:
        """Server: returns the rows whose awaited rounds have closed, each once, and how.

        If there is none it waits for the next, for `timeout_s` at most.
        """

    def reply(
        self, row: int, round: int, params_d: np.ndarray, rate_kbps: int, silence_s: float
    ) -> None:
        """Server: begins to send a copy of float32 [d] to one worker, reliably, and does not wait.

        It takes the place of what the worker has not got of an earlier one. `rate_kbps` is shared
        by all workers, in turn; nothing goes to one that has said nothing for `silence_s`, until it
        is heard again.
        """

    def receive(self, round: int, timeout_s: float) -> tuple[int, np.ndarray] | None:
        """Worker: returns the newest whole model of `round` or later, and its round.

        The array, float32 [d], is the endpoint's own and stays as it is until the next `receive`
        that returns another. None: nothing whole came in time, or the server said BYE.
        """

    def counters(self) -> dict[int, dict[str, int]]:
        """Returns, for each peer's rank and for -1 (nobody's), counts since the start.

        Keys: "accepted" (datagrams of any kind that were taken), every one of `REASONS`; for a peer
        also "unsent" (datagrams that this host could not send to it: too long for its device, no
        route, refused, no room), and for -1 also "dropped" (by the test hook) and "overflow" (by
        the kernel's buffer).
        """

    def server_left(self) -> bool:
        """Worker: whether the server has said BYE."""

    def close(self) -> None:
        """Says BYE to every peer, three times, ends the thread and closes the socket."""
