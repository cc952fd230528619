"""Links of float64: every value lies in the place of two floats of a link of float32.

No transport looks into the floats that it carries: they arrive bit for bit, or not at all. A
datagram begins at an even float and carries an even number of them (``WIRE.md``): so both halves of
a value arrive, or neither.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from lossympi.link import (
    Arrival,
    Collected,
    Idle,
    Model,
    NativeRound,
    NativeWorkerRounds,
    OnColumns,
    ServerLink,
    WorkerLink,
    check_array,
)
from lossympi.link_over import ServerOver

_FLOATS = {np.dtype(np.float32): 1, np.dtype(np.float64): 2}


def floats_per_value(dtype: DTypeLike) -> int:
    """Returns how many floats a value of a link takes: 1 in float32, 2 in float64.

    Raises:
      ValueError: links have no values of this type.
    """
    try:
        return _FLOATS[np.dtype(dtype)]
    except (KeyError, TypeError):
        raise ValueError(
            f"a link carries float32 or float64, got dtype={dtype!r}. Half types fit into the one, "
            "complex numbers into two values each."
        ) from None


class Float64Server(ServerOver):
    """The server's end, over that of a link of float32; see ``ServerLink``."""

    dtype = np.dtype(np.float64)

    def __init__(self, link: ServerLink) -> None:
        """Takes over a link of 2 d floats."""
        super().__init__(link)
        self.dim = link.dim // 2

    def collect(self, round: int, on_columns: OnColumns | None = None) -> Collected:
        """Returns the gradients that arrived in `round`, which must be later than any before."""

        def on_floats(stack_nd: np.ndarray, ranges_k2: np.ndarray) -> None:
            assert on_columns is not None
            on_columns(stack_nd.view(np.float64), ranges_k2 // 2)

        collected = self._link.collect(round, None if on_columns is None else on_floats)
        return replace(
            collected,
            stack_nd=collected.stack_nd.view(np.float64),
            floats_per_datagram=collected.floats_per_datagram // 2,
        )

    def broadcast(self, round: int, params_d: np.ndarray) -> None:
        """Sends the parameters of `round`, float64 [d], reliably to every worker."""
        self._link.broadcast(round, _as_floats("params_d", params_d, self.dim))

    def take(self, wait_s: float) -> Arrival | None:
        """Returns the next gradient that has come, float64 [d]; None if none does in time."""
        arrival = self._link.take(wait_s)
        if arrival is None:
            return None
        return arrival._replace(
            grad_d=arrival.grad_d.view(np.float64),
            floats_per_datagram=arrival.floats_per_datagram // 2,
        )

    def reply(self, row: int, params_d: np.ndarray) -> None:
        """Answers the gradient that was taken of a row with parameters, float64 [d]."""
        self._link.reply(row, _as_floats("params_d", params_d, self.dim))

    def native(self) -> NativeRound | None:
        """Returns where C may write the 2 d floats of what is broadcast; None for nowhere."""
        return self._link.native()


class Float64Worker:
    """A worker's end, over that of a link of float32; see ``WorkerLink``."""

    dtype = np.dtype(np.float64)

    def __init__(self, link: WorkerLink) -> None:
        """Takes over a link of 2 d floats."""
        self.rank = link.rank
        self.dim = link.dim // 2
        self._link = link

    def send(self, round: int, grad_d: np.ndarray, wait_s: float | None = None) -> bool | None:
        """Sends the gradient of `round`, float64 [d]."""
        return self._link.send(round, _as_floats("grad_d", grad_d, self.dim), wait_s)

    def receive(self, round: int, wait_s: float | None = None) -> Model | None:
        """Returns the newest parameters, float64 [d], of `round` or later."""
        model = self._link.receive(round, wait_s)
        return None if model is None else model._replace(params_d=model.params_d.view(np.float64))

    def native(self, idle: Idle) -> NativeWorkerRounds | None:
        """Returns what C may call, with 2 d floats, in place of `send` and `receive`."""
        return self._link.native(idle)

    def close(self) -> None:
        """Ends this worker's end."""
        self._link.close()


def of_dtype(link: Any, dtype: DTypeLike) -> Any:
    """Returns an end of a link of float32 as one whose values are of another type."""
    if floats_per_value(dtype) == 1:
        return link
    return Float64Server(link) if hasattr(link, "num_workers") else Float64Worker(link)


def _as_floats(name: str, values_d: np.ndarray, dim: int) -> np.ndarray:
    check_array(name, values_d, np.float64, (dim,))
    return np.ascontiguousarray(values_d).view(np.float32)
