"""A link between ranks of one host, by memory that they share (``WIRE.md``): nothing is lost.

The server waits for nobody but in `collect`, and copies a gradient before it looks at it: a worker
may go on writing. What a worker can write is its mailbox and a bell; the model it can only read.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lossympi.link import (
    Ahead,
    CFunctions,
    Collected,
    Idle,
    Model,
    Rounds,
    RoundStats,
    WorkerStats,
    aligned_zeros,
    check_array,
    check_broadcasts,
    check_collects,
    check_round,
    check_server,
    check_wait,
)
from lossympi.open_round import worker_stats
from lossympi.options import Options
from lossympi.planes import core
from lossympi.timeout import Liveness

_SEAL_FUTURE_WRITE = 0x10  # Linux 5.1; Python 3.10 has no name for it
_SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW  # who shrinks a file kills whoever reads it


class _File(NamedTuple):
    """An open file of the server's process, and which one it is."""

    descriptor: int
    device: int
    inode: int


class Files(NamedTuple):
    """What the server shares, by where it can be opened while the server has it open.

    Attributes:
      process: the server's.
      mailboxes: a file for each worker.
      board: with the parameters.
      bell: that wakes the server.
    """

    process: int
    mailboxes: tuple[_File, ...]
    board: _File
    bell: _File


class SharedServer:
    """The server's end; ``connect`` makes it.

    Attributes:
      files: for the workers, until ``hide``.
    """

    def __init__(self, num_workers: int, dim: int, options: Options) -> None:
        """Makes the memory.

        Raises:
          OSError: the system has none to share.
        """
        self.num_workers = num_workers
        self.dim = dim
        self._options = options
        self._stack_nd = aligned_zeros((num_workers, dim))
        self._liveness = Liveness(num_workers, patience=options.patience)
        self._open: tuple[np.ndarray, np.ndarray] | None = None  # who lives, and who has arrived
        self._collected_round = -1
        self._broadcast_round = -1
        self._closed = False
        with contextlib.ExitStack() as made:  # closed if one of them fails
            mailboxes = [_new_file(made, core().mailbox_bytes(dim)) for _ in range(num_workers)]
            board = _new_file(made, core().board_bytes(dim))
            bell = _new_file(made, core().BELL_BYTES)
            self.files = Files(os.getpid(), tuple(mailboxes), board, bell)
            self._server = core().SharedServer(
                [file.descriptor for file in mailboxes], board.descriptor, bell.descriptor, dim
            )
            for file in (*mailboxes, bell):
                _seal(file, _SIZE_SEALS)
            _seal(board, _SIZE_SEALS | _SEAL_FUTURE_WRITE)  # our own mapping stays writeable
            made.pop_all()

    def hide(self) -> None:
        """Closes the files: no other process can open them any more."""
        for file in (*self.files.mailboxes, self.files.board, self.files.bell):
            os.close(file.descriptor)

    def collect(self, round: int, ahead: Ahead | None = None) -> Collected:
        """Returns the gradients of `round` that came before every live worker's had, or the quorum
        had, or `timeout_s` had passed.

        Raises:
          ValueError: the link is closed, or the round was collected before.
        Cost: a copy of each gradient.
        """
        self._check_not_closed()
        check_round(round)
        check_collects(round, self._collected_round)
        self._collected_round = round
        live_n = np.array(self._liveness.live)
        arrived_n = np.zeros(self.num_workers, bool)
        settled_s_n = np.full(self.num_workers, np.nan)
        self._open = live_n, arrived_n
        begun = time.monotonic()
        try:
            closed_by, counts = self._server.collect(
                round,
                self._stack_nd,
                live_n,
                self._options.quorum or self.num_workers,
                self._options.timeout_s,
                arrived_n,
                settled_s_n,
            )
        finally:
            self._open = None
        rows = zip(arrived_n.tolist(), live_n.tolist(), settled_s_n.tolist(), counts, strict=True)
        workers = tuple(_stats_of(*row) for row in rows)
        self._liveness.observe(np.array([worker.heard for worker in workers]))
        stats = RoundStats(
            round, closed_by, time.monotonic() - begun, self._options.timeout_s, workers
        )
        return Collected(round, self._stack_nd, arrived_n[:, None], self.dim, stats)

    def broadcast(self, round: int, params_d: np.ndarray) -> None:
        """Lets workers see the parameters of `round`, float32 [d], and waits for none.

        Raises:
          ValueError: the link is closed, the parameters have another shape or dtype, or the round
            is not later than the one broadcast before.
        Cost: a copy, unless they are where ``native`` says.
        """
        self._check_not_closed()
        check_round(round)
        check_array("params_d", params_d, np.float32, (self.dim,))
        check_broadcasts(round, self._broadcast_round)
        self._broadcast_round = round
        self._server.publish(round, np.ascontiguousarray(params_d))

    def native(self) -> CFunctions:
        """Returns where the next parameters may be written, for those who call C."""
        return self._server

    def waiting_for(self) -> list[int]:
        """Returns the rows of live workers whose gradient has not come in the open round.

        It may be called from another thread. Empty if no round is open.
        """
        opened = self._open
        return [] if opened is None else np.flatnonzero(opened[0] & ~opened[1]).tolist()

    def forget(self, row: int) -> None:
        """Waits for a worker no more, be it in the open round, until it is heard again."""
        self._liveness.forget(row)
        opened = self._open
        if opened is not None:
            opened[0][row] = False

    def close(self) -> None:
        """Tells the workers that it leaves, and ends the link."""
        if not self._closed:
            self._closed = True
            self._server.leave()

    def _check_not_closed(self) -> None:
        if self._closed:
            raise ValueError("the server has closed this link. Connect a new one.")


