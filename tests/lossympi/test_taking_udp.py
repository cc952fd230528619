"""``take`` and ``reply`` over UDP, in every mixture of planes: losses, and what workers may do."""

import threading
import time

import numpy as np
import pytest

from lossympi.float64_link import floats_per_value, of_dtype
from lossympi.link import LinkError
from lossympi.options import Options
from lossympi.plane.packet import Kind, unpack
from lossympi.udp_link import UdpServer, UdpWorker
from tests.lossympi.conftest import HOST, keys_for
from tests.lossympi.taking import CONTRACT, N, a_row_has_one_buffer, check_arrival, take, vector

RATE_BPS = 1e9
DIM, C = 3527, 11  # floats, and datagrams of them; the last is short
ENTIRE = np.arange(DIM, dtype=np.float32)
PARAMS = -ENTIRE


class Begun:
    """A worker's end whose first gradient begins the server's taking: it is not sent before."""

    def __init__(self, link, server):
        self._link, self._server = link, server

    def send(self, round, grad_d):
        self._server.begin()
        return self._link.send(round, grad_d)

    def receive(self, round):
        return self._link.receive(round)


@pytest.fixture
def linked(job):
    """Returns a function that gives the server's end, and the workers' ends, of a new link."""

    def make(n=N, dim=DIM, dtype=np.float32, drop=0.0, **options):
        chosen = Options(**{"give_up_s": 20.0, "timeout_s": 5.0, **options})
        floats = dim * floats_per_value(dtype)
        server, workers = job.connected(n, floats, drop=drop)
        link = UdpServer(server, n, floats, RATE_BPS, chosen)
        ends = [UdpWorker(each, row, floats, chosen) for row, each in enumerate(workers)]
        return of_dtype(link, dtype), [of_dtype(end, dtype) for end in ends]

    return make


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("check", [each for each in CONTRACT if each is not a_row_has_one_buffer])
def test_the_contract(linked, check, dtype):
    server, workers = linked(dtype=dtype)
    has_begun = []

    def begin():
        if not has_begun:
            has_begun.append(server.take(0.0))
            assert has_begun == [None]

    server.begin = begin
    check(lambda *_: (server, [Begun(worker, server) for worker in workers]), DIM, dtype)


@pytest.fixture
def attacked(job, background):
    """Returns a function that gives a link of an honest worker, row 0, and the attacker, row 1."""

    def make(cipher="none", **options):
        chosen = Options(**{"give_up_s": 20.0, "timeout_s": 0.3, **options})
        server = job.endpoint(0, 2, DIM, cipher=cipher)
        worker = job.endpoint(1, 2, DIM, cipher=cipher)
        up, down = keys_for(cipher)
        worker.add_peer(0, HOST, server.port, up, down)
        server.add_peer(1, HOST, worker.port, down, up)
        raw = job.raw(server, cipher, 2)
        server.start()
        worker.start()
        link = UdpServer(server, 2, DIM, chosen.rate_bps or RATE_BPS, chosen)
        assert link.take(0.0) is None
        return link, UdpWorker(worker, 0, DIM, chosen), raw

    return make


def data(raw, round, seq, value=np.nan):
    floats = min(352, DIM - 352 * seq)
    raw.send(Kind.DATA, round, seq, C, np.full(floats, value, np.float32).tobytes())


def gradient(raw, round, value):
    raw.send(Kind.READY, round)
    for seq in range(C):
        data(raw, round, seq, value)
    for num_ends in range(1, 4):
        raw.send(Kind.END, round, num_ends, C)


def test_what_is_lost_is_named_and_the_reply_is_reliable(linked, background):
    server, [worker] = linked(n=1, drop=0.2)
    rounds = 30

    def work():
        for ticket in range(rounds):
            worker.send(ticket, ENTIRE + ticket)
            model = worker.receive(ticket)
            assert model.round == ticket
            np.testing.assert_array_equal(model.params_d, PARAMS + ticket)

    work = background(work)
    lost = 0
    for ticket in range(rounds):
        arrival = take(server)
        assert arrival.ticket == ticket
        assert arrival.floats_per_datagram == 352
        arrived_d = np.ones(DIM, bool)
        if arrival.arrived_c is not None:
            assert not arrival.arrived_c.all()
            arrived_d = np.repeat(arrival.arrived_c, 352)[:DIM]
            lost += np.count_nonzero(~arrival.arrived_c)
        np.testing.assert_array_equal(arrival.grad_d[arrived_d], (ENTIRE + ticket)[arrived_d])
        server.reply(0, PARAMS + ticket)
    work.result()
    assert 0.05 < lost / (rounds * C) < 0.5


