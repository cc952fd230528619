"""The launcher's standard input, read once and given to every rank of its host, byte for byte.

``mpirun`` gives it to rank 0 alone. So the launcher keeps what it reads in a file, and each rank
reads that from a socket of its own, at its own pace: a rank that reads nothing costs nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import IO, BinaryIO

VARIABLE = "AGGREGATHOR_STDIN"  # the socket's path, in the environment of the ranks
_PIECE_BYTES = 65536
_FOREGROUND_S = 0.5  # between two looks whether the terminal is ours to read


class Source:
    """Reads standard input in a thread; whoever wants gets all of it."""

    def __init__(self) -> None:
        """Begins to read, if there is something to read from."""
        self._file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the job
        self._size = 0
        self._ended = False
        self._grown = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def follow(self) -> Iterator[bytes]:
        """Yields all of it from its beginning, waiting for what is still to come."""
        at = 0
        while True:
            with self._grown:
                while not self._ended and self._size <= at:
                    self._grown.wait()
                size = self._size
            piece = os.pread(self._file.fileno(), min(_PIECE_BYTES, size - at), at)
            if not piece:
                return
            at += len(piece)
            yield piece

    def write_to(self, end: IO[bytes]) -> None:
        """Writes it to a pipe in a thread, and closes that."""
        threading.Thread(target=self._write, args=(end,), daemon=True).start()

    def _write(self, end: IO[bytes]) -> None:
        with contextlib.suppress(OSError), end:  # who reads may end sooner
            for piece in self.follow():
                end.write(piece)
                end.flush()

    def _read(self) -> None:
        while True:
            # Who reads from a terminal in the background is stopped.
            while not _may_read():
                select.select([], [], [], _FOREGROUND_S)
            try:
                piece = os.read(0, _PIECE_BYTES)
            except OSError:  # the terminal is gone
                piece = b""
            if piece:
                os.pwrite(self._file.fileno(), piece, self._size)
            with self._grown:
                self._size += len(piece)
                self._ended = not piece
                self._grown.notify_all()
            if not piece:
                return


@contextlib.contextmanager
def served(source: Source) -> Iterator[str]:
    """Gives every process of this user that connects the whole input; yields the socket's path."""
    folder = tempfile.mkdtemp(prefix="aggregathor-")  # closed to other users
    listener = socket.socket(socket.AF_UNIX)
    try:
        path = str(Path(folder) / "stdin")
        listener.bind(path)
        listener.listen(1024)
        threading.Thread(target=_serve, args=(listener, source), daemon=True).start()
        yield path
    finally:
        listener.close()
        shutil.rmtree(folder, ignore_errors=True)


def is_there() -> bool:
    """Whether this process has a standard input that is not /dev/null."""
    try:
        return not os.path.samestat(os.fstat(0), os.stat(os.devnull))
    except OSError:  # it is closed
        return False


def receive(environment: MutableMapping[str, str]) -> None:
    """Rank: makes the launcher's standard input that of this process, if the launcher serves it.

    Raises:
      OSError: the launcher is gone.
    """
    path = environment.pop(VARIABLE, "")
    if path:
        with socket.socket(socket.AF_UNIX) as end:
            end.connect(path)
            os.dup2(end.fileno(), 0)


def _serve(listener: socket.socket, source: Source) -> None:
    with contextlib.suppress(OSError):  # it is closed at the end
        while True:
            end, _ = listener.accept()
            with end:
                source.write_to(end.makefile("wb"))


def _may_read() -> bool:
    try:
        return not os.isatty(0) or os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return True
