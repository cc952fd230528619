"""What a rank does with the datagrams that it receives, and what it wants sent (``WIRE.md``).

Knows neither socket, clock nor lock: the time is passed in, in seconds, and what is to be sent is
returned. The twin of ``core/protocol.h``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from lossympi.credit import Credit
from lossympi.endpoint import REASONS, Closed, ClosePolicy, Setup
from lossympi.plane import packet
from lossympi.plane.assembler import ACCEPTED, Assembler
from lossympi.plane.cipher import tag_bytes
from lossympi.plane.close_rule import CloseRule
from lossympi.plane.packet import HEADER_BYTES, IP_UDP_BYTES, Header, Kind
from lossympi.plane.send_queue import SendQueue
from lossympi.topology import Topology

NACK_GAP_S = 0.00025  # at least, for each peer
READY_FIRST_S, READY_LAST_S = 0.002, 0.05
NUM_PAUSES = 3  # as with END: one may be lost
SHORT_PROBE_BYTES = 100 - IP_UDP_BYTES  # of a datagram
# Other replies, for each peer: so many bytes at once, or four of the longest datagrams, and then a
# bare datagram as often as NACKs.
REPLY_BYTES = 16384.0
REPLY_BYTES_PER_S = (HEADER_BYTES + packet.TAG_BYTES) / NACK_GAP_S


class Envelope(NamedTuple):
    """What can be said of a datagram before its address and its tag are checked.

    Attributes:
      verdict: "accepted", or the reason for which it is nobody's.
      row: of the peer whose it claims to be, -1 for nobody.
      header: its header, if it is a peer's.
      payload: its payload, if it is a peer's.
    """

    verdict: str
    row: int = -1
    header: Header | None = None
    payload: bytes = b""


@dataclass(frozen=True)
class PeerLayout:
    """Who is who: a rank's peers and their rows.

    Attributes:
      rank: this rank.
      num_workers: n.
      session: the job's number, which no other job has.
      dim: d, floats in a vector.
      floats: of them in a datagram.
      wire: the type on the wire.
      longest_datagram: bytes.
      tag_bytes: behind each datagram.
    """

    rank: int
    num_workers: int
    session: int
    dim: int
    floats: int
    wire: str
    longest_datagram: int
    tag_bytes: int

    @classmethod
    def of(cls, setup: Setup) -> PeerLayout:
        """Returns that of an endpoint."""
        return cls(
            setup.rank,
            setup.num_workers,
            setup.session,
            setup.dim,
            packet.floats_per_datagram(setup.mtu, setup.wire),
            setup.wire,
            setup.mtu - IP_UDP_BYTES,
            tag_bytes(setup.cipher),
        )

    @cached_property
    def is_server(self) -> bool:
        """Whether this rank is the server."""
        return Topology(servers=1, workers=self.num_workers).is_server(self.rank)

    @cached_property
    def peers(self) -> range:
        """The ranks of the peers, in the order of their rows."""
        return Topology(servers=1, workers=self.num_workers).peers_of(self.rank)

    @property
    def num_datagrams(self) -> int:
        """c, how many datagrams carry a vector."""
        return -(-self.dim // self.floats)

    @property
    def payload_bytes(self) -> int:
        """Bytes of a DATA datagram's payload, at most."""
        return self.floats * packet.FLOAT_BYTES[self.wire]

    def bytes_of(self, payload_bytes: int) -> int:
        """Returns how long a datagram with such a payload is."""
        return HEADER_BYTES + payload_bytes + self.tag_bytes

    def open(self, data: bytes) -> Envelope:
        """Returns whose a datagram says that it is, and what it says."""
        if len(data) < HEADER_BYTES + self.tag_bytes:
            return Envelope("truncated")
        if len(data) > self.longest_datagram:
            return Envelope("oversized")
        if data[0] != packet.VERSION:
            return Envelope("version")
        header = packet.unpack(data)
        if header.session != self.session or header.rank not in self.peers:
            return Envelope("foreign")
        payload = data[HEADER_BYTES : len(data) - self.tag_bytes]
        return Envelope(ACCEPTED, self.peers.index(header.rank), header, payload)


class Outgoing(NamedTuple):
    """A datagram to be sent, any but DATA, which the send queue names."""

    row: int
    kind: Kind
    round: int
    seq: int = 0
    total: int = 0
    payload: bytes = b""


