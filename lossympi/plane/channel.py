"""The socket and the peers behind it: seals what is sent, and tells whose it is that came."""

import contextlib
import math
import select
import socket
import struct

from lossympi.endpoint import REASONS, Setup
from lossympi.plane import packet
from lossympi.plane.assembler import ACCEPTED
from lossympi.plane.cipher import Sealer, tag_bytes
from lossympi.plane.drop import Drops
from lossympi.plane.outgoing import Outgoing
from lossympi.plane.packet import HEADER_BYTES, IP_UDP_BYTES, Header, Kind

SEND_BUFFER_WAIT_MS = 50

# Linux's numbers, which Python 3.10's socket module lacks.
IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2
SO_RCVBUFFORCE, SO_RXQ_OVFL = 33, 40


class Peer:
    """What is known of one peer."""

    def __init__(self, address: tuple[str, int], send_seal: Sealer, receive_seal: Sealer) -> None:
        """Starts with a peer that is not known to live."""
        self.address = address
        self.send_seal = send_seal
        self.receive_seal = receive_seal
        self.num_sent = 0  # the counter of what was sent last
        self.last_counter = 0  # the highest that was accepted, DATA's left out: they may overtake
        self.counts = dict.fromkeys((ACCEPTED, *REASONS), 0)
        self.has_spoken = False  # since the round was opened
        self.has_left = False
        self.done_round = 0
        self.nacked_at = -math.inf
        self.echoed: set[int] = set()  # sizes of IP packets
        self.outgoing: Outgoing | None = None
        self.outgoing_round = 0


class Channel:
    """Datagrams to and from known peers. It has no lock; its owner has.

    Attributes:
      port: that the socket is bound to.
      peers: by rank.
      counts: of what is nobody's.
      around: bytes of a datagram that are not payload.
    """

    def __init__(self, setup: Setup) -> None:
        """Binds the socket to a free port."""
        self.peers: dict[int, Peer] = {}
        self.counts = dict.fromkeys((ACCEPTED, *REASONS, "dropped", "overflow"), 0)
        self.around = HEADER_BYTES + tag_bytes(setup.cipher)
        self._setup = setup
        self._max_bytes = setup.mtu - IP_UDP_BYTES
        self._drops = Drops(setup.drop, setup.drop_seed, setup.rank) if setup.drop else None
        self._socket = _bind(setup)
        self.port: int = self._socket.getsockname()[1]
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(self._socket, select.POLLIN)
        self._writable.register(self._socket, select.POLLOUT)

    def add_peer(
        self, rank: int, address: str, port: int, send_key: bytes, receive_key: bytes
    ) -> None:
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
        self.peers[rank] = Peer((numeric, port), *seals)

    def send(
        self,
        peer: Peer,
        kind: Kind,
        round: int,
        seq: int = 0,
        total: int = 0,
        payload: bytes = b"",
    ) -> None:
        """Sends a datagram; what the kernel does not take is lost, as it might be on the way."""
        peer.num_sent += 1
        setup = self._setup
        header = Header(kind, setup.rank, setup.session, round, seq, total, peer.num_sent)
        body = packet.pack(header) + payload
        datagram = body + peer.send_seal.tag(peer.num_sent, body)
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
        """Returns a datagram that has come and its source, or None; may be called without a lock.

        What the drop hook loses is counted and passed over. A datagram that is longer than the MTU
        allows is cut, to be one byte too long.
        """
        while True:
            try:
                data, extras, _, source = self._socket.recvmsg(
                    self._max_bytes + 1, socket.CMSG_SPACE(4)
                )
            except OSError:  # nothing is left, or what became of something sent: lost all the same
                return None
            for level, kind, value in extras:
                if level == socket.SOL_SOCKET and kind == SO_RXQ_OVFL:
                    self.counts["overflow"] = struct.unpack("=I", value[:4])[0]
            if self._drops is None or not self._drops.next():
                return data, source
            self.counts["dropped"] += 1

    def open(self, data: bytes, source: tuple[str, int]) -> tuple[Peer, Header, bytes] | None:
        """Returns whose a datagram is, its header and its payload, or counts why it is nobody's."""
        if len(data) < self.around:
            self.counts["truncated"] += 1
            return None
        if len(data) > self._max_bytes:
            self.counts["oversized"] += 1
            return None
        if data[0] != packet.VERSION:
            self.counts["version"] += 1
            return None
        header = packet.unpack(data)
        peer = self.peers.get(header.rank)
        if header.session != self._setup.session or peer is None or peer.address != source:
            self.counts["foreign"] += 1
            return None
        end = len(data) - self.around + HEADER_BYTES
        if not peer.receive_seal.fits(header.counter, data[:end], data[end:]):
            peer.counts["forged"] += 1
            return None
        return peer, header, data[HEADER_BYTES:end]

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
