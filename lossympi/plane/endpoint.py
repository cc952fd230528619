"""The endpoint of ``lossympi.endpoint`` in Python: the clock, the lock and the thread."""

from __future__ import annotations

import contextlib
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np

from lossympi import endpoint as interface
from lossympi.endpoint import Closed, ClosePolicy, Setup
from lossympi.link import check_array
from lossympi.plane import packet
from lossympi.plane.assembler import ACCEPTED
from lossympi.plane.pacing import Pacer
from lossympi.plane.packet import IP_UDP_BYTES, Kind
from lossympi.plane.peers import Peers
from lossympi.plane.protocol import (
    Outgoing,
    PeerLayout,
    Protocol,
    ServerProtocol,
    WorkerProtocol,
)
from lossympi.plane.send_queue import SendQueue

PROBE_GAP_S = 0.02
NUM_BYES, BYE_GAP_S = 3, 0.0005
TELLINGS = 16  # of what is whole, in a round
POLL_MS = 20  # how long the thread may take to notice that it is to end
REPLY_BURSTS = 4  # before others have their turn
MOST_SENT, MOST_RECEIVED = 16, 16  # datagrams, before others have their turn


class _OneWorker:
    """What a server that takes worker by worker has of one.

    Attributes:
      protocol: its own.
      reply: what answers it, as it travels.
      reply_round: the round of that.
      repair_pacer: how fast it is sent again.
    """

    def __init__(self, protocol: ServerProtocol) -> None:
        self.protocol = protocol
        self.reply = b""
        self.reply_round = 0
        self.repair_pacer = Pacer(math.inf)