class Handled(NamedTuple):
    """What became of a datagram.

    Attributes:
      verdict: "accepted", or the first reason that applied.
      changed: whether something has changed that a verb may wait for.
      to_send: what answers it.
    """

    verdict: str
    changed: bool
    to_send: list[Outgoing]


class _Peer:
    """What is known of one peer."""

    def __init__(self) -> None:
        self.last_control = 0  # counter of the last control datagram that was accepted
        self.counts = dict.fromkeys((ACCEPTED, *REASONS), 0)
        self.heard = False  # DATA, END or READY, since the round before was closed
        self.nack_at = -math.inf  # when it may be sent the next NACKs
        self.reply_bytes = math.inf  # that other replies to it may have: as many as there may be
        self.reply_bytes_at = 0.0  # since when
        self.challenge: int | None = None
        self.longest_echo = 0  # bytes of a datagram
        self.left = False  # it has said BYE


class Protocol(ABC):
    """What both roles have.

    Attributes:
      queue: what is being sent, None for nothing: NACK, DONE and BYE change it.
      counts_of_nobody: of datagrams that are no peer's, by verdict.
    """

    def __init__(self, layout: PeerLayout) -> None:
        """Starts with no round open and nothing to be sent."""
        self.queue: SendQueue | None = None
        self.counts_of_nobody = dict.fromkeys((ACCEPTED, *REASONS), 0)
        self._layout = layout
        self._peers = [_Peer() for _ in layout.peers]
        self._assembler = Assembler(layout.dim, len(layout.peers), layout.floats, layout.wire)
        self._queue_round = 0

    def as_server(self, verb: str) -> ServerProtocol:
        """Returns this one if it is the server's.

        Raises:
          ValueError: it is a worker's, which does not have the verb.
        """
        raise ValueError(f"{verb} is for the server; this is rank {self._layout.rank}.")

    def as_worker(self, verb: str) -> WorkerProtocol:
        """Returns this one if it is a worker's; as ``as_server``."""
        raise ValueError(f"{verb} is for a worker; this is rank {self._layout.rank}.")

    def handle(self, row: int, header: Header, payload: bytes, now: float) -> Handled:
        """Judges a datagram whose address and tag are those of a peer, acts on it and counts it.

        The checks are those of ``WIRE.md``, in its order, and nothing is written, answered or
        remembered before all of them.
        """
        to_send: list[Outgoing] = []
        verdict, changed = self._judge(row, header, payload, now, to_send)
        self._peers[row].counts[verdict] += 1
        if verdict == ACCEPTED and self.queue is not None:
            self.queue.heard(row)
        return Handled(verdict, changed, to_send)

    def reject(self, row: int, verdict: str, count: int = 1) -> None:
        """Counts datagrams that are not handled: of a peer, or of nobody, -1."""
        (self.counts_of_nobody if row < 0 else self._peers[row].counts)[verdict] += count

    def counts(self, row: int) -> dict[str, int]:
        """Returns how often each verdict fell on a peer's datagrams, a copy."""
        return dict(self._peers[row].counts)

    def probe(self) -> list[Outgoing]:
        """Returns PROBEs, a short and a long one, to each peer that has not echoed a long one."""
        around = self._layout.bytes_of(0)
        longest = self._layout.longest_datagram
        return [
            Outgoing(row, Kind.PROBE, 0, peer.challenge or 0, payload=bytes(size - around))
            for row, peer in enumerate(self._peers)
            if peer.longest_echo != longest
            for size in (SHORT_PROBE_BYTES, longest)
        ]

    def forget_echoes(self, challenges: Sequence[int]) -> None:
        """Begins to count echoes anew: those that have their peer's challenge as `seq`.

        Args:
          challenges: for each peer; random, and each of its own, so that only who got the PROBE
            knows it.
        """
        for peer, challenge in zip(self._peers, challenges, strict=True):
            peer.longest_echo = 0
            peer.challenge = challenge

    def all_echoed(self) -> bool:
        """Returns whether each peer has echoed a long PROBE since `forget_echoes`."""
        longest = self._layout.longest_datagram
        return all(peer.longest_echo == longest for peer in self._peers)

    def longest_echo(self, row: int) -> int:
        """Returns the bytes of the longest datagram that a peer has echoed, 0 for none."""
        return self._peers[row].longest_echo

    def bye(self) -> list[Outgoing]:
        """Returns a BYE to each peer."""
        return [Outgoing(row, Kind.BYE, 0) for row in range(len(self._peers))]

    def missing(self, row: int) -> int:
        """Returns how many datagrams of a row are not there."""
        return self._assembler.missing(row)

    @abstractmethod
    def _handle_data(
        self, row: int, header: Header, payload: bytes, now: float, to_send: list[Outgoing]
    ) -> tuple[str, bool]:
        """Acts on a well-formed DATA; returns the verdict, and whether something has changed."""

    @abstractmethod
    def _handle_end(self, row: int, header: Header, now: float, to_send: list[Outgoing]) -> str:
        """Acts on a well-formed END; returns the verdict."""

    @abstractmethod
    def _handle_other(self, row: int, header: Header, now: float, to_send: list[Outgoing]) -> None:
        """Acts on a well-formed READY, GRANT or DONE."""

    def _judge(
        self, row: int, header: Header, payload: bytes, now: float, to_send: list[Outgoing]
    ) -> tuple[str, bool]:
        layout, assembler = self._layout, self._assembler
        if header.kind == Kind.DATA:
            if not assembler.is_well_formed(header.round, header.seq, header.total, payload):
                return "malformed", False
            return self._handle_data(row, header, payload, now, to_send)
        if not packet.is_well_formed(
            header, payload, assembler.c, layout.payload_bytes, from_server=not layout.is_server
        ):
            return "malformed", False
        peer = self._peers[row]
        if header.counter <= peer.last_control:
            return "replayed", False
        match header.kind:
            case Kind.PROBE:
                self._reply(Outgoing(row, Kind.ECHO, 0, header.seq, 0, payload), now, to_send)
            case Kind.ECHO:
                if header.seq != peer.challenge:
                    return "malformed", False
                peer.longest_echo = max(peer.longest_echo, layout.bytes_of(len(payload)))
            case Kind.NACK:
                self._handle_nack(row, header, payload)
            case Kind.BYE:
                peer.left = True
                if self.queue is not None:
                    self.queue.leave(row)
            case Kind.END:
                verdict = self._handle_end(row, header, now, to_send)
                if verdict != ACCEPTED:
                    return verdict, False
            case _:
                self._handle_other(row, header, now, to_send)
        peer.last_control = header.counter
        return ACCEPTED, True

    def _handle_nack(self, row: int, header: Header, payload: bytes) -> None:
        if self.queue is None or header.round != self._queue_round:
            return
        if not self.queue.take_nack(row, len(payload)):
            return
        indices = packet.read_nack(header.seq, payload, header.total)
        assert indices is not None  # it is well-formed
        for seq in indices.tolist():
            self.queue.nacked(row, seq)

    def _reply(self, reply: Outgoing, now: float, to_send: list[Outgoing]) -> None:
        """Adds a reply, if its row may have one more now: who asks without end has not all."""
        peer = self._peers[reply.row]
        most = max(REPLY_BYTES, 4 * float(self._layout.longest_datagram))
        more = (now - peer.reply_bytes_at) * REPLY_BYTES_PER_S
        peer.reply_bytes = min(most, peer.reply_bytes + more)
        peer.reply_bytes_at = now
        size = self._layout.bytes_of(len(reply.payload))
        if peer.reply_bytes >= size:
            peer.reply_bytes -= size
            to_send.append(reply)

    def _reply_nacks(
        self, row: int, bytes_per_s: float, now: float, to_send: list[Outgoing]
    ) -> None:
        """Adds NACKs, if it is time; the next not before these have passed at a rate."""
        peer, assembler, size = self._peers[row], self._assembler, 0
        if now < peer.nack_at:
            return
        missing_c = ~assembler.arrived(row)
        for first, bitmap in packet.nack_payloads(missing_c, self._layout.payload_bytes):
            size += self._layout.bytes_of(len(bitmap))
            nack = Outgoing(row, Kind.NACK, assembler.round, first, assembler.c, bitmap)
            to_send.append(nack)
        peer.nack_at = now + max(NACK_GAP_S, size / bytes_per_s)

    def _start_queue(
        self,
        round: int,
        rows: Iterable[int],
        most_at_once: int,
        until_done: bool,
        silence_s: float,
        now: float,
    ) -> SendQueue:
        rows, c = list(rows), self._assembler.c
        self.queue = SendQueue(rows, c, most_at_once, until_done, silence_s, now)
        self._queue_round = round
        for row in rows:
            if self._peers[row].left:
                self.queue.leave(row)
        return self.queue


