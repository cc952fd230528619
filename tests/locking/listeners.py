"""Which ports a process has, and whether gRPC answers there."""

import contextlib
import os
import re
import socket
import struct
from pathlib import Path

_LISTENS = "0A"


def _ports(pid, protocol, state=None):
    """Returns the ports of a process's sockets of a protocol, of a state."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(descriptor))
            inodes |= {found[1]} if found else set()
    ports = set()
    for family in ("", "6"):
        for line in Path(f"/proc/{pid}/net/{protocol}{family}").read_text().splitlines()[1:]:
            words = line.split()
            if words[9] in inodes and state in (None, words[3]):
                ports.add(int(words[1].rpartition(":")[2], 16))
    return sorted(ports)


def tcp_ports(pid):
    """Returns where it listens."""
    return _ports(pid, "tcp", _LISTENS)


def udp_ports(pid):
    """Returns where it takes datagrams."""
    return _ports(pid, "udp")


def answers_grpc(port, timeout_s=2.0):
    """Whether a port of this machine speaks HTTP/2, as a gRPC server does to whoever connects."""
    settings = struct.pack(">I", 0)[1:] + b"\x04\0\0\0\0\0"  # a frame of no settings
    try:
        with socket.create_connection(("127.0.0.1", port), timeout_s) as connection:
            connection.settimeout(timeout_s)
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
            answer = connection.recv(9)
    except OSError:
        return False
    return len(answer) == 9 and answer[3] == 4