def test_with_max_loss_0_nothing_is_lost(linked, background):
    server, [worker] = linked(n=1, drop=0.2, max_loss=0.0, timeout_s=10.0)

    def work():
        for ticket in range(10):
            assert worker.send(ticket, ENTIRE + ticket) is True
            worker.receive(ticket)

    work = background(work)
    for ticket in range(10):
        arrival = take(server)
        assert arrival.arrived_c is None
        np.testing.assert_array_equal(arrival.grad_d, ENTIRE + ticket)
        server.reply(0, PARAMS)
    work.result()


def test_half_a_gradient_holds_up_its_own_row_until_its_own_deadline(attacked, background):
    link, worker, raw = attacked()
    raw.send(Kind.READY, 1)
    raw.get(Kind.GRANT)
    for seq in range(5):
        data(raw, 1, seq, 7.0)
    raw.send(Kind.READY, 1, 1)  # more will come
    begun = time.monotonic()

    def work():
        for ticket in range(5):
            worker.send(ticket, ENTIRE)
            worker.receive(ticket)

    work = background(work)
    order = []
    while len(order) < 6:
        arrival = take(link)
        order.append(arrival.row)
        if arrival.row == 1:
            assert time.monotonic() - begun > 0.25
            assert arrival.arrived_c.tolist() == [True] * 5 + [False] * 6
            assert (arrival.grad_d[: 5 * 352] == 7).all()
        link.reply(arrival.row, PARAMS)
    work.result()
    assert order == [0] * 5 + [1]
    header, _ = raw.get(Kind.DONE)  # it is told that nothing more of it is wanted
    assert header.round == 1


def test_a_worker_that_computes_for_long_has_its_whole_time_when_it_sends(linked, background):
    server, [worker] = linked(n=1, timeout_s=0.2)
    assert server.take(0.5) is None
    sent = background(worker.send, 0, ENTIRE)
    check_d = take(server).grad_d
    np.testing.assert_array_equal(check_d, ENTIRE)
    assert sent.result() is True


def test_a_row_has_one_buffer(attacked):
    """Nothing is written between a gradient and its answer, and rounds that are far away never."""
    link, _, raw = attacked()
    gradient(raw, 1, 7.0)
    arrival = take(link)
    assert (arrival.row, arrival.ticket) == (1, 0)
    for round in (1, 2, 5, 2**64 - 1):  # again, the next, and those to come
        gradient(raw, round, np.nan)
    assert link.take(0.1) is None
    assert (arrival.grad_d == 7).all()
    assert link.dropped() == [{}, {"late": C, "early": 3 * (C + 3)}]
    assert link.waiting_for() == [0]
    link.reply(1, PARAMS)
    gradient(raw, 1, np.nan)
    gradient(raw, 3, np.nan)
    assert link.take(0.1) is None
    gradient(raw, 2, 8.0)
    arrival = take(link)
    assert (arrival.row, arrival.ticket) == (1, 1)
    assert (arrival.grad_d == 8).all()
    assert link.dropped()[0] == {}


def test_what_is_sent_again_is_no_second_gradient(attacked):
    link, _, raw = attacked("aes256gcm")
    sent = [raw.make(Kind.READY, 1)]
    for seq in range(C):
        floats = min(352, DIM - 352 * seq)
        sent.append(raw.make(Kind.DATA, 1, seq, C, bytes(4 * floats)))
    sent.append(raw.make(Kind.END, 1, 1, C))
    for ticket in range(2):
        for each in sent:
            raw.socket.sendto(each, raw.to)
        if ticket == 0:
            assert take(link).row == 1
            link.reply(1, PARAMS)
    assert link.take(0.2) is None
    dropped = link.dropped()[1]
    assert dropped["late"] == C
    assert dropped["replayed"] == 2  # READY and END