class ServerProtocol(Protocol):
    """The server's side.

    Attributes:
      closed: how the last round went, None while one is open.
    """

    def __init__(self, layout: PeerLayout) -> None:
        """Starts with no round."""
        super().__init__(layout)
        self.closed: Closed | None = None
        self._awaited: tuple[int, np.ndarray, ClosePolicy] | None = None
        self._rule: CloseRule | None = None  # of the open round
        self._opened = 0.0
        self._rates_kbps: Sequence[int] = [0] * len(self._peers)  # granted, by row
        self._credit = Credit(len(self._peers))
        self._repairs = False  # END is answered
        self._tell_at = math.inf

    @classmethod
    def of_one(cls, every: ServerProtocol, row: int) -> ServerProtocol:
        """Returns one worker of another's as the only one: what was known of it is taken over.

        So a server that takes gradients one by one has a protocol for each, with rounds of its own.
        """
        made = cls(replace(every._layout, num_workers=1))
        made._peers = [every._peers[row]]
        return made

    def as_server(self, verb: str) -> ServerProtocol:
        """Returns this one."""
        return self

    # A round of gradients.

    def open_round(
        self, round: int, stack_nd: np.ndarray, policy: ClosePolicy, now: float
    ) -> list[Outgoing]:
        """Opens a round: until it is closed, what arrives is written to the stack.

        Returns:
          GRANTs.
        Raises:
          ValueError: the round is not later than all before, or the policy is not what it must be.
        """
        n = len(self._peers)
        rates_kbps = policy.rates_kbps(n)
        grants = [Outgoing(row, Kind.GRANT, round, rates_kbps[row]) for row in range(n)]
        rule = CloseRule(policy, n, self._assembler.c, now)
        self._assembler.open(round, stack_nd)
        # Nothing fails from here on: who opened a round that is not knows nothing of it.
        self._awaited = self.closed = None
        self._rule, self._opened = rule, now
        self._rates_kbps, self._repairs = rates_kbps, policy.max_loss < 1
        self._tell_at = math.inf
        return grants

    def await_round(self, round: int, stack_nd: np.ndarray, policy: ClosePolicy) -> None:
        """Opens a round as soon as a worker asks for it, by READY: only then its time begins.

        Raises:
          ValueError: as ``open_round``.
        """
        n = len(self._peers)
        policy.rates_kbps(n)
        CloseRule(policy, n, self._assembler.c, 0.0)
        self._assembler.check(round, stack_nd)
        self.abandon_round()
        self.closed = None
        self._awaited = round, stack_nd, policy

    def abandon_round(self) -> None:
        """Closes the open round, if any, without a result."""
        self._awaited = self._rule = None
        self._assembler.close()

    @property
    def whole(self) -> list[int]:
        """Datagrams of the open round, or of the last, that all rows have, as they became so."""
        return self._assembler.whole

    def tell_at(self, num_whole: float) -> None:
        """In the open round, makes this number of them a change that a verb waits for."""
        self._tell_at = num_whole

    def wake_at(self, now: float) -> float:
        """Returns when to call `tick` if nothing arrives before; infinity without a round."""
        return math.inf if self._rule is None else self._rule.check(now)[1]

    def tick(self, now: float) -> list[Outgoing]:
        """Closes the round if it is time; then `closed` is there until the next is opened.

        Returns:
          DONE to those that have not delivered all.
        """
        if self._rule is None:
            return []
        reason, _ = self._rule.check(now)
        if reason is None:
            return []
        assembler, rows = self._assembler, range(len(self._peers))
        self.closed = Closed(
            reason=reason,
            elapsed_s=now - self._opened,
            arrived_nc=np.stack([assembler.arrived(row) for row in rows]),
            heard_n=np.array([peer.heard for peer in self._peers]),
            settled_s_n=np.array(self._rule.settled_s),
        )
        for peer in self._peers:
            peer.heard = False
        round = assembler.round
        dones = [Outgoing(row, Kind.DONE, round) for row in rows if assembler.missing(row)]
        self.abandon_round()
        return dones

    # The model.

    def start_broadcast(
        self, round: int, rows: Iterable[int], most_at_once: int, silence_s: float, now: float
    ) -> SendQueue:
        """Returns a queue with all of a model for these rows, less those that have left.

        Rows that have cost too much overtime hurry.
        """
        rows = list(rows)
        queue = self._start_queue(round, rows, most_at_once, True, silence_s, now)
        queue.add_rest()
        self._credit.refill(silence_s, now)
        for row in rows:
            if self._credit.in_debt(row):
                queue.hurry(row)
        return queue

    def start_reply(self, round: int, most_at_once: int, silence_s: float, now: float) -> SendQueue:
        """Returns a queue with what answers the only worker; a later one takes its place.

        It is sent until the worker is done, as long as it is heard.
        """
        queue = self._start_queue(round, [0], most_at_once, True, silence_s, now)
        queue.add_rest()
        queue.stay()
        return queue

    def end_reply(self) -> None:
        """Drops the queue."""
        self.queue = None

    def end_broadcast(self, now: float) -> list[bool]:
        """Drops the queue; returns, [n], who has said DONE."""
        assert self.queue is not None
        done_n = [self.queue.is_done(row) for row in range(len(self._peers))]
        for row in range(len(self._peers)):
            self._credit.charge(row, self.queue.overtime(row, now))
        self.queue = None
        return done_n

    def _handle_data(
        self, row: int, header: Header, payload: bytes, now: float, to_send: list[Outgoing]
    ) -> tuple[str, bool]:
        assembler = self._assembler
        verdict = assembler.accept(row, header.round, header.seq, header.total, payload)
        if verdict != ACCEPTED:
            return verdict, False
        assert self._rule is not None  # as a round is open
        self._peers[row].heard = True
        self._rule.heard(row, now, assembler.missing(row))
        return verdict, len(assembler.whole) >= self._tell_at

    def _handle_end(self, row: int, header: Header, now: float, to_send: list[Outgoing]) -> str:
        assembler = self._assembler
        standing = assembler.standing(header.round)
        if standing == "early":
            return standing
        self._peers[row].heard = True
        if standing == "late":  # the DONE that ended it may have been lost
            if self._repairs:
                self._reply(Outgoing(row, Kind.DONE, assembler.closed_round), now, to_send)
            return ACCEPTED
        assert self._rule is not None  # as a round is open
        all_sent = header.seq > 0
        if all_sent:
            self._rule.ended(row, now)
        if not self._repairs:
            return ACCEPTED
        if self._rule.is_short(row):
            self._reply_nacks(row, self._rates_kbps[row] * 1000.0 / 8, now, to_send)
        elif all_sent or assembler.missing(row) == 0:  # else more may be on its way
            self._reply(Outgoing(row, Kind.DONE, header.round), now, to_send)
        return ACCEPTED

    def _handle_other(self, row: int, header: Header, now: float, to_send: list[Outgoing]) -> None:
        assembler = self._assembler
        if header.kind == Kind.DONE:
            if self.queue is not None and header.round >= self._queue_round:
                self.queue.done(row, now)
            return
        self._peers[row].heard = True  # READY
        if self._awaited is not None and header.round == self._awaited[0]:
            awaited, self._awaited = self._awaited, None
            self.open_round(*awaited, now)  # its GRANT answers the READY, below
        if self._rule is not None and header.round == assembler.round:
            if header.seq == packet.PAUSE:
                self._rule.pauses(row)
            rate_kbps = self._rates_kbps[row]
            self._reply(Outgoing(row, Kind.GRANT, header.round, rate_kbps), now, to_send)
        elif header.round <= assembler.closed_round:
            self._reply(Outgoing(row, Kind.DONE, assembler.closed_round), now, to_send)


