"""Wakes a rank that waits for MPI, which cannot wake anybody: ranks of one host ring each other.

A bell is a Unix datagram socket in the abstract namespace, which belongs to a network namespace and
leaves no file. What is written there says only: look. Anyone on the host may write it, and
makes a rank look once more.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterable, Sequence

_MOST_RINGS = 64  # that are taken at once: who rings without end must not hold up who listens


class Doorbell:
    """One rank's.

    Attributes:
      name: what others ring it by; empty where the system has no such sockets.
      hears_all: whether all those that it waits for can ring it.
    """

    def __init__(self) -> None:
        """Hangs it up."""
        self.name = b""
        self.hears_all = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        with contextlib.suppress(OSError):
            self._socket.bind("")  # the kernel chooses a name
            self.name = self._socket.getsockname()
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._names: list[bytes] = []

    def meet(self, names: Sequence[bytes], waits_for: Iterable[int]) -> None:
        """Learns the names of all ranks' bells, in their order, and which ranks matter.

        A name is empty where the rank is on another host.
        """
        self._names = list(names)
        self.hears_all = all(self._names[rank] for rank in waits_for)

    def ring(self, ranks: Iterable[int]) -> None:
        """Wakes ranks, where they can be; they may have gone."""
        for rank in ranks:
            if self._names[rank]:
                # Where the other's queue is full it is about to look anyway.
                with contextlib.suppress(OSError):
                    self._socket.sendto(b"", self._names[rank])

    def wait(self, timeout_s: float) -> bool:
        """Waits, with a resolution of 1 ms; returns whether somebody rang, before or meanwhile."""
        if not self._poll.poll(timeout_s * 1e3):
            return False
        with contextlib.suppress(OSError):
            for _ in range(_MOST_RINGS):
                self._socket.recv(1)
        return True

    def close(self) -> None:
        """Takes it down."""
        self._socket.close()
