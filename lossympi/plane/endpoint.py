"""The endpoint of ``lossympi.endpoint`` in Python: the clock, the lock and the thread."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from lossympi import endpoint as interface
from lossympi.endpoint import Closed, ClosePolicy, Setup
from lossympi.link import check_array
from lossympi.plane import packet
from lossympi.plane.assembler import ACCEPTED, Assembler
from lossympi.plane.channel import Channel, Peer
from lossympi.plane.close_rule import CloseRule
from lossympi.plane.outgoing import Outgoing
from lossympi.plane.pacing import Pacer
from lossympi.plane.packet import IP_UDP_BYTES, Header, Kind

PROBE_BYTES = 100  # of an IP packet, the short probe; the long one has the MTU's
PROBE_GAP_S = 0.02
READY_FIRST_S, READY_LAST_S = 0.002, 0.05
NACK_GAP_S = 0.00025
NUM_BYES, BYE_GAP_S = 3, 0.0005
TELLINGS = 16  # of what is whole, in a round
POLL_MS = 20  # how long the thread may take to notice that it is to end


class Endpoint(interface.Endpoint):
    """A socket, its peers, and the thread that receives.

    One lock guards everything; whoever waits, waits on it, and always until some time.

    Raises:
      ValueError: the setup contradicts itself or the wire format.
    """

    def __init__(self, setup: Setup) -> None:
        """Binds the socket to a free port; nothing is read before `start`."""
        for name, value, low, high in (
            ("num_workers", setup.num_workers, 1, 2**16 - 1),
            ("rank", setup.rank, 0, setup.num_workers),
            ("session", setup.session, 0, 2**32 - 1),
            ("dim", setup.dim, 1, 2**35),  # so that c fits its 32 bits whatever the MTU
            ("receive_buffer", setup.receive_buffer, 1, 2**31 - 1),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} must be in {low}..{high}, got {value}. Change the setup.")
        k = packet.floats_per_datagram(setup.mtu, setup.wire)
        self._setup = setup
        self._is_server = setup.rank == 0
        self._payload_bytes = k * packet.FLOAT_BYTES[setup.wire]

        self._changed = threading.Condition()
        self._channel = Channel(setup)
        self.port = self._channel.port
        self._peers = self._channel.peers
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._is_busy = False  # a verb is at work

        num_rows = setup.num_workers if self._is_server else 1
        self._assembler = Assembler(setup.dim, num_rows, k, setup.wire)
        # The server's: the open round's rule, and what is granted and tolerated in it.
        self._rule: CloseRule | None = None
        self._rate_kbps = 0
        self._max_loss = 1.0
        self._tell_at = 0  # so many datagrams that all rows have wake the caller
        # A worker's: the newest grant, and models: what the caller holds is never written.
        self._granted_round, self._granted_kbps = 0, 0
        # Its gradient that has not left completely, and the round.
        self._gradient: tuple[int, Outgoing] | None = None
        self._models = () if self._is_server else (self._new_model(), self._new_model())
        self._model_at = 0  # the one that is assembled
        self._held: int | None = None
        self._whole: tuple[int, int] | None = None  # round and model, not yet taken

    def add_peer(
        self, rank: int, address: str, port: int, send_key: bytes, receive_key: bytes
    ) -> None:
        """Makes a peer known, before `start`; the keys are 32 bytes, or empty without a cipher.

        Raises:
          ValueError: a rank that is no peer's, an address or a key that is none, or too late.
        """
        if rank not in (range(1, self._setup.num_workers + 1) if self._is_server else (0,)):
            raise ValueError(
                f"rank {self._setup.rank} of {self._setup.num_workers} workers has no peer {rank}: "
                "the server's are the workers, a worker's is the server. Add one of those."
            )
        with self._changed:
            if self._thread is not None:
                raise ValueError("the endpoint has been started. Add peers before.")
            self._channel.add_peer(rank, address, port, send_key, receive_key)

    def start(self) -> None:
        """Starts the receive thread; datagrams that came before it are handled then."""
        if self._is_closed:
            raise ValueError("start: the endpoint is closed. Make a new one.")
        if self._thread is not None:
            raise ValueError("the endpoint has been started. Start it once.")
        wanted = range(1, self._setup.num_workers + 1) if self._is_server else (0,)
        if absent := sorted(set(wanted) - set(self._peers)):
            raise ValueError(
                f"an endpoint needs all its peers, and {absent[0]} was not added. Add it before "
                "the start."
            )
        self._thread = threading.Thread(target=self._receive_all, name="lossympi", daemon=True)
        self._thread.start()

    def probe(self, timeout_s: float) -> dict[int, int]:
        """Sends PROBE of 100 bytes and of the MTU to every peer, every 20 ms, until all are echoed.

        Sizes are those of IP packets.

        Returns:
          For each peer's rank the size of the longest datagram that was echoed, or 0.
        """
        _check_seconds("timeout_s", timeout_s)
        sizes = (PROBE_BYTES, self._setup.mtu)
        around = IP_UDP_BYTES + self._channel.around
        now = send_at = time.monotonic()
        deadline = now + timeout_s
        attempt = 0
        with self._verb("probe"), self._changed:
            for peer in self._peers.values():
                peer.echoed = set()
            while True:
                now = time.monotonic()
                unheard = [p for p in self._peers.values() if not p.echoed.issuperset(sizes)]
                if not unheard or now >= deadline:
                    break
                if now >= send_at:
                    attempt += 1
                    send_at = now + PROBE_GAP_S
                    for peer in unheard:
                        for size in sizes:
                            self._channel.send(
                                peer, Kind.PROBE, 0, attempt, 0, bytes(size - around)
                            )
                self._wait(min(send_at, deadline) - now)
            return {rank: max(peer.echoed, default=0) for rank, peer in self._peers.items()}

    def collect(
        self,
        round: int,
        stack_nd: np.ndarray,
        policy: ClosePolicy,
        on_whole: Callable[[np.ndarray], None] | None = None,
    ) -> Closed:
        """Server: opens `round`, grants it, and returns when it is closed.

        What arrives is written into `stack_nd`, float32 [n, d] in C order, until then and never
        after. Meanwhile `on_whole` is told, on this thread, of datagrams that all rows have, some
        16th of them at a time; of each once, and of the last ones perhaps never.

        Raises:
          ValueError: not the server's, or the round, the stack or the policy is not as it must be.
        """
        self._check_role("collect", server=True)
        _check_round(round)
        n = self._setup.num_workers
        check_array("stack_nd", stack_nd, np.float32, (n, self._setup.dim))
        if not (stack_nd.flags.c_contiguous and stack_nd.flags.writeable):
            raise ValueError(
                "stack_nd must be writeable and in C order. Allocate it with np.empty."
            )
        _check_rate(policy.rate_kbps)
        with self._verb("collect"), self._changed:
            opened = time.monotonic()
            rule = CloseRule(policy, n, self._assembler.c, opened)
            self._assembler.open(round, stack_nd)
            self._rule = rule
            self._rate_kbps = policy.rate_kbps
            self._max_loss = policy.max_loss
            for peer in self._peers.values():
                self._channel.send(peer, Kind.GRANT, round, policy.rate_kbps)
            told, at_once = 0, -(-self._assembler.c // TELLINGS)
            try:
                while True:
                    now = time.monotonic()
                    reason, wake_at = rule.check(now)
                    if reason is not None:
                        break
                    whole = self._assembler.whole
                    if on_whole is None or len(whole) < told + at_once:
                        self._tell_at = told + at_once
                        self._wait(wake_at - now)
                        continue
                    news, told = whole[told:], len(whole)
                    self._changed.release()
                    try:
                        on_whole(np.array(news))
                    finally:
                        self._changed.acquire()
            finally:
                self._rule = None
                self._assembler.close()
            for rank, peer in self._peers.items():
                if self._assembler.missing(rank - 1):
                    self._channel.send(peer, Kind.DONE, round)
            heard_n = [self._peers[rank].has_spoken for rank in range(1, n + 1)]
            for peer in self._peers.values():
                peer.has_spoken = False
            return Closed(
                reason=reason,
                elapsed_s=now - opened,
                arrived_nc=np.stack([self._assembler.arrived(row) for row in range(n)]),
                heard_n=np.array(heard_n),
                settled_s_n=np.array(rule.settled_s),
            )

    def send(self, round: int, grad_d: np.ndarray, max_loss: float, timeout_s: float) -> bool:
        """Worker: sends float32 [d] when granted; False if not all has left.

        The round was closed, or `timeout_s` has passed: then another call goes on.
        With `max_loss` below 1 it returns True only if the server also said that it has enough, or
        has left since.
        """
        self._check_role("send", server=False)
        check_array("grad_d", grad_d, np.float32, (self._setup.dim,))
        _check_round(round)
        _check_seconds("timeout_s", timeout_s)
        if not 0 <= max_loss <= 1:
            raise ValueError(f"max_loss must be in 0..1, got {max_loss}. Pass a share.")
        deadline = time.monotonic() + timeout_s
        with self._verb("send"):
            server = self._peers[0]
            with self._changed:
                if not self._wait_for_grant(server, round, deadline):
                    return False
                rate_kbps = self._granted_kbps
            if self._gradient is None or self._gradient[0] != round:
                self._gradient = round, Outgoing(self._assembler.c, repeats=max_loss < 1)
            outgoing = self._gradient[1]
            self._deliver(round, grad_d, {server: outgoing}, rate_kbps, deadline, math.inf)
            # BYE tells what a lost DONE would have.
            enough = outgoing.next_at() == math.inf or self._is_over(server, round)
            sent = outgoing.all_left and enough
            if sent:
                self._gradient = None
        return sent

    def broadcast(
        self,
        round: int,
        params_d: np.ndarray,
        to_n: tuple[bool, ...],
        rate_kbps: int,
        timeout_s: float,
        silence_s: float,
    ) -> np.ndarray:
        """Server: sends float32 [d] reliably; returns, bool [n], who has said DONE.

        `rate_kbps` is shared by all workers; one that says nothing for `silence_s` is left behind.
        """
        self._check_role("broadcast", server=True)
        n = self._setup.num_workers
        check_array("params_d", params_d, np.float32, (self._setup.dim,))
        _check_rate(rate_kbps)
        _check_round(round)
        _check_seconds("timeout_s", timeout_s)
        _check_seconds("silence_s", silence_s)
        if len(to_n) != n:
            raise ValueError(f"to_n must have {n} values, got {len(to_n)}. Pass one for each row.")
        deadline = time.monotonic() + timeout_s
        outgoings = {
            peer: Outgoing(self._assembler.c, repeats=True)
            for rank, peer in self._peers.items()
            if to_n[rank - 1]
        }
        with self._verb("broadcast"):
            self._deliver(round, params_d, outgoings, rate_kbps, deadline, silence_s)
        done_n = np.zeros(n, bool)
        with self._changed:
            for rank, peer in self._peers.items():
                done_n[rank - 1] = peer in outgoings and peer.done_round >= round
        return done_n

    def receive(self, round: int, timeout_s: float) -> tuple[int, np.ndarray] | None:
        """Worker: returns the newest whole model of `round` or later, and its round.

        The array, float32 [d] and read-only, is the endpoint's own and stays as it is until the
        next `receive` that returns another. None: nothing whole came in time, or the server said
        BYE.
        """
        self._check_role("receive", server=False)
        _check_round(round)
        _check_seconds("timeout_s", timeout_s)
        ready_at = time.monotonic()
        deadline = ready_at + timeout_s
        with self._verb("receive"), self._changed:
            server = self._peers[0]
            while True:
                if self._whole is not None and self._whole[0] >= round:
                    whole_round, self._held = self._whole
                    self._whole = None
                    model_d = self._models[self._held].view()
                    model_d.setflags(write=False)
                    return whole_round, model_d
                now = time.monotonic()
                if now >= deadline or server.has_left:
                    return None
                if now >= ready_at:
                    ready_at = now + READY_LAST_S
                    self._channel.send(server, Kind.READY, round)
                self._wait(min(ready_at, deadline) - now)

    def counters(self) -> dict[int, dict[str, int]]:
        """Returns, for each peer's rank and for -1 (nobody's), counts since the start."""
        with self._changed:
            return {
                -1: dict(self._channel.counts),
                **{rank: dict(peer.counts) for rank, peer in self._peers.items()},
            }

    def server_left(self) -> bool:
        """Worker: whether the server has said BYE."""
        self._check_role("server_left", server=False)
        return 0 in self._peers and self._peers[0].has_left

    def close(self) -> None:
        """Says BYE to every peer, three times, ends the thread and closes the socket."""
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            self._changed.notify_all()
        for at in range(NUM_BYES):
            if at:
                time.sleep(BYE_GAP_S)
            with self._changed:
                for peer in self._peers.values():
                    self._channel.send(peer, Kind.BYE, 0)
        if self._thread is not None:
            self._thread.join()
        self._channel.close()

    # Sending. What has an underscore is called with the lock held, `_deliver` excepted.

    def _wait_for_grant(self, server: Peer, round: int, deadline: float) -> bool:
        pause_s = READY_FIRST_S
        ready_at = -math.inf
        while self._granted_round < round:
            now = time.monotonic()
            if self._is_over(server, round) or now >= deadline:
                return False
            if now >= ready_at:
                ready_at = now + pause_s
                pause_s = min(2 * pause_s, READY_LAST_S)
                self._channel.send(server, Kind.READY, round)
            self._wait(min(ready_at, deadline) - now)
        # A later grant tells that this round is closed as well as DONE does.
        return self._granted_round == round and not self._is_over(server, round)

    def _deliver(
        self,
        round: int,
        vector_d: np.ndarray,
        outgoings: dict[Peer, Outgoing],
        rate_kbps: int,
        deadline: float,
        silence_s: float,
    ) -> None:
        """Sends a vector to each peer in turn until all have enough, are silent, or it is late."""
        data = packet.encode_floats(vector_d, self._setup.wire)
        pacer = Pacer(rate_kbps * 125)  # 1 kbit is 125 bytes
        started = time.monotonic()

        def silent_at(peer: Peer) -> float:
            return outgoings[peer].asked_at + silence_s

        active = list(outgoings)
        leave_at = math.inf
        with self._changed:
            for peer, outgoing in outgoings.items():
                peer.outgoing, peer.outgoing_round = outgoing, round
        while True:
            with self._changed:
                self._check_open()
                now = time.monotonic()
                active = [
                    peer
                    for peer in active
                    if now < silent_at(peer) and not self._has_enough(peer, round)
                ]
                num_done = sum(peer.done_round >= round for peer in outgoings)
                if 2 * num_done > len(outgoings) and leave_at == math.inf:
                    # Who never has enough must not hold up the others for long.
                    leave_at = now + 3 * (now - started) + silence_s
                if not active or now >= min(deadline, leave_at):
                    break
                due = [peer for peer in active if outgoings[peer].next_at() <= now]
                if not due:
                    wake_at = min(min(outgoings[p].next_at(), silent_at(p)) for p in active)
                    self._wait(min(wake_at, deadline, leave_at) - now)
                    continue
                peer = due[0]
                active.remove(peer)
                active.append(peer)
                index = outgoings[peer].head()
                at = 0 if index is None else index * self._payload_bytes
                payload = b"" if index is None else data[at : at + self._payload_bytes]
                send_at = min(pacer.when(now, self._channel.around + len(payload)), deadline)
                while now < send_at and not self._has_enough(peer, round):
                    self._wait(send_at - now)
                    now = time.monotonic()
                if now >= deadline or self._has_enough(peer, round):
                    continue
                if index is None:
                    num_ends = outgoings[peer].num_ends + 1
                    self._channel.send(peer, Kind.END, round, num_ends, self._assembler.c)
                else:
                    self._channel.send(peer, Kind.DATA, round, index, self._assembler.c, payload)
                outgoings[peer].sent(index, now)
        with self._changed:
            for peer in outgoings:
                peer.outgoing = None

    def _has_enough(self, peer: Peer, round: int) -> bool:
        has_all = peer.outgoing is None or peer.outgoing.next_at() == math.inf
        return has_all or self._is_over(peer, round)

    def _is_over(self, peer: Peer, round: int) -> bool:
        return peer.done_round >= round or peer.has_left

    def _wait(self, seconds: float) -> None:
        self._check_open()
        self._changed.wait(min(max(seconds, 0.0), 1.0))
        self._check_open()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError("the endpoint was closed while it was in use. Make a new one.")

    @contextlib.contextmanager
    def _verb(self, name: str) -> Iterator[None]:
        """Ends whatever is not to be done now, or at the same time as something else, by an error.

        Raises:
          ValueError: the endpoint is closed, was not started, or is in use by another thread.
        """
        with self._changed:
            if self._is_closed:
                raise ValueError(f"{name}: the endpoint is closed. Make a new one.")
            if self._thread is None:
                raise ValueError(f"{name}: the endpoint was not started. Start it.")
            if self._is_busy:
                raise ValueError(
                    f"{name}: an endpoint does one thing at a time, and another thread waits in "
                    "it. Wait for that."
                )
            self._is_busy = True
        try:
            yield
        finally:
            self._is_busy = False

    # Receiving, on a thread of its own.

    def _receive_all(self) -> None:
        while not self._is_closed:
            if not self._channel.wait(POLL_MS):
                continue
            while not self._is_closed and (came := self._channel.receive()) is not None:
                with self._changed:
                    self._take(*came, time.monotonic())

    def _take(self, data: bytes, source: tuple[str, int], now: float) -> None:
        """Judges a datagram in the order of ``WIRE.md``, counts it, and only then acts on it."""
        opened = self._channel.open(data, source)
        if opened is None:
            return
        peer, header, payload = opened
        reason = self._judge(peer, header, payload)
        peer.counts[reason] += 1
        if reason == ACCEPTED:
            if peer.outgoing is not None:
                peer.outgoing.asked_at = math.inf
            if header.kind in (Kind.DATA, Kind.END, Kind.READY):
                peer.has_spoken = True
            if header.kind != Kind.DATA:
                peer.last_counter = header.counter
            self._act(peer, header, payload, now)

    def _judge(self, peer: Peer, header: Header, payload: bytes) -> str:
        """Returns the first reason that applies, or "accepted"; DATA is then in its place."""
        kind, rank, _, round, seq, total, counter = header
        assembler = self._assembler
        if not packet.is_well_formed(header, payload, assembler.c, self._payload_bytes):
            return "malformed"
        if kind == Kind.DATA:
            if assembler.is_well_formed(round, seq, total, payload):
                self._open_model(round)
            return assembler.accept(max(rank, 1) - 1, round, seq, total, payload)
        if counter <= peer.last_counter:
            return "replayed"
        if kind == Kind.END:
            self._open_model(round)
            return "early" if assembler.standing(round) == "early" else ACCEPTED
        return ACCEPTED

    def _act(self, peer: Peer, header: Header, payload: bytes, now: float) -> None:
        kind, rank, _, round, seq, total, _ = header
        if kind == Kind.DATA:
            self._act_on_data(peer, max(rank, 1) - 1, now)
            return
        if kind == Kind.END:
            self._act_on_end(peer, max(rank, 1) - 1, round, seq, now)
        elif kind == Kind.PROBE:
            self._channel.send(peer, Kind.ECHO, 0, seq, 0, payload)
        elif kind == Kind.ECHO:
            peer.echoed.add(IP_UDP_BYTES + self._channel.around + len(payload))
        elif kind == Kind.GRANT and round >= self._granted_round:
            self._granted_round, self._granted_kbps = round, seq
        elif kind == Kind.READY:
            if round == self._assembler.round:
                if seq == packet.PAUSE and self._rule is not None:
                    self._rule.pauses(max(rank, 1) - 1)
                self._channel.send(peer, Kind.GRANT, round, self._rate_kbps)
            elif round <= self._assembler.closed_round:
                self._channel.send(peer, Kind.DONE, self._assembler.closed_round)
        elif kind == Kind.NACK:
            indices = packet.read_nack(seq, payload, total)
            if peer.outgoing is not None and peer.outgoing_round == round and indices is not None:
                peer.outgoing.ask(indices.tolist())
        elif kind == Kind.DONE:
            peer.done_round = max(peer.done_round, round)
        elif kind == Kind.BYE:
            peer.has_left = True
        self._changed.notify_all()

    def _act_on_data(self, peer: Peer, row: int, now: float) -> None:
        missing = self._assembler.missing(row)
        if self._rule is not None:
            # Waking the caller for each datagram would cost more than the datagram.
            is_news = len(self._assembler.whole) == self._tell_at
            if self._rule.heard(row, now, missing) or is_news:
                self._changed.notify_all()
        elif not self._is_server and missing == 0:
            self._whole = (self._assembler.round, self._model_at)
            self._assembler.close()
            self._channel.send(peer, Kind.DONE, self._whole[0])
            self._changed.notify_all()

    def _act_on_end(self, peer: Peer, row: int, round: int, num_ends: int, now: float) -> None:
        assembler = self._assembler
        max_loss = self._max_loss_now()
        if assembler.standing(round) == "late":
            if max_loss < 1:  # the DONE that ended it may have been lost
                self._channel.send(peer, Kind.DONE, assembler.closed_round)
            return
        if self._rule is not None and num_ends > 0:  # else only a report is asked for
            self._rule.ended(row, now)
        if max_loss == 1:
            return
        if assembler.missing(row) <= max_loss * assembler.c:
            if num_ends > 0 or assembler.missing(row) == 0:  # else more may be on its way
                self._channel.send(peer, Kind.DONE, assembler.round)
        elif now >= peer.nacked_at + NACK_GAP_S:
            peer.nacked_at = now
            missing_c = ~assembler.arrived(row)
            for first, bitmap in packet.nack_payloads(missing_c, self._payload_bytes):
                self._channel.send(peer, Kind.NACK, assembler.round, first, assembler.c, bitmap)

    def _max_loss_now(self) -> float:
        return self._max_loss if self._is_server else 0.0

    # A worker's models.

    def _new_model(self) -> np.ndarray:
        return np.zeros(self._setup.dim, np.float32)

    def _open_model(self, round: int) -> None:
        """Worker: makes room for a later model; nothing happens for one that is not later."""
        if self._is_server or round <= max(self._assembler.round, self._assembler.closed_round):
            return
        keep = self._held
        if keep is None and self._whole is not None:
            keep = self._whole[1]
        self._model_at = 1 if keep == 0 else 0
        if self._whole is not None and self._whole[1] == self._model_at:
            self._whole = None  # the caller holds the other one, so the newer model takes its place
        self._assembler.open(round, [self._models[self._model_at]])

    def _check_role(self, verb: str, server: bool) -> None:
        if server != self._is_server:
            whose = "the server" if server else "a worker"
            raise ValueError(f"{verb} is for {whose}; this is rank {self._setup.rank}.")


def _check_rate(rate_kbps: int) -> None:
    if not 1 <= rate_kbps < 2**32:
        raise ValueError(f"rate_kbps must be in 1..{2**32 - 1}, got {rate_kbps}. Change it.")


def _check_round(round: int) -> None:
    if not 1 <= round < 2**64:
        raise ValueError(f"round must be in 1..{2**64 - 1}, got {round}. Change it.")


def _check_seconds(name: str, seconds: float) -> None:
    if not seconds >= 0:
        raise ValueError(f"{name} must be at least 0 seconds, got {seconds}. Pass a longer time.")
