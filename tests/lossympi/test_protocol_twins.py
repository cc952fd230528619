"""The protocols and send queues of both planes, fed with the same datagrams at the same times.

What they return, what they want sent and every state that can be seen are compared after each step.
"""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossympi.endpoint import ClosePolicy
from lossympi.plane import packet, protocol, send_queue
from lossympi.plane.packet import Header, Kind

core = pytest.importorskip("lossympi._core")

N, DIM, K, C = 3, 37, 8, 5
SESSION, LONGEST, TAG = 0x12345678, 260, 16
WIRES = ("float32", "float16", "bfloat16")
STEPS = 250  # of a play


def layouts(rank, wire="float32"):
    """Returns a rank's layout in both planes."""
    fields = rank, N, SESSION, DIM, K, wire, LONGEST, TAG
    return core.PeerLayout(*fields), protocol.PeerLayout(*fields)


def plain(value):
    """Returns a value of either plane in a form that equals that of the other; NaN equals NaN."""
    if value is None or isinstance(value, (bool, str, bytes)):
        return value
    if isinstance(value, np.ndarray):
        return value.dtype.kind, value.tobytes()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(plain(each) for each in value)
    if hasattr(value, "arrived_nc"):  # Closed
        return tuple(plain(each) for each in vars(value).values())
    if isinstance(value, (send_queue.SendQueue, core.SendQueue)):
        return "a queue"
    return float(value).hex()


class Twins:
    """Both planes' objects: what is called is called on both, and must return the same."""

    def __init__(self, native, python):
        self.pair = native, python

    def __getattr__(self, name):
        def call(*of):
            results = [getattr(each, name)(*of) for each in self.pair]
            assert plain(results[0]) == plain(results[1]), (name, of)
            return results[1]

        return call

    def seen(self, *names):
        """Compares attributes; returns the last one's value, of Python's."""
        for name in names:
            values = [getattr(each, name) for each in self.pair]
            assert plain(values[0]) == plain(values[1]), name
        return values[1]

    def queue(self):
        """Returns the queues, None where there is none."""
        queues = [each.queue for each in self.pair]
        assert (queues[0] is None) == (queues[1] is None)
        return None if queues[1] is None else Twins(*queues)

    def look_at_queue(self, now):
        queue = self.queue()
        if queue is not None:
            queue.has_wanted()
            for row in range(-1, N):
                queue.is_finished(row)
                queue.is_done(row)
                queue.all_sent(row)
                queue.overtime(row, now)


def header_and_payload(rank, kind, round, seq, odd, rng, counter, wire):
    """Returns a datagram that is well-formed where `odd` is 0."""
    total = C if kind in (Kind.DATA, Kind.END, Kind.NACK) else 0
    payload = b""
    if kind == Kind.DATA:
        seq = seq % C if odd != 1 else seq
        size = min(K, DIM - seq * K) * packet.FLOAT_BYTES[wire] if seq < C else 0
        payload = rng.randbytes(max(size, 0))
    elif kind == Kind.NACK:
        seq, payload = 0, bytes([rng.getrandbits(C)])
    elif kind in (Kind.PROBE, Kind.ECHO):
        round, payload = 0, bytes(rng.choice([0, 5, LONGEST - 32 - TAG]))
    elif kind in (Kind.DONE, Kind.BYE):
        seq = 0
        round = 0 if kind == Kind.BYE else round
    elif kind == Kind.READY:
        seq %= 2
    elif kind == Kind.END:
        seq %= 3
    if odd == 1:
        total += 1
    elif odd == 2:
        payload += b"\1"
    elif odd == 3:
        counter = rng.randrange(counter + 1)
    return Header(int(kind), rank, SESSION, round, seq, total, counter), payload


