"""A worker that sends garbage and floods the server, over each transport, within its own means."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import numpy as np

from lossympi import LinkError
from lossympi.plane.packet import Kind
from lossympi.plane.protocol import Outgoing

_MOST_PENDING = 64  # MPI messages that the server has not taken yet
_GARBAGE, _FLOOD = 12, 1500  # messages at once; a flood stays below what loopback and buffer carry
_NUMBERS = (np.nan, np.inf, -np.inf, 1e38, -1e38, 1e-45, 0.0, -0.0)


class Hostile:
    """What it does beside its gradients.

    Attributes:
      sent: messages.
    """

    def __init__(self, link: Any, transport: str, server_port: int) -> None:
        """Takes over a worker's end of a link, and the port of the server's UDP socket."""
        self.sent = 0
        self._link = link
        self._port = server_port
        self._pending: list[tuple[Any, np.ndarray]] = []
        self._act = getattr(self, f"_by_{transport}")

    def garbage(self, random: np.random.Generator, round: int) -> None:
        """Sends some messages that no worker should send."""
        self._act(random, round, _GARBAGE)

    def flood(self, random: np.random.Generator, round: int) -> None:
        """Sends many of them."""
        self._act(random, round, _FLOOD)

    def spoil(self, random: np.random.Generator, grad_d: np.ndarray) -> np.ndarray:
        """Returns a gradient of anything."""
        if random.random() < 0.3:
            return random.integers(0, 256, grad_d.nbytes, np.uint8).view(np.float32)
        spoilt_d = random.choice(np.array(_NUMBERS, np.float32), len(grad_d))
        return np.where(random.random(len(grad_d)) < 0.5, grad_d, spoilt_d).astype(np.float32)

    def _by_udp(self, random: np.random.Generator, round: int, number: int) -> None:
        """Datagrams that anyone may send, from another port; and some under its own key."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for _ in range(number):
                size = int(random.integers(0, 1500))
                with contextlib.suppress(OSError):
                    stranger.sendto(random.bytes(size), ("127.0.0.1", self._port))
        endpoint = self._link._endpoint
        for _ in range(min(number, 64)):
            kind = random.choice(
                [Kind.READY, Kind.END, Kind.NACK, Kind.DONE, Kind.PROBE, Kind.DATA]
            )
            about = max(0, round + int(random.integers(-2, 3))) if kind != Kind.PROBE else 0
            payload = random.bytes(int(random.integers(0, 1400))) if random.random() < 0.5 else b""
            endpoint._peers.send(
                Outgoing(0, Kind(kind), about, int(random.integers(2**32)) % 9, 0, payload)
            )
        self.sent += number

    def _by_mpi(self, random: np.random.Generator, round: int, number: int) -> None:
        """Messages of any length and tag on the link's own communicator, and many rings."""
        comm, dim = self._link._comm, self._link.dim
        self._pending = [each for each in self._pending if not each[0].Test()]
        for _ in range(min(number, _MOST_PENDING - len(self._pending))):
            size = int(random.choice([0, 1, dim - 1, dim, dim + 1]))
            tag = int(random.choice([round, round + 1, max(0, round - 1), 2**30 - 1]))
            if size == dim and tag in (round, round + 1):
                size = dim + 2  # it is to come to its own round in time
            floats = np.full(size, np.nan, np.float32)
            self._pending.append((comm.Isend(floats, 0, tag), floats))
            self.sent += 1
        for _ in range(number):
            self._link._bell.ring([0])

    def _by_shm(self, random: np.random.Generator, round: int, number: int) -> None:
        """Gradients of other rounds, one over the other."""
        for _ in range(min(number, 200)):
            about = max(0, round + int(random.choice([-1, 1, 2, 1000])))
            with contextlib.suppress(LinkError):
                self._link._worker.put(about, np.full(self._link.dim, np.nan, np.float32))
            self.sent += 1
