"""The same rounds over MPI and over plain TCP, timed on the server."""

from __future__ import annotations

import argparse
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from lossympi import addresses
from lossympi.bench.udp import collectives_of, wait_for_all
from lossympi.bench.values import Values
from lossympi.topology import ROOT, Topology

_GO, _STOP, _GOT = b"g", b"s", b"a"
_TCP_CONGESTION = getattr(socket, "TCP_CONGESTION", 13)


class _TooLateError(Exception):
    """The time that may be spent is spent."""


# ---- MPI


def measure_mpi(comm: Any, arguments: argparse.Namespace, tell: Callable[[int], None]) -> dict:
    """Gather and Bcast; returns the samples on rank 0, and "too_late" on a rank that gave up.

    They are the forms that do not block, so that the limit can end them: after that MPI is in a
    state from which only the end of the process helps. The broadcast is timed until each worker has
    acknowledged it.
    """
    from mpi4py import MPI

    own = Values(comm.rank, arguments.floats, arguments.rounds, "float32")
    stack_nd = np.empty((comm.size, arguments.floats), np.float32) if comm.rank == ROOT else None
    model_d = np.empty(arguments.floats, np.float32)
    none = np.zeros(1, np.uint8)
    nones = np.zeros(comm.size, np.uint8) if comm.rank == ROOT else None
    until = time.monotonic() + arguments.limit
    samples: dict[str, Any] = {"round_s": [], "broadcast_s": [], "too_late": False}

    def wait(request: Any) -> None:
        while not request.Test():
            if time.monotonic() > until:
                raise _TooLateError
            os.sched_yield()

    try:
        for round in range(arguments.rounds):
            wait(comm.Ibarrier())
            begun = time.perf_counter()
            wait(comm.Igather(own.of_round(round), stack_nd, ROOT))
            gathered = time.perf_counter()
            wait(comm.Ibcast(own.of_round(round) if comm.rank == ROOT else model_d, ROOT))
            wait(comm.Igather(none, nones, ROOT))
            ended = time.perf_counter()
            samples["round_s"].append(gathered - begun)
            samples["broadcast_s"].append(ended - gathered)
            tell(round + 1)
    except _TooLateError:
        samples["too_late"] = True
    samples["how"] = MPI.Get_library_version().split(",")[0].split("\n")[0]
    return samples if comm.rank == ROOT else {"too_late": samples["too_late"]}


# ---- TCP


def measure_tcp(comm: Any, arguments: argparse.Namespace, tell: Callable[[int], None]) -> dict:
    """One connection a worker; returns the samples on rank 0 and nothing elsewhere.

    The server says one byte to start a round, as LossyMPI's grant does, and the broadcast is timed
    until each worker has acknowledged it with one byte.
    """
    together = collectives_of(comm)
    networks = together.allgather(addresses.network_of_this_process(), str)
    door, address = None, None
    if comm.rank == ROOT:
        host = addresses.server_address(
            os.environ.get("LOSSYMPI_ADDRESS") or None, len(set(networks)) == 1
        )
        door = socket.create_server((host, 0), backlog=comm.size)
        door.settimeout(arguments.limit)
        address = door.getsockname()
    address = together.bcast(address, tuple[str, int])
    result: dict = {}
    try:
        if door is not None:
            result = _serve(door, Topology.of_size(comm.size).workers, arguments, tell)
        else:
            _work(address, comm.rank, arguments)
    except OSError:  # the server gave up, or a connection was not made in time
        result = {"round_s": [], "broadcast_s": [], "too_late": True, "how": "no connection"}
    finally:
        if door is not None:
            door.close()
    wait_for_all(comm)
    return result if comm.rank == ROOT else {}


def _serve(
    door: socket.socket, n: int, arguments: argparse.Namespace, tell: Callable[[int], None]
) -> dict:
    until = time.monotonic() + arguments.limit
    stack_nd = np.empty((n, arguments.floats), np.float32)
    model = Values(ROOT, arguments.floats, arguments.rounds, "float32")
    samples: dict[str, Any] = {"round_s": [], "broadcast_s": [], "too_late": False}
    ends = [door.accept()[0] for _ in range(n)]
    for end in ends:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end.setblocking(False)
    how = ends[0].getsockopt(socket.IPPROTO_TCP, _TCP_CONGESTION, 16).split(b"\0")[0].decode()
    try:
        for round in range(arguments.rounds):
            begun = time.perf_counter()
            _send_to_all(ends, memoryview(_GO), until)
            _receive_from_all(ends, [_bytes(row_d) for row_d in stack_nd], until)
            gathered = time.perf_counter()
            _send_to_all(ends, _bytes(model.of_round(round)), until)
            _receive_from_all(ends, [memoryview(bytearray(1)) for _ in ends], until)
            ended = time.perf_counter()
            samples["round_s"].append(gathered - begun)
            samples["broadcast_s"].append(ended - gathered)
            tell(round + 1)
        _send_to_all(ends, memoryview(_STOP), until)
    except _TooLateError:
        samples["too_late"] = True
        for end in ends:  # nothing more is sent, and the worker hears of it
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    finally:
        for end in ends:
            end.close()
    return {**samples, "how": how}


def _work(address: tuple[str, int], rank: int, arguments: argparse.Namespace) -> None:
    own = Values(rank, arguments.floats, arguments.rounds, "float32")
    model = _bytes(np.empty(arguments.floats, np.float32))
    with socket.create_connection(address, timeout=arguments.limit + 5) as end:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        round = 0
        while end.recv(1) == _GO:
            end.sendall(_bytes(own.of_round(round)))
            at = 0
            while at < len(model):
                got = end.recv_into(model[at:])
                if got == 0:
                    return
                at += got
            end.sendall(_GOT)
            round += 1


def _send_to_all(ends: list[socket.socket], data: memoryview, until: float) -> None:
    left = dict.fromkeys(ends, data)

    def send(end: socket.socket) -> bool:
        left[end] = left[end][end.send(left[end]) :]
        return len(left[end]) == 0

    _each(ends, selectors.EVENT_WRITE, send, until)


def _receive_from_all(ends: list[socket.socket], places: list[memoryview], until: float) -> None:
    left = dict(zip(ends, places, strict=True))

    def receive(end: socket.socket) -> bool:
        got = end.recv_into(left[end])
        if got == 0:
            raise ConnectionError("a worker has closed its connection")
        left[end] = left[end][got:]
        return len(left[end]) == 0

    _each(ends, selectors.EVENT_READ, receive, until)


def _each(
    ends: list[socket.socket], event: int, step: Callable[[socket.socket], bool], until: float
) -> None:
    """Calls `step` for each end that is ready, until it has said for each that it is done."""
    with selectors.DefaultSelector() as ready:
        for end in ends:
            ready.register(end, event)
        while ready.get_map():
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise _TooLateError
            for key, _ in ready.select(left_s):
                try:
                    done = step(key.fileobj)  # type: ignore[arg-type]
                except BlockingIOError:
                    continue
                if done:
                    ready.unregister(key.fileobj)


def _bytes(array_d: np.ndarray) -> memoryview:
    return memoryview(array_d.data).cast("B")
