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

from lossympi import backend
from lossympi.checked_link import CheckedWorkerLink
from lossympi.link import Arrival, Idle, Model, NativeRound, NativeWorkerRounds, aligned_zeros
from lossympi.lossless_link import Desk, LosslessServerLink, OpenRound
from lossympi.options import Options

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


class SharedServer(LosslessServerLink):
    """The server's end; ``connect`` makes it.

    Attributes:
      files: for the workers, until ``hide``.
    """

    def __init__(self, num_workers: int, dim: int, options: Options) -> None:
        """Makes the memory.

        Raises:
          OSError: the system has none to share.
        """
        super().__init__(num_workers, dim, options)
        with contextlib.ExitStack() as made:  # closed if one of them fails
            mailboxes = [
                _new_file(made, backend.native().mailbox_bytes(dim)) for _ in range(num_workers)
            ]
            bell = _new_file(made, backend.native().BELL_BYTES)
            for file in (*mailboxes, bell):
                _seal(file, _SIZE_SEALS)
            # Last, so that it is sealed at once: who maps it before may write to it for ever. Our
            # own mapping has to be there first, and stays writeable.
            board = _new_file(made, backend.native().board_bytes(dim, num_workers))
            self._server = backend.native().SharedServer(
                [file.descriptor for file in mailboxes], board.descriptor, bell.descriptor, dim
            )
            _seal(board, _SIZE_SEALS | _SEAL_FUTURE_WRITE)
            self.files = Files(os.getpid(), tuple(mailboxes), board, bell)
            made.pop_all()

    def hide(self) -> None:
        """Closes the files: no other process can open them any more."""
        for file in (*self.files.mailboxes, self.files.board, self.files.bell):
            os.close(file.descriptor)

    def _take_until_closed(self, opened: OpenRound) -> tuple[str, float]:
        """Copies what comes into the stack."""
        closed_by, counts = self._server.collect(
            opened.round,
            self._stack_nd,
            opened.live_n,
            self._quorum,
            opened.terms.longest_s,
            opened.terms.f,
            opened.terms.free_s,
            np.array(opened.terms.allowance_s_n),
            opened.arrived_n,
            opened.settled_s_n,
        )
        elapsed_s = opened.elapsed_s()
        opened.heard_n |= opened.arrived_n
        _count(opened, counts)
        return closed_by, elapsed_s

    def _broadcast(self, round: int, params_d: np.ndarray) -> None:
        """Lets workers see the parameters, and waits for none.

        Cost: a copy, unless they are where ``native`` says.
        """
        self._server.publish(round, np.ascontiguousarray(params_d))

    def _take(self, wait_s: float) -> Arrival | None:
        """Copies what comes into the stack, the first of each ticket."""
        desk = self._at_desk()
        taken_n = np.zeros(self.num_workers, bool)
        taken_n[list(self._unanswered)] = True
        counts = self._server.take(desk.tickets, self._stack_nd, taken_n, desk.arrived_n, wait_s)
        _count(desk, counts)
        return self._next(self._stack_nd, desk.arrived_n)

    def _reply(self, row: int, ticket: int, params_d: np.ndarray) -> None:
        """Writes the parameters where this worker looks; of one that does not, over the last.

        Cost: a copy.
        """
        self._at_desk().arrived_n[row] = False
        self._server.reply(row, ticket, np.ascontiguousarray(params_d))

    def native(self) -> NativeRound:
        """Returns where the next parameters may be written, for those who call C."""
        return self._server

    def _close(self) -> None:
        """Tells the workers that it leaves."""
        self._server.leave()


class SharedWorker(CheckedWorkerLink):
    """A worker's end; ``connect`` makes it."""

    def __init__(self, files: Files, rank: int, dim: int, options: Options) -> None:
        """Opens what the server shares.

        Raises:
          ValueError: it is not there, as on another host or in another container.
        """
        super().__init__(rank, dim, options.give_up_s)
        opened: list[int] = []
        try:
            for file, flags in (
                (files.mailboxes[rank], os.O_RDWR),
                (files.board, os.O_RDONLY),
                (files.bell, os.O_RDWR),
            ):
                opened.append(_open_file(files.process, file, flags))
            self._worker = backend.native().SharedWorker(*opened, dim, rank)
        finally:
            for descriptor in opened:
                os.close(descriptor)
        self._buffers: list[np.ndarray] = []  # of what was received last, and of the next

    def _send(self, round: int, grad_d: np.ndarray, wait_s: float) -> bool:
        """Copies the gradient to where the server looks, and waits for nothing.

        Returns:
          True, even if the server may have closed the round.
        """
        self._check_server(f"take the gradient of round {round}", time.monotonic())
        self._worker.put(round, np.ascontiguousarray(grad_d))
        return True

    def _receive(self, round: int, wait_s: float) -> Model | None:
        """Returns a copy of the newest parameters."""
        if not self._buffers:
            self._buffers = [aligned_zeros((self.dim,)), aligned_zeros((self.dim,))]
        found = self._worker.receive(round, self._buffers[1], wait_s)
        if found is None:
            return None
        self._buffers.reverse()
        params_d = self._buffers[0].view()
        params_d.setflags(write=False)
        return Model(found, params_d)

    def native(self, idle: Idle) -> NativeWorkerRounds:
        """Returns rounds for those who call C, in place of `send` and `receive`."""
        return backend.native().WorkerRounds(self._worker, 0.0, idle)

    def _server_left(self) -> bool:
        return self._worker.server_left()

    def _close(self) -> None:
        """Nothing is left to end: the memory goes with its last user."""


def _count(opened: OpenRound | Desk, counts: Sequence[tuple[int, int, int]]) -> None:
    """Notes what was dropped of each row."""
    for row, of_reasons in enumerate(counts):
        for reason, count in zip(("late", "early", "duplicate"), of_reasons, strict=True):
            if count:
                opened.count(row, reason, count)


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
