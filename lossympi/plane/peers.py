"""The socket and the peers behind it: seals what is sent, and finds out whose it is that came."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import struct
from typing import NamedTuple

from lossympi.endpoint import Setup
from lossympi.plane import packet
from lossympi.plane.assembler import ACCEPTED
from lossympi.plane.cipher import Sealer
from lossympi.plane.drop import Drops
from lossympi.plane.packet import Header
from lossympi.plane.protocol import Envelope, Outgoing, PeerLayout

SEND_BUFFER_WAIT_MS = 50

# Linux's numbers, which Python 3.10's socket module lacks.
IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2
SO_RCVBUFFORCE, SO_RXQ_OVFL = 33, 40


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
      overflow: datagrams that the kernel's buffer had no room for.
    """

    def __init__(self, setup: Setup, layout: PeerLayout) -> None:
        """Binds the socket to a free port."""
        self.num_dropped = self.overflow = 0
        self._setup = setup
        self._layout = layout
        self._peers: dict[int, _Peer] = {}
        self._drops = Drops(setup.drop, setup.drop_seed, setup.rank) if setup.drop else None
        self._socket = _bind(setup)
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
        if not 0 <= port <= 65535:
            raise ValueError(f"a port must be in 0..65535, got {port}. Pass the endpoint's.")
        cipher = self._setup.cipher
        seals = Sealer(cipher, send_key), Sealer(cipher, receive_key)
        row = self._layout.peers.index(rank)
        self._peers[row] = _Peer((numeric, port), *seals, itertools.count(1))

    def absent(self) -> list[int]:
        """Returns the ranks of peers that were not added."""
        return [rank for row, rank in enumerate(self._layout.peers) if row not in self._peers]

    def send(self, outgoing: Outgoing) -> None:
        """Sends a datagram; what the kernel does not take is lost, as it might be on the way."""
        row, kind, round, seq, total, payload = outgoing
        peer, setup = self._peers[row], self._setup
        counter = next(peer.counters)
        header = Header(kind, setup.rank, setup.session, round, seq, total, counter)
        body = packet.pack(header) + payload
        datagram = body + peer.send_seal.tag(counter, body)
        try:
            self._socket.sendto(datagram, peer.address)
        except BlockingIOError:  # the kernel's buffer is full: the network card is slower than this
            self._writable.poll(SEND_BUFFER_WAIT_MS)
            with contextlib.suppress(OSError):
                self._socket.sendto(datagram, peer.address)
        except OSError:
            pass  # no route, or too long for one

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
                    self.overflow = struct.unpack("=I", value[:4])[0]
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


def _bind(setup: Setup) -> socket.socket:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        udp.setblocking(False)
        udp.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        udp.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
        try:
            udp.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, setup.receive_buffer)
        except PermissionError:
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, setup.receive_buffer)
        udp.bind((setup.address, 0))
    except OSError:
        udp.close()
        raise
    return udp
