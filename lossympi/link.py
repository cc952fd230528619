"""What every link offers: one server that collects gradients, n workers that send them.

Shapes: n workers, d floats in a gradient, c datagrams to a gradient.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import DTypeLike

# An Ethernet frame carries 1500 bytes: 1500 - 20 (IPv4) - 8 (UDP) - 32 (header) - 16 (tag) leaves
# 1424 bytes, or 356 floats. 352 of them are 1408 bytes, a whole number (22) of 64-byte cache lines.
FLOATS_PER_DATAGRAM = 352


def num_datagrams(dim: int, floats: int = FLOATS_PER_DATAGRAM) -> int:
    """Returns c, how many datagrams carry a gradient of `dim` floats; the last may be short.

    Datagram i carries floats i * floats up to, and without, min((i + 1) * floats, dim).

    Args:
      dim: floats in a gradient, at least 1.
      floats: of them in a datagram, at least 1.
    Raises:
      ValueError: dim < 1 or floats < 1.
    """
    if dim < 1:
        raise ValueError(
            f"a gradient needs at least 1 float, got dim={dim}. Pass the model's size."
        )
    if floats < 1:
        raise ValueError(
            f"a datagram carries at least 1 float, got {floats}. Pass what the link has."
        )
    return -(-dim // floats)


def floats_of(datagrams_c: np.ndarray, dim: int, floats: int = FLOATS_PER_DATAGRAM) -> np.ndarray:
    """Returns which floats, bool [dim], the chosen datagrams, bool [c], carry."""
    return np.repeat(datagrams_c, floats)[:dim]


def in_datagrams(values_nd: np.ndarray, floats: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns views of `values_nd` as its whole datagrams, [n, c', floats], and the short last one.

    The latter is [n, 0] if there is none.
    """
    n, dim = values_nd.shape
    whole = dim // floats
    blocks_ncf = values_nd[:, : whole * floats].reshape(n, whole, floats)
    return blocks_ncf, values_nd[:, whole * floats :]


@dataclass(frozen=True)
class WorkerStats:
    """What was seen of a worker from the close of the round before to the close of this one.

    Attributes:
      delivered: share of its floats that arrived, 0..1.
      heard: whether any datagram of it was accepted.
      live: whether the round waited for it.
      allowance_s: how long the round might wait for it, once all but f of the live workers' rows
        were settled: see ``lossympi.timeout.Allowance``.
      settled_s: when its row was settled, NaN if it was not.
      accepted: datagrams written.
      late: datagrams that came after the close; over UDP, of the round before.
      duplicate: datagrams that were there already.
      rejected: for each other reason, such as "forged", how many datagrams it rejected, if any; as
        "unsent", how many for the worker this host could not send.
    """

    delivered: float
    heard: bool
    live: bool
    allowance_s: float
    settled_s: float
    accepted: int
    late: int
    duplicate: int
    rejected: dict[str, int]


@dataclass(frozen=True)
class RoundStats:
    """How a round went.

    Attributes:
      round: the round.
      closed_by: "complete", "early" or "deadline", which without a deadline means that nothing more
        could come.
      elapsed_s: from the opening to the close.
      deadline_s: t_B, how long it might take until all but f of the live workers' rows were
        settled.
      workers: of each worker, in the order of the rows.
      others: datagrams that are no worker's, by reason; and those that the kernel's buffer had no
        room for ("overflow") or the test hook lost ("dropped"). Without what is 0.
    """

    round: int
    closed_by: str
    elapsed_s: float
    deadline_s: float
    workers: tuple[WorkerStats, ...]
    others: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Collected:
    """What the server received in a round.

    Attributes:
      round: the round.
      stack_nd: [n, d] of the link's dtype, its own receive buffer; row i is worker i's gradient.
        It may be written in place, and the next round overwrites it: use it up before a worker can
        send again. A coordinate that did not arrive holds unspecified bytes: `fill` it first.
      arrived_nc: bool [n, c], which datagrams of each worker arrived. It stays as it is.
      floats_per_datagram: how many values a datagram carries, but for a short last one.
      stats: how the round went; every link gives them.
    """

    round: int
    stack_nd: np.ndarray
    arrived_nc: np.ndarray
    floats_per_datagram: int = FLOATS_PER_DATAGRAM
    stats: RoundStats | None = None

    @cached_property
    def delivered_n(self) -> np.ndarray:
        """Share of each worker's values that arrived, float64 [n] in 0..1.

        Counted in values, not in datagrams: a short last datagram weighs what it carries.
        """
        return delivered_share(self.arrived_nc, self.stack_nd.shape[1], self.floats_per_datagram)