def test_who_floods_gets_its_turns_and_no_more(attacked, background):
    """It never waits for its answer, and is ready all the time: an honest worker comes as often."""
    link, worker, raw = attacked()
    rounds, stop = 40, threading.Event()

    def flood():
        round = 1
        while not stop.is_set():
            for each in (round, round + 1, 2**63):
                gradient(raw, each, np.nan)
            round = max(round, flood_round[0])
            time.sleep(0.0002)

    def work():
        for ticket in range(rounds):
            worker.send(ticket, ENTIRE + ticket)
            model = worker.receive(ticket)
            np.testing.assert_array_equal(model.params_d, PARAMS + ticket)

    flood_round = [1]
    flooding, work = background(flood), background(work)
    counts, last = [0, 0], 0
    try:
        while counts[0] < rounds:
            honest_is_there = 0 not in link.waiting_for()
            row, ticket, grad_d, arrived_c, _ = take(link)
            assert row == 0 or last == 0 or not honest_is_there
            last = row
            if row == 0:
                assert arrived_c is None
                np.testing.assert_array_equal(grad_d, ENTIRE + ticket)
            else:
                flood_round[0] = ticket + 2
            counts[row] += 1
            link.reply(row, PARAMS + ticket)
        work.result()
    finally:
        stop.set()
        flooding.result()
    assert counts[1] > 3
    dropped = link.dropped()
    assert dropped[0].get("early", 0) == dropped[0].get("malformed", 0) == 0
    assert dropped[1]["early"] > 100


def test_a_worker_that_stops_is_sent_nothing_until_it_is_heard_again(attacked, background):
    """And then it gets the newest model."""
    link, worker, raw = attacked(silence_s=0.05)
    gradient(raw, 1, 1.0)
    assert take(link).row == 1
    link.reply(1, PARAMS)
    raw.get(Kind.DATA)
    time.sleep(0.3)
    while not raw.is_told_nothing(Kind.END, Kind.DATA, within_s=0.0):
        pass  # what was sent before it was silent
    assert raw.is_told_nothing(Kind.END, Kind.DATA, within_s=0.3)
    work = background(lambda: [worker.send(0, ENTIRE), worker.receive(0).round])
    assert take(link).row == 0
    link.reply(0, PARAMS)
    assert work.result() == [True, 0]
    raw.send(Kind.READY, 1)  # it waits for a model
    header, _ = raw.get(Kind.END)
    assert header.round == 1
    raw.send(Kind.NACK, 1, 0, C, bytes([0b10, 0]))  # all but one
    header, payload = raw.get(Kind.DATA)
    assert (header.round, header.seq) == (1, 1)
    np.testing.assert_array_equal(np.frombuffer(payload, np.float32), PARAMS[352:704])
    raw.send(Kind.DONE, 1)
    time.sleep(0.05)
    while not raw.is_told_nothing(Kind.END, Kind.DATA, within_s=0.0):
        pass
    assert raw.is_told_nothing(Kind.END, Kind.DATA, within_s=0.2)


def test_who_never_has_enough_gets_its_share_of_the_rate(attacked):
    """It asks for all again after each END, though nobody else is sent anything."""
    rate_bps = 20e6
    link, _, raw = attacked(rate_bps=rate_bps)
    gradient(raw, 1, 1.0)
    assert take(link).row == 1
    link.reply(1, PARAMS)
    came, until = 0, time.monotonic() + 1.0
    while time.monotonic() < until:
        raw.socket.settimeout(0.5)
        datagram = raw.socket.recv(65536)
        came += 8 * len(datagram)
        if unpack(datagram).kind == Kind.END:
            raw.send(Kind.NACK, 1, 0, C, bytes([255, 7]))
    assert came < 0.6 * rate_bps  # half, and the first time
    assert came > 0.1 * rate_bps