class Endpoint(interface.Endpoint):
    """A socket, its peers, and the thread that receives.

    One lock guards everything; whoever waits, waits on it, and always until some time. Verbs hold
    it, but while they wait and while they send DATA.

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
        self._setup = setup
        self._layout = PeerLayout.of(setup)
        self._peers = Peers(setup, self._layout)
        self.port = self._peers.port
        role = ServerProtocol if self._layout.is_server else WorkerProtocol
        self._protocol: Protocol = role(self._layout)
        self._changed = threading.Condition()
        self._overflow = 0  # datagrams that found the buffer full
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._is_busy = False  # a verb is at work
        # Where the server takes worker by worker; the protocol counts what is nobody's then.
        self._workers: list[_OneWorker] = []
        self._reply_pacer: Pacer | None = None
        self._reply_kbps = 0
        self._reply_turn = 0  # of the rows
        # While `collect` waits: whose round it is, and when it looks next by itself.
        self._collecting: tuple[ServerProtocol, float] | None = None

    def add_peer(
        self, rank: int, address: str, port: int, send_key: bytes, receive_key: bytes
    ) -> None:
        """Makes a peer known, before `start`; the keys are 32 bytes, or empty without a cipher.

        Raises:
          ValueError: a rank that is no peer's, an address or a key that is none, or too late.
        """
        if rank not in self._layout.peers:
            raise ValueError(
                f"rank {self._setup.rank} of {self._setup.num_workers} workers has no peer {rank}: "
                "the server's are the workers, a worker's is the server. Add one of those."
            )
        with self._changed:
            if self._thread is not None:
                raise ValueError("the endpoint has been started. Add peers before.")
            self._peers.add(rank, address, port, send_key, receive_key)

    def start(self) -> None:
        """Starts the receive thread; datagrams that came before it are handled then."""
        if self._is_closed:
            raise ValueError("start: the endpoint is closed. Make a new one.")
        if self._thread is not None:
            raise ValueError("the endpoint has been started. Start it once.")
        if absent := self._peers.absent():
            raise ValueError(
                f"an endpoint needs all its peers, and {absent[0]} was not added. Add it before "
                "the start."
            )
        self._peers.keep_only_peers()
        self._thread = threading.Thread(target=self._receive_all, name="lossympi", daemon=True)
        self._thread.start()

    def probe(self, timeout_s: float) -> dict[int, int]:
        """Sends PROBE of 100 bytes and of the MTU to every peer, every 20 ms, until all are echoed.

        Sizes are those of IP packets.

        Returns:
          For each peer's rank the size of the longest datagram that was echoed, or 0.
        """
        _check_seconds("timeout_s", timeout_s)
        deadline = time.monotonic() + timeout_s
        with self._verb("probe"):
            protocol = self._protocol
            protocol.forget_echoes([secrets.randbits(32) for _ in self._layout.peers])
            while not protocol.all_echoed() and (now := time.monotonic()) < deadline:
                self._send_all(protocol.probe())
                self._wait_for(min(now + PROBE_GAP_S, deadline), protocol.all_echoed)
            longest = [protocol.longest_echo(row) for row in range(len(self._layout.peers))]
        return {
            rank: size + IP_UDP_BYTES if size else 0
            for rank, size in zip(self._layout.peers, longest, strict=True)
        }

    def collect(
        self,
        round: int,
        stack_nd: np.ndarray,
        policy: ClosePolicy,
        on_whole: Callable[[np.ndarray], None] | None = None,
    ) -> Closed:
        """Server: opens `round`, grants it, and returns when it is closed.

        What arrives is written into `stack_nd`, float32 [n, d] in C order, until then and never
        after. Meanwhile `on_whole` is called, on this thread, with datagrams that all rows have,
        some 16th of them at a time; with each once, and with the last ones perhaps never.

        Raises:
          ValueError: not the server's, or the round, the stack or the policy is not as it must be.
        """
        server = self._protocol.as_server("collect")
        _check_round(round)
        self._check_stack(stack_nd)
        policy.rates_kbps(self._setup.num_workers)
        self._check_in_rounds()
        with self._verb("collect"):
            told, at_once = 0, -(-self._layout.num_datagrams // TELLINGS)
            try:
                self._send_all(server.open_round(round, stack_nd, policy, time.monotonic()))
                while True:
                    self._send_all(server.tick(time.monotonic()))
                    if server.closed is not None:
                        return server.closed
                    whole = server.whole
                    if on_whole is not None and len(whole) >= told + at_once:
                        news, told = whole[told:], len(whole)
                        with self._without_lock():
                            on_whole(np.array(news))
                        continue
                    server.tell_at(told + at_once if on_whole is not None else math.inf)
                    wakes_at = server.wake_at(time.monotonic())
                    self._collecting = server, wakes_at
                    self._wait(wakes_at)
            finally:
                self._collecting = None
                server.abandon_round()  # if it is open still: the caller may free the stack

    def send(self, round: int, grad_d: np.ndarray, max_loss: float, timeout_s: float) -> bool:
        """Worker: sends float32 [d] when granted; False if not all has left.

        The round was closed, or `timeout_s` has passed: then another call goes on.
        With `max_loss` below 1 it returns True only if the server also said that it has enough, or
        has left since.
        """
        worker = self._protocol.as_worker("send")
        check_array("grad_d", grad_d, np.float32, (self._setup.dim,))
        _check_round(round)
        _check_seconds("timeout_s", timeout_s)
        if not 0 <= max_loss <= 1:
            raise ValueError(f"max_loss must be in 0..1, got {max_loss}. Pass a share.")
        deadline = time.monotonic() + timeout_s
        with self._verb("send"):
            worker.ask_for_grant(round, time.monotonic())
            self._ask_until(deadline, lambda: worker.is_granted(round) or worker.is_over(round))
            if not worker.is_granted(round) or worker.is_over(round):
                return False
            bytes_per_s = worker.granted_kbps * 125  # 1 kbit is 125 bytes
            most = self._most_at_once(bytes_per_s)
            queue = worker.gradient(round, most, max_loss < 1, time.monotonic())
            queue.add_rest()
            self._transmit(round, grad_d, queue, bytes_per_s, deadline)
            if max_loss == 1:
                enough = queue.is_finished(0)
            else:  # BYE says what a lost DONE would have
                enough = queue.is_done(0) or worker.is_over(round)
            sent = enough and queue.all_sent(0)
            if sent:
                worker.end_gradient()
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
        server = self._protocol.as_server("broadcast")
        n = self._setup.num_workers
        check_array("params_d", params_d, np.float32, (self._setup.dim,))
        interface.check_rate(rate_kbps)
        _check_round(round)
        _check_seconds("timeout_s", timeout_s)
        _check_seconds("silence_s", silence_s)
        if len(to_n) != n:
            raise ValueError(f"to_n must have {n} values, got {len(to_n)}. Pass one for each row.")
        self._check_in_rounds()
        deadline = time.monotonic() + timeout_s
        bytes_per_s = rate_kbps * 125
        rows, most = np.flatnonzero(to_n).tolist(), self._most_at_once(bytes_per_s)
        with self._verb("broadcast"):
            queue = server.start_broadcast(round, rows, most, silence_s, time.monotonic())
            try:
                self._transmit(round, params_d, queue, bytes_per_s, deadline)
            finally:
                done_n = server.end_broadcast(time.monotonic())
        return np.array(done_n)

    def await_row(self, row: int, round: int, stack_nd: np.ndarray, policy: ClosePolicy) -> None:
        """Server: grants `round` to one worker as soon as it asks for it, by the policy of one row.

        What arrives is written into its row of `stack_nd`, float32 [n, d] and always the same one,
        until the round is closed. From the first call on there are no other rounds.
        """
        server = self._protocol.as_server("await_row")
        self._check_row(row)
        _check_round(round)
        self._check_stack(stack_nd)
        with self._changed:
            self._check_open()
            if not self._workers:
                rows = range(self._setup.num_workers)
                self._workers = [_OneWorker(ServerProtocol.of_one(server, each)) for each in rows]
            protocol = self._workers[row].protocol
            protocol.await_round(round, stack_nd[row : row + 1], policy)

    def take_closed(self, timeout_s: float) -> list[tuple[int, Closed]]:
        """Server: returns the rows whose awaited rounds have closed, each once, and how.

        If there is none it waits for the next, for `timeout_s` at most.
        """
        self._protocol.as_server("take_closed")
        _check_seconds("timeout_s", timeout_s)
        deadline = time.monotonic() + timeout_s
        with self._verb("take_closed"):
            while True:
                wakes_at = self._serve_workers()
                closed = [
                    (row, worker.protocol.closed)
                    for row, worker in enumerate(self._workers)
                    if worker.protocol.closed is not None
                ]
                if closed or time.monotonic() >= deadline:
                    for row, _ in closed:
                        self._workers[row].protocol.closed = None
                    return closed
                self._wait(min(wakes_at, deadline))

    def reply(
        self, row: int, round: int, params_d: np.ndarray, rate_kbps: int, silence_s: float
    ) -> None:
        """Server: begins to send a copy of float32 [d] to one worker, reliably, and does not wait.

        It takes the place of what the worker has not got of an earlier one. `rate_kbps` is shared
        by all workers, in turn; nothing goes to one that has said nothing for `silence_s`, until it
        is heard again.
        """
        self._protocol.as_server("reply")
        self._check_row(row)
        _check_round(round)
        check_array("params_d", params_d, np.float32, (self._setup.dim,))
        interface.check_rate(rate_kbps)
        _check_seconds("silence_s", silence_s)
        data = packet.encode_floats(params_d, self._setup.wire)
        bytes_per_s = rate_kbps * 125
        with self._changed:
            self._check_open()
            if not self._workers:
                raise ValueError("no round was awaited. Await one.")
            if self._reply_pacer is None or rate_kbps != self._reply_kbps:
                self._reply_pacer, self._reply_kbps = Pacer(bytes_per_s), rate_kbps
            worker = self._workers[row]
            worker.reply, worker.reply_round = data, round
            worker.repair_pacer = Pacer(bytes_per_s / len(self._workers))
            most = self._most_at_once(bytes_per_s)
            worker.protocol.start_reply(round, most, silence_s, time.monotonic())
            self._serve_workers()

    def receive(self, round: int, timeout_s: float) -> tuple[int, np.ndarray] | None:
        """Worker: returns the newest whole model of `round` or later, and its round.

        The array, float32 [d] and read-only, is the endpoint's own and stays as it is until the
        next `receive` that returns another. None: nothing whole came in time, or the server said
        BYE.
        """
        worker = self._protocol.as_worker("receive")
        _check_round(round)
        _check_seconds("timeout_s", timeout_s)
        deadline = time.monotonic() + timeout_s
        with self._verb("receive"):
            worker.ask_for_model(round, time.monotonic())
            self._ask_until(deadline, lambda: worker.whole_round >= round or worker.server_left)
            whole_round = worker.whole_round
            if whole_round < round:
                return None
            worker.take_model()
            model_d = worker.model.view()
            model_d.setflags(write=False)
            return whole_round, model_d

    def counters(self) -> dict[int, dict[str, int]]:
        """Returns, for each peer's rank and for -1 (nobody's), counts since the start."""
        with self._changed:
            self._count_drops()
            lost = {"dropped": self._peers.num_dropped, "overflow": self._overflow}
            return {
                -1: {**self._protocol.counts_of_nobody, **lost},
                **{
                    rank: {**self._counts(row), "unsent": self._peers.num_unsent(row)}
                    for row, rank in enumerate(self._layout.peers)
                },
            }

    def server_left(self) -> bool:
        """Worker: whether the server has said BYE."""
        return self._protocol.as_worker("server_left").server_left

    def close(self) -> None:
        """Says BYE to every peer, three times, ends the thread and closes the socket."""
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            for at in range(NUM_BYES):
                if at:
                    time.sleep(BYE_GAP_S)
                self._send_all(self._protocol.bye())
            self._thread.join()
        self._peers.close()

    # Sending and waiting, with the lock held.

    def _most_at_once(self, bytes_per_s: float) -> int:
        in_burst = Pacer.BURST_S * bytes_per_s / self._layout.bytes_of(self._layout.payload_bytes)
        return min(max(int(in_burst), 1), MOST_SENT)

    def _transmit(
        self,
        round: int,
        vector_d: np.ndarray,
        queue: SendQueue,
        bytes_per_s: float,
        deadline: float,
    ) -> None:
        """Sends what is in the queue until it has finished or the deadline has passed."""
        data = packet.encode_floats(vector_d, self._setup.wire)
        c = self._layout.num_datagrams
        pacer = Pacer(bytes_per_s)
        while True:
            self._check_open()
            now = time.monotonic()
            if now >= deadline:
                return
            what, *rest = queue.next(now)
            if what == "finished":
                return
            if what == "wait":
                self._wait(min(rest[0], deadline))
                continue
            row, of = rest
            if what == "end":
                end = Outgoing(row, Kind.END, round, of, c)
                if not self._peers.send(end):
                    with self._without_lock():
                        self._peers.wait_for_room()
                    self._peers.send(end)
                continue
            datagrams = self._data(row, round, of, data)
            due = sum(self._layout.bytes_of(len(each.payload)) for each in datagrams)
            send_at = min(pacer.when(now, due), deadline)
            if self._wait_for(send_at, partial(queue.is_finished, row)):
                queue.take_back()
                continue
            with self._without_lock():
                for each in datagrams:
                    self._peers.send(each, may_wait=True)

    def _send_all(self, datagrams: Iterable[Outgoing], first: int = 0) -> None:
        """Sends what is not DATA, with the lock held, as counters must leave in order.

        So nobody waits for room to send: what has none is lost. Row 0 of them is `first`.
        """
        for outgoing in datagrams:
            self._peers.send(outgoing._replace(row=first + outgoing.row))

    def _serve_workers(self) -> float:
        """Closes rounds of single workers whose time it is, and sends what answers them.

        Returns:
          When to call it again if nothing happens before.
        """
        now = time.monotonic()
        for row, worker in enumerate(self._workers):
            self._send_all(worker.protocol.tick(now), row)
        wakes_at = min((each.protocol.wake_at(now) for each in self._workers), default=math.inf)
        if self._reply_pacer is None:
            return wakes_at
        for _ in range(REPLY_BURSTS):
            send_at = self._reply_pacer.when(now, 0)
            if send_at > now:
                return min(wakes_at, send_at)
            send_at = self._send_reply(now)
            if send_at > now:
                return min(wakes_at, send_at)
        return now

    def _send_reply(self, now: float) -> float:
        """Sends a burst of the answer whose turn it is; returns when there may be another."""
        assert self._reply_pacer is not None
        wakes_at = math.inf
        for _ in self._workers:
            row = self._reply_turn
            self._reply_turn = (row + 1) % len(self._workers)
            worker = self._workers[row]
            queue = worker.protocol.queue
            if queue is None:
                continue
            # Once all has left, one that never has enough gets its share, though nobody else waits.
            repairs = queue.all_sent(0)
            if repairs and (at := worker.repair_pacer.when(now, 0)) > now:
                wakes_at = min(wakes_at, at)
                continue
            what, *rest = queue.next(now)
            if what == "finished":
                worker.protocol.end_reply()
            elif what == "wait":
                wakes_at = min(wakes_at, rest[0])
            elif what == "end":
                c = self._layout.num_datagrams
                self._peers.send(Outgoing(row, Kind.END, worker.reply_round, rest[1], c))
                return now
            else:
                datagrams = self._data(row, worker.reply_round, rest[1], worker.reply)
                due = sum(self._layout.bytes_of(len(each.payload)) for each in datagrams)
                self._reply_pacer.when(now, due)
                if repairs:
                    worker.repair_pacer.when(now, due)
                for each in datagrams:
                    self._peers.send(each, may_wait=True)
                return now
        return wakes_at

    def _data(self, row: int, round: int, seqs: Iterable[int], data: bytes) -> list[Outgoing]:
        """Returns DATA datagrams of an encoded vector."""
        size, c = self._layout.payload_bytes, self._layout.num_datagrams
        return [
            Outgoing(row, Kind.DATA, round, seq, c, data[seq * size : (seq + 1) * size])
            for seq in seqs
        ]

    def _counts(self, row: int) -> dict[str, int]:
        return (
            self._workers[row].protocol.counts(0) if self._workers else self._protocol.counts(row)
        )

    def _ask_until(self, until: float, is_so: Callable[[], bool]) -> None:
        """Asks for what the worker waits for, until `is_so()` or the time is up."""
        worker = self._protocol.as_worker("asking")
        while not is_so() and (now := time.monotonic()) < until:
            self._send_all(worker.tick(now))
            self._wait_for(min(until, worker.wake_at()), is_so)
        worker.stop_asking()

    def _wait_for(self, until: float, is_so: Callable[[], bool]) -> bool:
        """Waits until `is_so()`, which it returns, or the time is up."""
        while not is_so():
            if time.monotonic() >= until:
                return False
            self._wait(until)
        return True

    def _wait(self, until: float) -> None:
        """Waits until something has changed or the time is up, but a second at most."""
        self._check_open()
        self._changed.wait(min(max(until - time.monotonic(), 0.0), 1.0))
        self._check_open()

    @contextlib.contextmanager
    def _without_lock(self) -> Iterator[None]:
        self._changed.release()
        try:
            yield
        finally:
            self._changed.acquire()

    @contextlib.contextmanager
    def _verb(self, name: str) -> Iterator[None]:
        """Holds the lock for a verb, one at a time.

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

    def _check_stack(self, stack_nd: np.ndarray) -> None:
        check_array("stack_nd", stack_nd, np.float32, (self._setup.num_workers, self._setup.dim))
        if not (stack_nd.flags.c_contiguous and stack_nd.flags.writeable):
            raise ValueError(
                "stack_nd must be writeable and in C order. Allocate it with np.empty."
            )

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self._setup.num_workers:
            raise ValueError(f"row must be in 0..{self._setup.num_workers - 1}, got {row}.")

    def _check_in_rounds(self) -> None:
        if self._workers:
            raise ValueError("this endpoint takes worker by worker. Take and reply.")

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError("the endpoint was closed while it was in use. Make a new one.")

    # Receiving, on a thread of its own.

    def _receive_all(self) -> None:
        wakes_at = math.inf
        while not self._is_closed:
            left_ms = math.ceil(min(max(wakes_at - time.monotonic(), 0.0) * 1000, POLL_MS))
            if not self._peers.wait(left_ms) and not self._workers:
                continue
            with self._changed:
                self._count_drops()
                changed = False
                for _ in range(MOST_RECEIVED):
                    came = self._peers.receive()
                    if came is None:
                        break
                    changed |= self._take(*came, time.monotonic())
                if self._workers:
                    wakes_at = self._serve_workers()
                    changed = any(each.protocol.closed for each in self._workers)
                if changed or self._closes_sooner():
                    self._changed.notify_all()

    def _count_drops(self) -> None:
        """Before anything is read: the buffer is as full then as when it had no room."""
        overflow, filtered = self._peers.new_drops()
        self._overflow += overflow
        self._protocol.reject(-1, "foreign", filtered)

    def _take(self, data: bytes, source: tuple[str, int], now: float) -> bool:
        """Judges a datagram and answers it; returns whether something has changed."""
        envelope = self._peers.open(data, source)
        first, protocol = 0, self._protocol
        if self._workers and envelope.row >= 0:
            first, protocol = envelope.row, self._workers[envelope.row].protocol
        if envelope.verdict != ACCEPTED:
            protocol.reject(envelope.row - first, envelope.verdict)
            return False
        assert envelope.header is not None
        row = envelope.row - first
        handled = protocol.handle(row, envelope.header, envelope.payload, now)
        self._send_all(handled.to_send, first)
        return handled.changed

    def _closes_sooner(self) -> bool:
        """Whether `collect` waits, and should look sooner than it does by itself.

        Waking it for each datagram would cost more than the datagram.
        """
        if self._collecting is None:
            return False
        server, wakes_at = self._collecting
        return server.wake_at(time.monotonic()) < wakes_at


def _check_round(round: int) -> None:
    if not 1 <= round < 2**64:
        raise ValueError(f"round must be in 1..{2**64 - 1}, got {round}. Change it.")


def _check_seconds(name: str, seconds: float) -> None:
    if not seconds >= 0:
        raise ValueError(f"{name} must be at least 0 seconds, got {seconds}. Pass a longer time.")