class Model(NamedTuple):
    """What a worker received.

    Attributes:
      round: of the parameters; later than the one asked for if the worker was left behind.
      params_d: [d] of the link's dtype, read-only; as it is until the next `receive`.
    """

    round: int
    params_d: np.ndarray


class Arrival(NamedTuple):
    """A gradient that came by itself, and not as one of a round.

    Attributes:
      row: its worker's, 0..n-1.
      ticket: the worker's own number of it, 0, 1, ...
      grad_d: [d] of the link's dtype, the row's own buffer; it may be written in place, and stays
        as it is until the row is answered.
      arrived_c: bool [c], which datagrams of it arrived; None for all. A coordinate that did not
        arrive holds unspecified bytes: `fill` it first.
      floats_per_datagram: how many values a datagram carries, but for a short last one.
    """

    row: int
    ticket: int
    grad_d: np.ndarray
    arrived_c: np.ndarray | None = None
    floats_per_datagram: int = FLOATS_PER_DATAGRAM


class LinkError(RuntimeError):
    """The other side cannot be reached, or has left."""


class NativeRound(Protocol):
    """An end of a link for callers in C.

    Attributes:
      address: of a ``LossympiNativeRound`` (``native_round.h``), which is there as long as this
        object is.
    """

    address: int


class NativeWorkerRounds(NativeRound, Protocol):
    """A worker's rounds, in which no Python takes part unless they wait for long.

    Attributes:
      round: of the next gradient.
    """

    round: int


# Called every 0.2 s while a native round waits: idle(sending, server_left, waited_s). `sending`:
# it waits for its gradient to leave, otherwise for the model. Raise to end the round.
Idle = Callable[[bool, bool, float], None]


# Called while a round is collected: on_columns(stack_nd, ranges_k2), with columns of the stack that
# all rows have, as ranges [begin, end), int64 [k, 2]. What they hold stays as it is until the
# round's `collect` returns.
OnColumns = Callable[[np.ndarray, np.ndarray], None]


class ServerLink(Protocol):
    """The server's end of a link.

    It is used in one of two ways: in rounds of all workers, with `collect` and `broadcast`, or
    worker by worker, with `take` and `reply`. A worker's end sees no difference: its round is its
    own ticket, and what it receives is the answer to it.

    Attributes:
      num_workers: n.
      dim: d, values in a gradient and in the parameters.
      dtype: of them, float32 or float64.
    """

    num_workers: int
    dim: int
    dtype: np.dtype

    def collect(self, round: int, on_columns: OnColumns | None = None) -> Collected:
        """Returns the gradients that arrived in `round`, which must be later than any before.

        Where gradients come in parts it calls `on_columns` on this thread, with the columns that
        all rows have while it waits for the rest: with each once, with the last ones perhaps never.
        """

    def broadcast(self, round: int, params_d: np.ndarray) -> None:
        """Sends the parameters of `round`, [d] of `dtype`, reliably to every worker."""

    def take(self, wait_s: float) -> Arrival | None:
        """Returns the next gradient that has come, of any worker; None if none does in time.

        It has come whole, or, over UDP, what of it came in time.

        Rows are served in turn, from the one after the last taken. Each has one buffer: a worker
        whose gradient was not answered has no other one taken, and what it sends more is dropped
        and counted, as is what has another ticket than the one after its last.
        """

    def reply(self, row: int, params_d: np.ndarray) -> None:
        """Answers the gradient that was taken of a row with parameters, [d] of `dtype`.

        They reach the worker reliably, and no other: rows may get different ones.
        """

    def expect(self, tickets: Sequence[int]) -> None:
        """Says which ticket each row's next gradient has, before the first `take`: else all 0."""

    def dropped(self) -> list[dict[str, int]]:
        """Returns how many messages of each row were dropped since the last call, by reason.

        Of those that `take` has seen: "duplicate", "late", "early", "malformed". Over UDP they are
        datagrams, for any reason in ``WIRE.md``.
        """

    def waiting_for(self) -> list[int]:
        """Returns the rows that the open round waits for; from any thread, and never for long.

        Empty if no round is open. With `take`, the rows of which no gradient is there.
        """

    def forget(self, row: int) -> None:
        """Waits for a worker no more, until it is heard again; from any thread.

        For who knows that its process has ended: no round shall wait for its silence to tell.
        """

    def native(self) -> NativeRound | None:
        """Returns where C may write what is broadcast; None for nowhere."""

    def close(self) -> None:
        """Ends the link; closing twice is allowed, any other call after it is an error."""