def test_garbage_costs_nobody_and_is_counted(attacked, background):
    link, worker, raw = attacked("aes256gcm")
    rng, rounds = np.random.default_rng(0), 10
    right = raw.make(Kind.DATA, 1, 0, C, bytes(1408))

    def work():
        for ticket in range(rounds):
            worker.send(ticket, ENTIRE + ticket)
            worker.receive(ticket)

    work = background(work)
    for ticket in range(rounds):
        for _ in range(30):
            wrong = bytearray(right)
            wrong[rng.integers(len(wrong))] ^= 1 << rng.integers(8)
            raw.socket.sendto(wrong, raw.to)  # forged, or no peer's
            raw.send(int(rng.integers(256)), int(rng.integers(4)), payload=rng.bytes(100))
        arrival = take(link)
        assert (arrival.row, arrival.ticket) == (0, ticket)
        np.testing.assert_array_equal(arrival.grad_d, ENTIRE + ticket)
        link.reply(0, PARAMS)
    work.result()
    dropped = link.dropped()
    assert dropped[1]["forged"] > 100
    assert dropped[1]["malformed"] > 100
    assert dropped[0] == {}


def test_who_waits_for_an_answer_hears_of_the_end(linked, background):
    server, workers = linked(n=2)
    assert server.take(0.0) is None
    workers[0].send(0, ENTIRE)
    assert take(server).row == 0

    def wait(worker):
        with pytest.raises(LinkError, match="it has closed the link"):
            worker.receive(0)

    waits = [background(wait, worker) for worker in workers]
    time.sleep(0.1)
    server.close()
    for each in waits:
        each.result()


def test_a_link_that_takes_has_no_other_rounds(linked):
    server, workers = linked(n=1)
    assert server.take(0.0) is None
    endpoint = server._endpoint
    with pytest.raises(ValueError, match="takes worker by worker"):
        endpoint.broadcast(1, ENTIRE, (True,), 1000, 1.0, 1.0)
    workers[0].send(0, vector(0, 0, server))
    check_arrival(take(server), 0, 0, server)


def test_what_is_wrong_is_an_error_of_the_endpoint(job, policy):
    server, [worker] = job.connected(1, DIM)
    stack_nd, one = np.zeros((1, DIM), np.float32), policy(quorum=1, live_n=(True,))
    with pytest.raises(ValueError, match="no round was awaited"):
        server.reply(0, 1, ENTIRE, 1000, 1.0)
    for wrong, said in [
        ((1, 1, stack_nd, one), r"row must be in 0\.\.0, got 1"),
        ((-1, 1, stack_nd, one), r"row must be in 0\.\.0, got -1"),
        ((0, 0, stack_nd, one), "round must be in 1"),
        ((0, 1, stack_nd[:, 1:], one), "stack_nd must be"),
        ((0, 1, stack_nd, policy(quorum=1)), "live_n must have 1 values, got 2"),
        (
            (0, 1, stack_nd, policy(quorum=1, live_n=(True,), rate_kbps=(1, 2))),
            "must be one number",
        ),
    ]:
        with pytest.raises(ValueError, match=said):
            server.await_row(*wrong)
    server.await_row(0, 5, stack_nd, one)
    sent = threading.Thread(target=worker.send, args=(5, ENTIRE, 1.0, 5.0))
    sent.start()
    [(row, closed)] = server.take_closed(5.0)
    sent.join()
    assert (row, closed.reason) == (0, "complete")
    assert server.take_closed(0.0) == []
    with pytest.raises(ValueError, match="rounds must increase; 5 has been opened, got 5"):
        server.await_row(0, 5, stack_nd, one)
    for wrong, said in [
        ((1, 5, ENTIRE, 1000, 1.0), r"row must be in 0\.\.0, got 1"),
        ((0, 5, ENTIRE[1:], 1000, 1.0), "params_d must be"),
        ((0, 5, ENTIRE, 0, 1.0), "rate_kbps must be"),
        ((0, 5, ENTIRE, 1000, -1.0), "silence_s must be"),
    ]:
        with pytest.raises(ValueError, match=said):
            server.reply(*wrong)
    with pytest.raises(ValueError, match="timeout_s must be"):
        server.take_closed(-1.0)
    with pytest.raises(ValueError, match="takes worker by worker"):
        server.collect(6, stack_nd, one)
    with pytest.raises(ValueError, match="is for the server; this is rank 1"):
        worker.await_row(0, 1, stack_nd, one)
    server.close()
    with pytest.raises(ValueError, match="closed"):
        server.await_row(0, 6, stack_nd, one)
