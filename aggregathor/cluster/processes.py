"""Which processes of its own host the server's workers are, as the kernel tells it, not they.

A server that kills the process whose number a worker announces kills what the worker likes. So
each worker listens on a socket whose name has the job's token and its rank, the server connects,
and the kernel says which process listens there.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import time
from pathlib import Path

_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid: unix(7)
_START, _PARENT = 19, 1  # fields of proc(5)'s stat after the name: ticks since the boot; a pid
_ENDED = "ZX"


class Process:
    """One that the kernel named; stays the same, whoever gets its number later.

    Attributes:
      pid: its number while it lives.
    """

    def __init__(self, pid: int) -> None:
        """Takes hold of it.

        Raises:
          OSError: there is none, or the system has no pidfd (Linux before 5.3).
        """
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)
        self._ended = select.poll()
        self._ended.register(self._descriptor, select.POLLIN)

    def state(self) -> str:
        """Returns a letter of ``proc(5)``, "" once it has ended."""
        state = (_stat(self.pid) or [""])[0]
        # While it has not ended, its number is no other's: what was read is of it.
        return "" if state in _ENDED or self._ended.poll(0) else state

    def kill(self) -> None:
        """Kills it, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def close(self) -> None:
        """Lets go of it."""
        os.close(self._descriptor)


def listen(token: str, rank: int) -> socket.socket | None:
    """Worker: returns the socket by which the server identifies it; None where that cannot be."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        made.bind(_name(token, rank))
        made.listen(8)
    except OSError:
        made.close()
        return None
    return made


def identify(token: str, rank: int, begun_s: float) -> Process | str:
    """Server: returns the process of a rank, or why it is not known.

    Args:
      token: of the job, which nobody knew before it began.
      rank: of a worker that listens, if it can.
      begun_s: when the token was drawn, on CLOCK_BOOTTIME. What started later is not the worker,
        but a process that has got the number of one that has ended.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
        end.setblocking(False)
        try:
            end.connect(_name(token, rank))
            credentials = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except OSError:
            return "it is not seen on the server's host"
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    if pid <= 1:  # 0 where it has no number here
        return "it is in another container"
    if uid != os.geteuid():
        return "it belongs to another user"
    if pid in lineage():
        return "it is the server's own process, or one that started it"
    try:
        process = Process(pid)
    except OSError as error:
        return f"the system cannot hold on to it: {error.strerror}"
    stat = _stat(pid)
    if process.state() == "" or stat is None or _started_s(stat) > begun_s:
        process.close()
        return "it has ended"
    return process


def identify_all(token: str, ranks: list[int], begun_s: float) -> dict[int, Process | str]:
    """Server: returns the process of each rank, or why it is not known.

    Of two ranks that are one process neither is known: one of them is lying.
    """
    found = {rank: identify(token, rank, begun_s) for rank in ranks}
    pids = [each.pid for each in found.values() if isinstance(each, Process)]
    for rank, each in found.items():
        if isinstance(each, Process) and pids.count(each.pid) > 1:
            each.close()
            found[rank] = "another rank is the same process"
    return found


def lineage() -> set[int]:
    """Returns the number of this process, of its parent, and so on."""
    found: set[int] = set()
    pid = os.getpid()
    while pid > 0 and pid not in found:
        found.add(pid)
        stat = _stat(pid)
        pid = int(stat[_PARENT]) if stat else 0
    return found


def now_s() -> float:
    """Returns the time since the boot, sleep included, as the starts of processes have it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _name(token: str, rank: int) -> str:
    return f"\0aggregathor-{token}-{rank}"  # abstract: of a network namespace, and no file


def _started_s(stat: list[str]) -> float:
    return int(stat[_START]) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str] | None:
    """Returns the fields of ``proc(5)``'s stat from the state on; None where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
