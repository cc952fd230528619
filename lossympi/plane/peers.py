"""The socket and the peers behind it: seals what is sent, and finds out whose it is that came."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import itertools
import select
import socket
import struct
import threading
from collections import Counter
from typing import NamedTuple

from lossympi.endpoint import Setup
from lossympi.plane import packet
from lossympi.plane.assembler import ACCEPTED
from lossympi.plane.cipher import Sealer
from lossympi.plane.drop import Drops
from lossympi.plane.packet import Header
from lossympi.plane.protocol import Envelope, Outgoing, PeerLayout

ROOM_WAIT_MS = 10

# Linux's numbers, which Python 3.10's socket module lacks.
IP_MTU_DISCOVER, IP_PMTUDISC_PROBE = 10, 3
SO_ATTACH_FILTER, SO_RCVBUFFORCE, SO_RXQ_OVFL, SO_MEMINFO = 26, 33, 40, 55

MOST_SOURCES = 128  # that are sought one by one, for each datagram


class _Peer(NamedTuple):
    """Where a peer is, and what is sealed for it and by it."""

    address: tuple[str, int]
    send_seal: Sealer
    receive_seal: Sealer
    counters: itertools.count  # of what is sent; two threads send


class Peers:
    """Datagrams to and from known peers, by row.

    Attributes:
      port: that the socket is bound to.
      num_dropped: datagrams that the drop hook has lost.
    """

    def __init__(self, setup: Setup, layout: PeerLayout) -> None:
        """Binds the socket to a free port."""
        self.num_dropped = 0
        self._setup = setup
        self._layout = layout
        self._peers: dict[int, _Peer] = {}
        self._unsent: Counter[int] = Counter()  # by row
        self._unsent_lock = threading.Lock()
        self._drops = Drops(setup.drop, setup.drop_seed, setup.rank) if setup.drop else None
        self._socket = _bind(setup)
        self._has_fill = _memory(self._socket) is not None
        if not self._has_fill:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
        self._kernel_drops = self._seen_drops = 0
        self.port: int = self._socket.getsockname()[1]
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(self._socket, select.POLLIN)
        self._writable.register(self._socket, select.POLLOUT)

    def add(self, rank: int, address: str, port: int, send_key: bytes, receive_key: bytes) -> None:
        """Makes a peer known, or known anew.

        Raises:
          ValueError: an address or a key that is none.
        """
        try:
            numeric = socket.inet_ntoa(socket.inet_pton(socket.AF_INET, address))
        except OSError as error:
            raise ValueError(f"a peer needs a numeric IPv4 address, got {address!r}.") from error
        ip = ipaddress.IPv4Address(numeric)
        if int(ip) == 0 or int(ip) >= int(ipaddress.IPv4Address("224.0.0.0")):
            raise ValueError(
                f"a peer needs the address of one host, got {address!r}. Pass that of its own "
                "network card."
            )
        if not 0 <= port <= 65535:
            raise ValueError(f"a port must be in 0..65535, got {port}. Pass the endpoint's.")
        cipher = self._setup.cipher
        seals = Sealer(cipher, send_key), Sealer(cipher, receive_key)
        row = self._layout.peers.index(rank)
        self._peers[row] = _Peer((numeric, port), *seals, itertools.count(1))

    def absent(self) -> list[int]:
        """Returns the ranks of peers that were not added."""
        return [rank for row, rank in enumerate(self._layout.peers) if row not in self._peers]

    def num_unsent(self, row: int) -> int:
        """Returns how many datagrams for a peer this host has not sent."""
        return self._unsent[row]

    def wait_for_room(self) -> None:
        """Waits until something can be sent, for 10 ms at most."""
        self._writable.poll(ROOM_WAIT_MS)

    def send(self, outgoing: Outgoing, may_wait: bool = False) -> bool:
        """Sends a datagram; returns whether it has left.

        What this host does not send is counted and lost, as it might be on the way: too long for
        its device, refused, no route, or no room, for which it waits only if it `may_wait`.
        """
        row, kind, round, seq, total, payload = outgoing
        peer, setup = self._peers[row], self._setup
        counter = next(peer.counters)
        header = Header(kind, setup.rank, setup.session, round, seq, total, counter)
        body = packet.pack(header) + payload
        datagram = body + peer.send_seal.tag(counter, body)
        for _ in range(1 + may_wait):
            try:
                self._socket.sendto(datagram, peer.address)
                return True
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ENOBUFS):
                    break
            if may_wait:
                self.wait_for_room()
        with self._unsent_lock:  # two threads send
            self._unsent[row] += 1
        return False

    def keep_only_peers(self) -> None:
        """Has the kernel drop what comes from anybody else.

        Unless they are so many that the search would cost more than it saves.
        """
        if not self._has_fill or len(self._peers) > MOST_SOURCES:
            return
        program = b"".join(_keep(*peer.address) for peer in self._peers.values())
        program += _instruction(_RETURN, 0)
        kept = ctypes.create_string_buffer(program)
        filter_of = struct.pack("@HP", len(program) // 8, ctypes.addressof(kept))
        with contextlib.suppress(OSError):  # without it strangers cost more, and that is all
            self._socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filter_of)

    def new_drops(self) -> tuple[int, int]:
        """Returns how many datagrams the kernel has dropped since the last call, of two kinds.

        Those that found the buffer full, and those of strangers, or damaged ones. The kernel does
        not tell them apart, the fill of the buffer does, if it was not read since.
        """
        is_full = True
        if self._has_fill:
            memory = _memory(self._socket)
            if memory is None:  # it is closed
                return 0, 0
            self._kernel_drops = memory.drops
            # Some may have been read since the last look, and the kernel counts late what was.
            is_full = memory.used_bytes >= memory.buffer_bytes // 2
        news = (self._kernel_drops - self._seen_drops) % 2**32
        self._seen_drops = self._kernel_drops
        return (news, 0) if is_full else (0, news)

    def wait(self, timeout_ms: int) -> bool:
        """Returns whether something has come, as soon as it has."""
        return bool(self._readable.poll(timeout_ms))

    def receive(self) -> tuple[bytes, tuple[str, int]] | None:
        """Returns a datagram that has come and its source, or None.

        What the drop hook loses is counted and passed over. A datagram that is longer than the MTU
        allows is cut, to be one byte too long.
        """
        while True:
            try:
                data, extras, _, source = self._socket.recvmsg(
                    self._layout.longest_datagram + 1, socket.CMSG_SPACE(4)
                )
            except OSError:  # nothing is left, or what became of something sent: lost all the same
                return None
            for level, kind, value in extras:
                if level == socket.SOL_SOCKET and kind == SO_RXQ_OVFL:
                    [self._kernel_drops] = struct.unpack("=I", value[:4])
            if self._drops is None or not self._drops.next():
                return data, source
            self.num_dropped += 1

    def open(self, data: bytes, source: tuple[str, int]) -> Envelope:
        """Returns whose a datagram is and what it says; not "accepted" if that is not so."""
        envelope = self._layout.open(data)
        if envelope.verdict != ACCEPTED:
            return envelope
        assert envelope.header is not None
        peer = self._peers.get(envelope.row)
        if peer is None or peer.address != source:
            return Envelope("foreign")
        end = len(data) - self._layout.tag_bytes
        if not peer.receive_seal.fits(envelope.header.counter, data[:end], data[end:]):
            return envelope._replace(verdict="forged")
        return envelope

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()


class _Memory(NamedTuple):
    """Of a socket: what its received datagrams take, may take, and how many were dropped."""

    used_bytes: int
    buffer_bytes: int
    drops: int


def _memory(udp: socket.socket) -> _Memory | None:
    try:
        values = struct.unpack("=9I", udp.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))
    except (OSError, struct.error):
        return None
    return _Memory(values[0], values[1], values[8])


# Classic BPF. The program sees the datagram from its UDP header on, and the IP header by a negative
# offset.
_LOAD_WORD, _LOAD_HALF, _IF_EQUAL, _RETURN = 0x20, 0x28, 0x15, 0x06
_IP_HEADER = 2**32 - 0x100000


def _instruction(code: int, value: int, skip_if_not: int = 0) -> bytes:
    return struct.pack("=HBBI", code, 0, skip_if_not, value)


def _keep(address: str, port: int) -> bytes:
    """Returns what keeps a datagram that comes from there, and else goes on behind it."""
    return b"".join(
        (
            _instruction(_LOAD_WORD, _IP_HEADER + 12),
            _instruction(_IF_EQUAL, int(ipaddress.IPv4Address(address)), 3),
            _instruction(_LOAD_HALF, 0),
            _instruction(_IF_EQUAL, port, 1),
            _instruction(_RETURN, 2**32 - 1),  # all of it
        )
    )


def _bind(setup: Setup) -> socket.socket:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        udp.setblocking(False)
        # Fragments are forbidden, and ICMP is not believed: see io/udp_socket.cc.
        udp.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
        try:
            udp.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, setup.receive_buffer)
        except PermissionError:
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, setup.receive_buffer)
        udp.bind((setup.address, 0))
    except OSError:
        udp.close()
        raise
    return udp