class Play:
    """Random steps of one rank and its virtual clock; most are of one round, and well-formed."""

    def __init__(self, rank, seed, twins, kinds):
        """Takes how often a datagram is of which kind."""
        self.kinds = {**dict.fromkeys((*Kind, 0, 77), 1), **kinds}
        self.rng = random.Random(seed)
        self.wire = self.rng.choice(WIRES)
        self.layouts = layouts(rank, self.wire)
        self.peers = self.layouts[1].peers
        self.twins = Twins(*(make(of) for make, of in zip(twins, self.layouts, strict=True)))
        self.now, self.counter, self.round = 100.0, 0, 2
        self.can_take_back = False
        self.challenges = [1] * len(self.peers)

    def near(self):
        return self.round + self.rng.choice([0] * 9 + [-1, 1, 2])

    def feed(self):
        rng = self.rng
        row = min(int(rng.expovariate(1)), len(self.peers) - 1)  # some are ahead of others
        [kind] = rng.choices(list(self.kinds), list(self.kinds.values()))
        odd = rng.choice([0] * 20 + [1, 2, 3])
        self.counter += 1
        header, payload = header_and_payload(
            self.peers[row], kind, self.near(), rng.randrange(C), odd, rng, self.counter, self.wire
        )
        if kind == Kind.ECHO and rng.random() < 0.7:
            header = header._replace(seq=self.challenges[row])
        self.can_take_back = False
        self.twins.handle(row, header, payload, self.now)
        if isinstance(self, WorkerPlay) and kind in (Kind.DATA, Kind.END):
            self.round = max(self.round, header.round)  # which it follows

    def wait(self):
        self.now += self.rng.choice([0.0, 0.0001, 0.0002, 0.0002, 0.0004, 0.002, 0.01, 0.05, 0.3])

    def next(self):
        queue = self.twins.queue()
        if queue is not None:
            self.can_take_back = queue.next(self.now)[0] == "send"

    def take_back(self):
        queue = self.twins.queue()
        if queue is not None and self.can_take_back:
            queue.take_back()
            self.can_take_back = False

    def probe(self):
        self.twins.probe()
        self.challenges = [self.rng.getrandbits(32) for _ in self.peers]
        self.twins.forget_echoes(self.challenges)

    def look(self):
        """Lets both do what time demands, and compares all that can be seen of them."""
        self.twins.tick(self.now)
        for row in range(len(self.peers)):
            self.twins.counts(row)
            self.twins.missing(row)
            self.twins.longest_echo(row)
        self.twins.all_echoed()
        self.twins.look_at_queue(self.now)

    def run(self, first, weights):
        self.twins.bye()
        for name in (*first, *self.rng.choices(list(weights), list(weights.values()), k=STEPS)):
            getattr(self, name)()
            self.look()