class WorkerProtocol(Protocol):
    """A worker's side.

    Attributes:
      granted_kbps: the rate of the newest grant.
      whole_round: of a model that can be taken, or 0.
    """

    def __init__(self, layout: PeerLayout) -> None:
        """Allocates two models: what the caller holds is never written."""
        super().__init__(layout)
        self.granted_kbps = 0
        self.whole_round = 0
        self._granted_round = self._done_round = 0
        self._asking: tuple[int, float, float] | None = None  # round, when next, pause after that
        self._models = [np.zeros(layout.dim, np.float32) for _ in range(2)]
        self._held = 0

    def as_worker(self, verb: str) -> WorkerProtocol:
        """Returns this one."""
        return self

    @property
    def server_left(self) -> bool:
        """Whether the server has said BYE."""
        return self._peers[0].left

    # Asking, by READY.

    def ask_for_grant(self, round: int, now: float) -> None:
        """Has `tick` ask at once, and again after pauses that double."""
        self._asking = round, now, READY_FIRST_S

    def ask_for_model(self, round: int, now: float) -> None:
        """Has `tick` ask every 50 ms."""
        self._asking = round, now + READY_LAST_S, READY_LAST_S

    def stop_asking(self) -> None:
        """It is there, or not wanted any more."""
        self._asking = None

    def wake_at(self) -> float:
        """Returns when to call `tick`; infinity if nothing is asked for."""
        return math.inf if self._asking is None else self._asking[1]

    def tick(self, now: float) -> list[Outgoing]:
        """Returns a READY if one is due."""
        if self._asking is None or now < self._asking[1]:
            return []
        round, _, pause_s = self._asking
        self._asking = round, now + pause_s, min(2 * pause_s, READY_LAST_S)
        return [Outgoing(0, Kind.READY, round)]

    # Its gradient.

    def is_granted(self, round: int) -> bool:
        """Returns whether this round is the newest that was granted."""
        return self._granted_round == round

    def is_over(self, round: int) -> bool:
        """Returns whether the server wants nothing of a round any more, or has left."""
        return self._granted_round > round or self._done_round >= round or self.server_left

    def gradient(self, round: int, most_at_once: int, until_done: bool, now: float) -> SendQueue:
        """Returns the queue of a gradient: a new one, with nothing in it, unless of this round."""
        if self.queue is not None and self._queue_round == round:
            return self.queue
        return self._start_queue(round, [0], most_at_once, until_done, math.inf, now)

    def end_gradient(self) -> None:
        """Drops its queue."""
        self.queue = None

    def pause(self, round: int) -> list[Outgoing]:
        """Returns READYs that say that more of a gradient will come."""
        return [Outgoing(0, Kind.READY, round, packet.PAUSE)] * NUM_PAUSES

    # The model.

    def take_model(self) -> None:
        """Takes the model of `whole_round`: it stays as it is until the next is taken."""
        self._held = 1 - self._held
        self.whole_round = 0

    @property
    def model(self) -> np.ndarray:
        """The model that was taken, float32 [d]."""
        return self._models[self._held]

    def _handle_data(
        self, row: int, header: Header, payload: bytes, now: float, to_send: list[Outgoing]
    ) -> tuple[str, bool]:
        self._follow_server(header.round)
        assembler = self._assembler
        verdict = assembler.accept(row, header.round, header.seq, header.total, payload)
        if verdict != ACCEPTED or assembler.missing(row) > 0:
            return verdict, False
        self.whole_round = header.round
        assembler.close()
        to_send.append(Outgoing(row, Kind.DONE, header.round))
        return verdict, True

    def _handle_end(self, row: int, header: Header, now: float, to_send: list[Outgoing]) -> str:
        self._follow_server(header.round)  # so that it is not early
        if self._assembler.standing(header.round) == "late":  # its DONE may have been lost
            self._reply(Outgoing(row, Kind.DONE, self._assembler.closed_round), now, to_send)
        else:  # it is not whole, or it would be closed
            self._reply_nacks(row, math.inf, now, to_send)
        return ACCEPTED

    def _handle_other(self, row: int, header: Header, now: float, to_send: list[Outgoing]) -> None:
        if header.kind == Kind.DONE:
            self._done_round = max(self._done_round, header.round)
            if self.queue is not None and header.round >= self._queue_round:
                self.queue.done(0, now)
        elif header.round >= self._granted_round:  # GRANT
            self._granted_round, self.granted_kbps = header.round, header.seq

    def _follow_server(self, round: int) -> None:
        """A model later than all before makes an unfinished one useless."""
        assembler = self._assembler
        if round <= max(assembler.round, assembler.closed_round):
            return
        self.whole_round = 0  # its buffer is written again
        assembler.open(round, [self._models[1 - self._held]])
