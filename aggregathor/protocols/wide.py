"""Links on which a gradient takes more values than the parameters: of encodings by complex numbers.

The parameters travel in the first d of the values, and zeros after them.
"""

from __future__ import annotations

import numpy as np

from lossympi import Collected, ServerLink, WorkerLink
from lossympi.link import (
    Arrival,
    Idle,
    Model,
    NativeRound,
    NativeWorkerRounds,
    OnColumns,
    check_array,
)
from lossympi.link_over import ServerOver


class WideServer(ServerOver):
    """The server's end, over one of ``width`` times d values; see ``ServerLink``.

    Attributes:
      num_workers: n.
      dim: values of a gradient, width * d.
      dtype: of them.
    """

    def __init__(self, link: ServerLink, width: int) -> None:
        """Takes over a link."""
        super().__init__(link)
        self.dim = link.dim
        self.dtype = link.dtype
        self._d = link.dim // width

    def collect(self, round: int, on_columns: OnColumns | None = None) -> Collected:
        """Returns the gradients that arrived in `round`, which must be later than any before."""
        return self._link.collect(round, on_columns)

    def broadcast(self, round: int, params_d: np.ndarray) -> None:
        """Sends the parameters of `round`, [d], reliably to every worker."""
        self._link.broadcast(round, self._padded(params_d))

    def take(self, wait_s: float) -> Arrival | None:
        """Returns the next gradient that has come; None if none does in time."""
        return self._link.take(wait_s)

    def reply(self, row: int, params_d: np.ndarray) -> None:
        """Answers the gradient that was taken of a row with parameters, [d]."""
        self._link.reply(row, self._padded(params_d))

    def native(self) -> NativeRound | None:
        """Returns None: C knows nothing of the zeros."""
        return None

    def _padded(self, params_d: np.ndarray) -> np.ndarray:
        check_array("params_d", params_d, self.dtype, (self._d,))
        # Another array: the last one may still be on its way.
        sent = np.zeros(self.dim, self.dtype)
        sent[: self._d] = params_d
        return sent


class WideWorker:
    """A worker's end, over one of ``width`` times d values; see ``WorkerLink``.

    Attributes:
      rank: the worker's row.
      dim: values of a gradient, width * d.
      dtype: of them.
    """

    def __init__(self, link: WorkerLink, width: int) -> None:
        """Takes over a link."""
        self.rank = link.rank
        self.dim = link.dim
        self.dtype = link.dtype
        self._link = link
        self._d = link.dim // width

    def send(self, round: int, grad_d: np.ndarray, wait_s: float | None = None) -> bool | None:
        """Sends the gradient of `round`, [width * d]."""
        return self._link.send(round, grad_d, wait_s)

    def receive(self, round: int, wait_s: float | None = None) -> Model | None:
        """Returns the newest parameters, [d], of `round` or later."""
        model = self._link.receive(round, wait_s)
        return None if model is None else model._replace(params_d=model.params_d[: self._d])

    def native(self, idle: Idle) -> NativeWorkerRounds | None:
        """Returns None, as that of the server."""
        return None

    def close(self) -> None:
        """Ends this worker's end."""
        self._link.close()


def wide_server(link: ServerLink, width: int) -> ServerLink:
    """Returns a server's end whose parameters are 1 / ``width`` as long as gradients."""
    return link if width == 1 else WideServer(link, width)


def wide_worker(link: WorkerLink, width: int) -> WorkerLink:
    """Returns a worker's end of such a link."""
    return link if width == 1 else WideWorker(link, width)