class ServerPlay(Play):
    def __init__(self, seed):
        kinds = {Kind.DATA: 30, Kind.END: 14, Kind.READY: 6, Kind.NACK: 8, Kind.DONE: 3}
        super().__init__(0, seed, (core.ServerProtocol, protocol.ServerProtocol), kinds)
        self.around = [np.full((N + 2, DIM), 99, np.float32) for _ in range(2)]

    def policy(self, n):
        rng = self.rng
        return ClosePolicy(
            deadline_s=rng.choice([0.1, 4.0, 4.0]),
            grace_s=rng.choice([0.0, 0.0004, 0.01]),
            quiet_s=rng.choice([0.002, 0.1]),
            max_loss=rng.choice([0.0, 0.2, 0.5, 1.0]),
            quorum=rng.randint(1, n),
            live_n=tuple(rng.random() < 0.8 for _ in range(n)),
            rate_kbps=rng.choice([1, 1000, 2**32 - 1, (7, 9, 1000)[-n:]]),
            f=rng.choice([0, 1]),
            longest_s=rng.choice([0.5, 4.0]),
            free_s=rng.choice([0.0, 0.002, 0.02]),
            allowance_s_n=tuple(rng.choice([0.0, 0.0003, 0.01]) for _ in range(n)),
        )

    def open(self):
        self.round += self.rng.choice([1, 1, 2])
        policy = self.policy(N)
        results = [
            plain(each.open_round(self.round, around_nd[1:-1], policy, self.now))
            for each, around_nd in zip(self.twins.pair, self.around, strict=True)
        ]
        assert results[0] == results[1]

    def abandon(self):
        self.twins.abandon_round()

    def tell_at(self):
        self.twins.tell_at(self.rng.randint(0, 2))

    def broadcast(self):
        rng = self.rng
        if self.twins.queue() is None:
            rows = rng.sample(range(N), rng.randint(0, N))
            most, silence_s = rng.randint(1, 4), rng.choice([0.05, 0.5])
            self.twins.start_broadcast(self.near(), rows, most, silence_s, self.now)

    def end(self):
        self.can_take_back = False
        if self.twins.queue() is not None:
            self.twins.end_broadcast(self.now)

    def look(self):
        super().look()
        self.twins.wake_at(self.now)
        self.twins.seen("closed", "whole")
        is_nan = np.isnan(self.around[1])  # made quiet or not
        np.testing.assert_array_equal(np.isnan(self.around[0]), is_nan)
        bits = [each[~is_nan].view(np.uint32) for each in self.around]
        np.testing.assert_array_equal(*bits)
        assert (self.around[0][[0, -1]] == 99).all()


class OneWorkerPlay(ServerPlay):
    """A server's protocol of one worker, made from that of all when it knew something of it."""

    def __init__(self, seed):
        super().__init__(seed)
        self.open()
        for _ in range(self.rng.randint(0, 40)):
            self.feed()
        row = self.rng.randrange(N)
        kinds = core.ServerProtocol, protocol.ServerProtocol
        pairs = zip(kinds, self.twins.pair, strict=True)
        self.twins = Twins(*(kind.of_one(every, row) for kind, every in pairs))
        self.peers, self.challenges = [self.peers[row]], [self.challenges[row]]
        self.around = [np.full((1 + 2, DIM), 99, np.float32) for _ in range(2)]

    def await_round(self):
        self.round += self.rng.choice([1, 1, 2])
        policy = self.policy(1)
        for each, around_nd in zip(self.twins.pair, self.around, strict=True):
            each.await_round(self.round, around_nd[1:-1], policy)

    def reply(self):
        most, silence_s = self.rng.randint(1, 4), self.rng.choice([0.05, 0.5])
        self.twins.start_reply(self.near(), most, silence_s, self.now)
        self.can_take_back = False

    def end(self):
        self.twins.end_reply()
        self.can_take_back = False


class WorkerPlay(Play):
    def __init__(self, seed):
        kinds = {Kind.DATA: 30, Kind.END: 8, Kind.GRANT: 4, Kind.NACK: 8}
        super().__init__(2, seed, (core.WorkerProtocol, protocol.WorkerProtocol), kinds)

    def ask(self):
        ask = self.rng.choice(["ask_for_grant", "ask_for_model", None])
        getattr(self.twins, ask)(self.near(), self.now) if ask else self.twins.stop_asking()

    def gradient(self):
        rng = self.rng
        self.twins.gradient(self.near(), rng.randint(1, 4), rng.random() < 0.7, self.now)
        queue = self.twins.queue()
        parts = rng.choice([[], [], [0, 3], [4]])
        queue.add(parts) if parts else queue.add_rest()
        self.can_take_back = False  # the queue may be another one

    def end(self):
        self.twins.end_gradient()
        self.can_take_back = False

    def take(self):
        if self.twins.seen("whole_round"):
            self.twins.take_model()
            self.round += 1

    def pause(self):
        self.twins.pause(self.round)

    def look(self):
        super().look()
        self.twins.wake_at()
        self.twins.seen("server_left", "granted_kbps", "whole_round")
        for round in range(self.round - 2, self.round + 3):
            self.twins.is_granted(round)
            self.twins.is_over(round)
        models = [np.asarray(each.model) for each in self.twins.pair]
        is_nan = np.isnan(models[1])
        np.testing.assert_array_equal(np.isnan(models[0]), is_nan)
        assert models[0][~is_nan].tobytes() == models[1][~is_nan].tobytes()