class WorkerLink(Protocol):
    """A worker's end of a link.

    Attributes:
      rank: the worker's row in the server's stack, 0..n-1.
      dim: d, values in a gradient and in the parameters.
      dtype: of them, float32 or float64.
    """

    rank: int
    dim: int
    dtype: np.dtype

    def send(self, round: int, grad_d: np.ndarray, wait_s: float | None = None) -> bool | None:
        """Sends the gradient of `round`, [d] of `dtype`.

        Returns:
          False if the server closed the round before all of it had left. None, only if `wait_s` is
          given, if it has not left within that: call again, with the same gradient.
        """

    def receive(self, round: int, wait_s: float | None = None) -> Model | None:
        """Returns the newest parameters of `round` or later.

        None, only if `wait_s` is given, if there are none within that: call again.
        """

    def native(self, idle: Idle) -> NativeWorkerRounds | None:
        """Returns what C may call in place of `send` and `receive`; None where there is nothing."""

    def close(self) -> None:
        """Ends this worker's end; closing twice is allowed, any other call after it is an error."""


def columns_of(datagrams_k: np.ndarray, dim: int, floats: int) -> np.ndarray:
    """Returns the columns that datagrams carry: ranges [begin, end), int64 [k', 2], increasing."""
    seqs_k = np.sort(datagrams_k).astype(np.int64)
    first_k = np.diff(seqs_k, prepend=-2) != 1
    last_k = np.append(first_k[1:], True)
    ranges_k2 = np.stack([seqs_k[first_k], seqs_k[last_k] + 1], axis=1) * floats
    return np.minimum(ranges_k2, dim)


def delivered_share(arrived_nc: np.ndarray, dim: int, floats: int) -> np.ndarray:
    """Returns the share of each worker's floats that arrived, float64 [n] in 0..1."""
    num_floats_c = np.full(num_datagrams(dim, floats), floats)
    num_floats_c[-1] = dim - floats * (len(num_floats_c) - 1)
    return arrived_nc @ num_floats_c / dim


def check_array(name: str, array: np.ndarray, dtype: DTypeLike, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless `array` is a NumPy array of exactly this dtype and shape."""
    if isinstance(array, np.ndarray) and array.dtype == dtype and array.shape == shape:
        return
    if isinstance(array, np.ndarray):
        found = f"{array.dtype} {list(array.shape)}"
    else:
        found = type(array).__name__
    raise ValueError(
        f"{name} must be a NumPy array, {np.dtype(dtype)} {list(shape)}; got {found}. "
        "Reshape and cast it before the call."
    )


def aligned_zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Returns float32 zeros that begin at a multiple of 64 bytes, as TensorFlow wants tensors."""
    size = int(np.prod(shape))
    raw = np.zeros(size * 4 + 64, np.uint8)
    begin = -raw.ctypes.data % 64
    return raw[begin : begin + size * 4].view(np.float32).reshape(shape)