class SharedWorker:
    """A worker's end; ``connect`` makes it."""

    def __init__(self, files: Files, rank: int, dim: int, options: Options) -> None:
        """Opens what the server shares.

        Raises:
          ValueError: it is not there, as on another host or in another container.
        """
        self.rank = rank
        self.dim = dim
        self._options = options
        opened: list[int] = []
        try:
            for file, flags in (
                (files.mailboxes[rank], os.O_RDWR),
                (files.board, os.O_RDONLY),
                (files.bell, os.O_RDWR),
            ):
                opened.append(_open_file(files.process, file, flags))
            self._worker = core().SharedWorker(*opened, dim)
        finally:
            for descriptor in opened:
                os.close(descriptor)
        self._held: Model | None = None  # what `receive` returned last
        self._buffers: list[np.ndarray] = []  # its, and the next one's
        self._closed = False

    def send(self, round: int, grad_d: np.ndarray, wait_s: float | None = None) -> bool | None:
        """Puts the gradient of `round`, float32 [d], where the server looks.

        Args:
          round: its number.
          grad_d: the gradient; it is copied.
          wait_s: nothing is waited for.
        Returns:
          True, even if the server may have closed the round.
        Raises:
          ValueError: the end is closed, or the gradient has another shape or dtype.
          LinkError: the server has left.
        """
        self._check_not_closed()
        check_round(round)
        check_array("grad_d", grad_d, np.float32, (self.dim,))
        check_wait(wait_s)
        self._check_server(f"take the gradient of round {round}", 0.0)
        self._worker.put(round, np.ascontiguousarray(grad_d))
        return True

    def receive(self, round: int, wait_s: float | None = None) -> Model | None:
        """Returns the newest parameters, of `round` or later.

        A worker that was away gets those of a later round: the next gradient that the server wants
        is that of ``model.round + 1``.

        Args:
          round: the first that is wanted.
          wait_s: how long to wait for it; None for `give_up_s`.
        Returns:
          The parameters, which stay as they are until the next call that returns others; None if
          `wait_s` has passed first.
        Raises:
          ValueError: the end is closed.
          LinkError: the server has left, or sends nothing for `give_up_s`.
        """
        self._check_not_closed()
        check_round(round)
        check_wait(wait_s)
        begun = time.monotonic()
        held = self._held
        if held is not None and held.round >= round:
            return self._take(held.round + 1, 0.0) or held  # a newer one only if it is there
        give_up_s = self._options.give_up_s
        model = self._take(round, give_up_s if wait_s is None else min(wait_s, give_up_s))
        if model is None:
            self._check_server(f"send the parameters of round {round}", time.monotonic() - begun)
        return model

    def native(self, idle: Idle) -> Rounds:
        """Returns rounds for those who call C, in place of `send` and `receive`."""
        return core().WorkerRounds(self._worker, 0.0, idle)

    def close(self) -> None:
        """Ends this worker's end only."""
        self._closed = True

    def _take(self, round: int, timeout_s: float) -> Model | None:
        if not self._buffers:
            self._buffers = [aligned_zeros((self.dim,)), aligned_zeros((self.dim,))]
        found = self._worker.receive(round, self._buffers[1], timeout_s)
        if found is None:
            return None
        self._buffers.reverse()
        params_d = self._buffers[0].view()
        params_d.setflags(write=False)
        self._held = Model(found, params_d)
        return self._held

    def _check_server(self, awaited: str, waited_s: float) -> None:
        left = self._worker.server_left()
        check_server(self.rank, awaited, left, waited_s, self._options.give_up_s)

    def _check_not_closed(self) -> None:
        if self._closed:
            raise ValueError(f"worker {self.rank} has closed its end. Connect a new link.")


def _stats_of(arrived: bool, live: bool, settled_s: float, counts: Sequence[int]) -> WorkerStats:
    late, early, duplicate = counts
    heard = arrived or late > 0  # who comes late lives; what comes early is no sign of life
    of_reasons = {"late": late, "early": early, "duplicate": duplicate}
    return worker_stats(arrived, heard, live, settled_s, of_reasons)


def _new_file(made: contextlib.ExitStack, size: int) -> _File:
    descriptor = os.memfd_create("lossympi", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    made.callback(os.close, descriptor)
    os.ftruncate(descriptor, size)
    status = os.fstat(descriptor)
    return _File(descriptor, status.st_dev, status.st_ino)


def _seal(file: _File, seals: int) -> None:
    fcntl.fcntl(file.descriptor, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_SEAL)


def _open_file(process: int, file: _File, flags: int) -> int:
    """Opens what another process has open, if that is what it says."""
    path = f"/proc/{process}/fd/{file.descriptor}"
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise ValueError(f"cannot open the server's memory, {path}: {error.strerror}") from None
    status: Any = os.fstat(descriptor)
    if (status.st_dev, status.st_ino) != (file.device, file.inode):  # of another container
        os.close(descriptor)
        raise ValueError(f"{path} is not the server's memory: it runs in another container")
    return descriptor