QUEUE_STEPS = {"next": 20, "take_back": 2, "end": 1, "probe": 1}


@pytest.mark.parametrize("seed", range(60))
def test_servers(seed):
    weights = {"feed": 60, "wait": 25, "open": 2, "abandon": 1, "tell_at": 2, "broadcast": 4}
    ServerPlay(seed).run(["open", "broadcast"], {**weights, **QUEUE_STEPS})


@pytest.mark.parametrize("seed", range(60))
def test_servers_of_one_worker(seed):
    weights = {"feed": 60, "wait": 25, "await_round": 3, "abandon": 1, "reply": 3}
    OneWorkerPlay(seed).run(["await_round", "reply"], {**weights, **QUEUE_STEPS})


@pytest.mark.parametrize("seed", range(60))
def test_workers(seed):
    weights = {"feed": 60, "wait": 25, "gradient": 4, "ask": 4, "take": 2, "pause": 1}
    WorkerPlay(seed).run(["gradient"], {**weights, **QUEUE_STEPS})


@given(
    rows=st.lists(st.integers(0, N), unique=True),
    c=st.sampled_from([1, 2, 5, 300]),
    most=st.sampled_from([1, 2, 7, 100]),
    until_done=st.booleans(),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_send_queues(rows, c, most, until_done, data):
    """Long vectors, too: those have reports."""
    of = list(rows), c, most, until_done, 0.5, 7.0
    twins, now, can_take_back = Twins(core.SendQueue(*of), send_queue.SendQueue(*of)), 7.0, False
    row, seq = st.integers(-1, N), st.integers(0, c - 1)
    steps = st.one_of(
        *[st.just(("next",))] * 3,
        st.tuples(st.just("wait"), st.sampled_from([0.0, 0.0004, 0.001, 0.01, 0.2, 1.0])),
        st.tuples(st.just("add"), st.lists(seq, max_size=5)),
        st.tuples(st.just("nacked"), row, seq),
        st.tuples(st.sampled_from(["done", "leave", "heard", "hurry"]), row),
        st.tuples(st.just("take_nack"), row, st.integers(0, 60)),
        st.just(("take_back",)),
        st.just(("add_rest",)),
    )
    if data.draw(st.booleans()):
        twins.add_rest()
    if data.draw(st.booleans()):
        twins.stay()
    for name, *arguments in data.draw(st.lists(steps, min_size=10, max_size=60)):
        if name == "wait":
            now += arguments[0]
        elif name == "next":
            can_take_back = twins.next(now)[0] == "send"
        elif name == "take_back":
            if can_take_back:
                twins.take_back()
            can_take_back = False
        elif name == "done":
            twins.done(*arguments, now)
        else:
            getattr(twins, name)(*arguments)
        twins.has_wanted()
        for each in range(-1, N + 1):
            twins.is_finished(each)
            twins.is_done(each)
            twins.all_sent(each)
            twins.overtime(each, now)


@given(
    rank=st.integers(0, N),
    size=st.integers(0, LONGEST + 2),
    version=st.sampled_from([1, 1, 1, 0, 255]),
    session=st.sampled_from([SESSION, SESSION, 1]),
    sender=st.integers(0, N + 1),
    rng=st.randoms(use_true_random=False),
)
@settings(max_examples=300)
def test_envelopes(rank, size, version, session, sender, rng):
    header = Header(5, sender, session, *(rng.getrandbits(bits) for bits in (64, 32, 32, 64)))
    data = bytearray(packet.pack(header) + rng.randbytes(LONGEST))[:size]
    data[:1] = bytes([version])[: len(data)]
    Twins(*layouts(rank)).open(bytes(data))


KINDS = {
    "native": (core.ServerProtocol, core.WorkerProtocol, 0),
    "python": (protocol.ServerProtocol, protocol.WorkerProtocol, 1),
}


class Wire:
    """A server, a worker and a network that loses three of ten datagrams, which a seed chooses.

    Attributes:
      history: what was sent, by whom (0: the worker) and when.
    """

    ROUND, RANK = 3, 2

    def __init__(self, server_kind, worker_kind):
        make_server, _, at = KINDS[server_kind]
        self.server = make_server(layouts(0)[at])
        _, make_worker, at = KINDS[worker_kind]
        self.worker = make_worker(layouts(self.RANK)[at])
        self.now, self.history = 1.0, []
        self._random = random.Random(4)
        self._counters = [0, 0]

    def from_server(self, datagrams):
        self._carry([each for each in datagrams if each[0] == self.RANK - 1], 1)

    def from_worker(self, datagrams):
        self._carry(datagrams, 0)

    def _carry(self, datagrams, sender):
        for _, *fields, payload in datagrams:
            self._counters[sender] += 1
            self.history.append((sender, self.now, *map(int, fields), payload))
            if self._random.random() < 0.3:
                continue
            kind, *numbers = fields
            rank = self.RANK * (1 - sender)
            header = Header(kind, rank, SESSION, *numbers, self._counters[sender])
            if sender == 0:
                answers = self.server.handle(self.RANK - 1, header, payload, self.now)[2]
            else:
                answers = self.worker.handle(0, header, payload, self.now)[2]
            self._carry(answers, 1 - sender)

    def play_round(self, grad_d, stack_nd):
        """Returns how a round went in which nothing may stay lost."""
        policy = ClosePolicy(4.0, 0.0, 0.1, 0.0, 1, (False, True, False), 1000)
        data, size = packet.encode_floats(grad_d, "float32"), 4 * K
        self.from_server(self.server.open_round(self.ROUND, stack_nd, policy, self.now))
        self.worker.ask_for_grant(self.ROUND, self.now)
        while not self.worker.is_granted(self.ROUND):
            self.from_worker(self.worker.tick(self.now))
            self.now = max(self.now, self.worker.wake_at())
        queue = self.worker.gradient(self.ROUND, 2, True, self.now)
        queue.add_rest()
        while self.server.closed is None:
            what, *rest = queue.next(self.now)
            if what == "wait":
                self.now = rest[0]
            elif what == "end":
                self.from_worker([(0, Kind.END, self.ROUND, rest[1], C, b"")])
            else:
                for seq in rest[1]:
                    payload = data[size * seq : size * (seq + 1)]
                    self.from_worker([(0, Kind.DATA, self.ROUND, seq, C, payload)])
            self.from_server(self.server.tick(self.now))
        return self.server.closed


def test_a_round_with_losses_is_the_same_in_every_mixture_of_planes():
    grad_d = np.random.default_rng(0).standard_normal(DIM).astype(np.float32)
    histories = []
    for server_kind in KINDS:
        for worker_kind in KINDS:
            wire, stack_nd = Wire(server_kind, worker_kind), np.zeros((N, DIM), np.float32)
            closed = wire.play_round(grad_d, stack_nd)
            assert closed.reason == "complete"
            np.testing.assert_array_equal(stack_nd[Wire.RANK - 1], grad_d)
            assert not stack_nd[[0, 2]].any()
            histories.append((wire.history, plain(closed)))
    assert len(histories) == 4
    assert all(history == histories[0] for history in histories)
    kinds = [kind for _, _, kind, *_ in histories[0][0]]
    assert kinds.count(Kind.DATA) > C
    assert {Kind.GRANT, Kind.READY, Kind.END, Kind.NACK} <= set(kinds)
