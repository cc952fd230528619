"""What a receiver does with what it should not have got: counts it, and nothing else."""

import socket
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossympi.endpoint import REASONS
from lossympi.plane.packet import Header, Kind, encode_floats, pack

DIM = 352 * 2 + 3
C = 3
SIZES = (352, 352, 3)
ROUND = 5
HOST = "127.0.0.1"


def floats(seq, value=1.0):
    return np.full(SIZES[seq], value, np.float32).tobytes()


def flipped(data, at):
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


# name: what is counted, for whom, and what a worker or its server sends to have it counted
HOSTILE = {
    "empty": ("truncated", -1, lambda raw: b""),
    "header cut": ("truncated", -1, lambda raw: raw.make(Kind.READY, ROUND)[: 31 + raw.tag_bytes]),
    "too long": ("oversized", -1, lambda raw: raw.make(Kind.PROBE, 0, payload=bytes(1441))),
    "version": ("version", -1, lambda raw: b"\2" + raw.make(Kind.READY, ROUND)[1:]),
    "session": ("foreign", -1, lambda raw: raw.make(Kind.READY, ROUND, session=1)),
    "other's rank": ("foreign", -1, lambda raw: raw.make(Kind.READY, ROUND, rank=2)),
    "no rank": ("foreign", -1, lambda raw: raw.make(Kind.READY, ROUND, rank=9)),
    "kind": ("malformed", 1, lambda raw: raw.make(77, ROUND)),
    "server's kind": ("malformed", 1, lambda raw: raw.make(Kind.GRANT, ROUND, 9)),
    "index": ("malformed", 1, lambda raw: raw.make(Kind.DATA, ROUND, C, C, floats(2, 9))),
    "total": ("malformed", 1, lambda raw: raw.make(Kind.DATA, ROUND, 0, C + 1, floats(0, 9))),
    "short": ("malformed", 1, lambda raw: raw.make(Kind.DATA, ROUND, 1, C, floats(1, 9)[:-1])),
    "long": ("malformed", 1, lambda raw: raw.make(Kind.DATA, ROUND, 2, C, floats(1, 9))),
    "round 0": ("malformed", 1, lambda raw: raw.make(Kind.DATA, 0, 1, C, floats(1, 9))),
    "END's total": ("malformed", 1, lambda raw: raw.make(Kind.END, ROUND, 1, C - 1)),
    "NACK beyond": ("malformed", 1, lambda raw: raw.make(Kind.NACK, ROUND, 0, C, b"\x08")),
    "replayed": ("replayed", 1, lambda raw: raw.make(Kind.READY, 99, counter=1)),
    "END replayed": ("replayed", 1, lambda raw: raw.make(Kind.END, ROUND, 1, C, counter=1)),
    "BYE replayed": ("replayed", 1, lambda raw: raw.make(Kind.BYE, 0, counter=1)),
    "early": ("early", 1, lambda raw: raw.make(Kind.DATA, ROUND + 1, 1, C, floats(1, 9))),
    "END early": ("early", 1, lambda raw: raw.make(Kind.END, ROUND + 1, 1, C)),
    "late": ("late", 1, lambda raw: raw.make(Kind.DATA, ROUND - 1, 1, C, floats(1, 9))),
    "duplicate": ("duplicate", 1, lambda raw: raw.make(Kind.DATA, ROUND, 0, C, floats(0, 9))),
}
FORGED = {
    "tag": lambda raw: flipped(raw.make(Kind.DATA, ROUND, 1, C, floats(1, 9)), -1),
    "float": lambda raw: flipped(raw.make(Kind.DATA, ROUND, 1, C, floats(1, 9)), 40),
    "counter": lambda raw: flipped(raw.make(Kind.END, ROUND, 1, C), 24),
    "kind": lambda raw: flipped(raw.make(Kind.READY, ROUND), 1),
    "no tag": lambda raw: raw.make(Kind.READY, ROUND)[:-16] + bytes(16),
}


@pytest.mark.parametrize("cipher", ["none", "aes256gcm", "chacha20poly1305"])
def test_each_is_counted_under_its_reason_and_changes_nothing(
    job, background, policy, until, cipher
):
    server = job.endpoint(0, 2, DIM, cipher=cipher)
    raws = [job.raw(server, cipher, rank) for rank in (1, 2)]
    server.start()
    around_nd = np.full((4, DIM), -7, np.float32)  # the rows before and after must stay too
    stack_nd = around_nd[1:3]
    call = background(server.collect, ROUND, stack_nd, policy(max_loss=0.0))
    assert raws[0].get(Kind.GRANT)[0].round == ROUND

    def count(rank, reason):
        return server.counters()[rank][reason]

    raws[0].send(Kind.DATA, ROUND, 0, C, floats(0))
    raws[0].send(Kind.READY, ROUND)
    raws[0].get(Kind.GRANT)
    until(lambda: count(1, "accepted") == 2)
    before_nd, wanted = around_nd.copy(), server.counters()
    hostile = dict(HOSTILE)
    if cipher != "none":
        for name, make in FORGED.items():
            hostile[f"forged {name}"] = ("forged", 1, make)
    for name, (reason, rank, make) in hostile.items():
        raws[0].socket.sendto(make(raws[0]), raws[0].to)
        wanted[rank][reason] += 1
        until(lambda rank=rank, reason=reason: count(rank, reason) == wanted[rank][reason])
        assert server.counters() == wanted, name
        np.testing.assert_array_equal(around_nd, before_nd, err_msg=name)
    # What is right comes from the wrong place: another socket, or another worker's.
    good = raws[0].make(Kind.DATA, ROUND, 1, C, floats(1, 9))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(good, raws[0].to)
    raws[1].socket.sendto(good, raws[0].to)
    wanted[-1]["foreign"] += 2
    until(lambda: server.counters() == wanted)
    np.testing.assert_array_equal(around_nd, before_nd)
    # None of it has harmed the round, and each worker writes to its own row only.
    for raw in raws:
        for seq in range(C):
            raw.send(Kind.DATA, ROUND, seq, C, floats(seq, raw.rank))
    closed = call.result()
    assert closed.reason == "complete"
    wanted_nd = np.repeat(np.float32([[-7], [1], [2], [-7]]), DIM, axis=1)
    np.testing.assert_array_equal(around_nd, wanted_nd)


def test_a_worker_takes_models_from_its_server_only(job, until):
    worker = job.endpoint(1, 2, DIM)
    server, stranger = job.raw(worker, "none", 0), job.endpoint(0, 2, DIM)
    other = job.raw(stranger, "none", 1)
    worker.start()
    for seq in range(C):
        other.socket.sendto(server.make(Kind.DATA, ROUND, seq, C, floats(seq)), server.to)
    until(lambda: worker.counters()[-1]["foreign"] == C)
    server.send(Kind.READY, ROUND)
    server.send(Kind.GRANT, ROUND, 0)
    until(lambda: worker.counters()[0]["malformed"] == 2)
    assert worker.receive(1, 0.0) is None


def test_a_malformed_later_model_does_not_drop_the_one_that_comes(job, until):
    worker = job.endpoint(1, 1, DIM)
    server = job.raw(worker, "none", 0)
    worker.start()
    for seq in (0, 1):
        server.send(Kind.DATA, ROUND, seq, C, floats(seq))
    server.send(Kind.DATA, ROUND + 1, 1, C, floats(2))
    server.send(Kind.END, ROUND + 1, 1, C + 1)
    server.send(Kind.DATA, ROUND - 1, 1, C, floats(1))
    server.send(Kind.DATA, ROUND, 2, C, floats(2))
    until(lambda: worker.counters()[0]["accepted"] == 3)
    assert worker.counters()[0]["malformed"] == 2
    assert worker.counters()[0]["late"] == 1
    round, model_d = worker.receive(ROUND, 0.0)
    assert round == ROUND
    np.testing.assert_array_equal(model_d, np.ones(DIM, np.float32))


def test_a_later_model_drops_the_one_that_comes(job, until):
    worker = job.endpoint(1, 1, DIM)
    server = job.raw(worker, "none", 0)
    worker.start()
    server.send(Kind.DATA, ROUND, 0, C, floats(0, 9))
    server.send(Kind.END, ROUND + 1, 1, C)  # all its DATA was overtaken, or lost
    header, bitmap = server.get(Kind.NACK)
    assert (header.round, header.seq, header.total, bitmap) == (ROUND + 1, 0, C, b"\x07")
    server.send(Kind.DATA, ROUND, 1, C, floats(1, 9))
    until(lambda: worker.counters()[0]["late"] == 1)
    server.send(Kind.END, ROUND, 1, C)
    assert server.get(Kind.DONE)[0].round == ROUND  # nothing of it is wanted any more
    for seq in range(C):
        server.send(Kind.DATA, ROUND + 1, seq, C, floats(seq))
    server.send(Kind.END, ROUND + 1, 2, C)
    assert server.get(Kind.DONE)[0].round == ROUND + 1
    np.testing.assert_array_equal(worker.receive(1, 0.0)[1], np.ones(DIM, np.float32))


def test_what_the_server_answers(job, background, policy, until):
    server = job.endpoint(0, 1, DIM)
    raw = job.raw(server, "none", 1)
    server.start()
    raw.send(Kind.READY, ROUND)
    assert raw.is_told_nothing(Kind.GRANT, Kind.DONE)  # the round is yet to come
    stack_nd = np.zeros((1, DIM), np.float32)
    call = background(
        server.collect,
        ROUND,
        stack_nd,
        policy(live_n=(True,), quorum=1, max_loss=0.4, rate_kbps=77),
    )
    for _ in range(2):  # when it opens, and when asked
        header, payload = raw.get(Kind.GRANT)
        assert (header.round, header.seq, header.total, payload) == (ROUND, 77, 0, b"")
        raw.send(Kind.READY, ROUND)
    raw.send(Kind.PROBE, 0, 3, payload=bytes(100))
    header, payload = raw.get(Kind.ECHO)
    assert (header.seq, len(payload)) == (3, 100)
    raw.send(Kind.READY, ROUND - 1)
    assert raw.get(Kind.DONE)[0].round == ROUND - 1
    raw.send(Kind.DATA, ROUND, 0, C, floats(0))
    raw.send(Kind.END, ROUND, 1, C)
    header, bitmap = raw.get(Kind.NACK)
    assert (header.round, header.seq, header.total, bitmap) == (ROUND, 0, C, b"\x06")
    raw.send(Kind.DATA, ROUND, 2, C, floats(2))
    raw.send(Kind.END, ROUND, 2, C)
    assert raw.get(Kind.DONE)[0].round == ROUND  # a third missing is few enough
    closed = call.result()
    assert closed.reason == "early"
    np.testing.assert_array_equal(closed.arrived_nc, [[True, False, True]])
    assert raw.get(Kind.DONE)[0].round == ROUND  # it had not delivered all
    raw.send(Kind.END, ROUND, 3, C)
    assert raw.get(Kind.DONE)[0].round == ROUND  # late, and answered all the same
    raw.send(Kind.READY, ROUND)
    assert raw.get(Kind.DONE)[0].round == ROUND
    assert server.counters()[1]["late"] == 0  # an END never is


def test_a_nack_is_sent_every_quarter_of_a_millisecond(python_job):
    job = python_job
    worker = job.endpoint(1, 1, DIM)  # not started: the test tells it the time
    server = job.raw(worker, "none", 0)
    source = server.socket.getsockname()
    for number, now_s in enumerate((7.0, 7.0001, 7.0002, 7.0003, 7.0005, 7.0006)):
        with worker._changed:
            worker._take(server.make(Kind.END, ROUND, number, C), source, now_s)
    assert worker.counters()[0]["accepted"] == 6
    for _ in range(3):  # at 7, 7.0003 and 7.0006
        assert server.get(Kind.NACK)[1] == b"\x07"
    assert server.is_told_nothing(Kind.NACK)


def test_a_worker_asks_for_its_grant_and_stops_when_it_has_it(job, background):
    worker = job.endpoint(1, 1, DIM)
    server = job.raw(worker, "none", 0)
    worker.start()
    call = background(worker.send, ROUND, np.ones(DIM, np.float32), 1.0, 2.0)
    for _ in range(3):
        assert server.get(Kind.READY)[0].round == ROUND
    server.send(Kind.GRANT, ROUND - 1, 100)
    server.get(Kind.READY)  # that was not the one
    server.send(Kind.GRANT, ROUND, 1_000_000)
    for seq in range(C):
        header, payload = server.get(Kind.DATA)
        assert (header.round, header.seq, header.total) == (ROUND, seq, C)
        assert payload == floats(seq)
    for number in (1, 2, 3):
        header, _ = server.get(Kind.END)
        assert (header.round, header.seq, header.total) == (ROUND, number, C)
    assert call.result()
    assert server.is_told_nothing(Kind.END, Kind.DATA, Kind.READY)


def test_a_worker_repairs_what_is_asked_for(job, background):
    worker = job.endpoint(1, 1, DIM)
    server = job.raw(worker, "none", 0)
    worker.start()
    call = background(worker.send, ROUND, np.ones(DIM, np.float32), 0.0, 2.0)
    server.send(Kind.GRANT, ROUND, 1_000_000)
    server.get(Kind.END)
    server.send(Kind.NACK, ROUND - 1, 0, C, b"\x07")  # of another round
    server.send(Kind.NACK, ROUND, 0, C, b"\x05")
    assert [server.get(Kind.DATA)[0].seq for _ in range(2)] == [0, 2]
    server.get(Kind.END)
    server.get(Kind.END)  # again and again
    server.send(Kind.DONE, ROUND)
    assert call.result()


def test_a_grant_of_a_later_round_tells_that_this_one_is_closed(job, background):
    worker = job.endpoint(1, 1, DIM)
    server = job.raw(worker, "none", 0)
    worker.start()
    call = background(worker.send, ROUND, np.ones(DIM, np.float32), 1.0, 2.0)
    server.get(Kind.READY)
    server.send(Kind.GRANT, ROUND + 1, 1000)
    assert call.result() is False
    assert server.is_told_nothing(Kind.DATA)


def test_a_repeated_nack_cannot_keep_the_server_beyond_its_time(job, background):
    server = job.endpoint(0, 1, DIM)
    raw = job.raw(server, "none", 1)
    server.start()
    params_d = np.ones(DIM, np.float32)
    call = background(server.broadcast, ROUND, params_d, (True,), 1_000_000, 0.1, 9.0)
    for _ in range(10):
        raw.get(Kind.END)
        raw.send(Kind.NACK, ROUND, 0, C, b"\x07")
    assert not call.result(1.0).any()


@pytest.mark.parametrize("rank", [0, 1])
def test_nothing_that_comes_stops_the_receiver(python_job, rank):
    """Feeds the receiver directly: it must neither raise nor write outside its buffers."""
    endpoint = python_job.endpoint(rank, 1, DIM, wire="float16")
    raw = python_job.raw(endpoint, "none", 1 - rank)
    source = raw.socket.getsockname()
    numbers = st.sampled_from([0, 1, 2, 3, 5, 8, 2**31, 2**32 - 1])
    payloads = st.one_of(st.binary(max_size=12), st.just(encode_floats(np.ones(352), "float16")))

    @given(st.integers(0, 11), numbers, numbers, numbers, payloads, st.integers(1, 2**64 - 1))
    def feed(kind, round, seq, total, payload, counter):
        header = Header(kind, raw.rank, 0x12345678, round, seq, total, counter)
        before = sum(map(sum, (c.values() for c in endpoint.counters().values())))
        with endpoint._changed:
            endpoint._take(pack(header) + payload, source, 1.0)
        counts = endpoint.counters()
        assert sum(map(sum, (c.values() for c in counts.values()))) == before + 1
        assert set(counts[raw.rank]) == {"accepted", *REASONS, "unsent"}

    feed()


def test_data_may_overtake_what_was_sent_before_it(job):
    worker = job.endpoint(1, 1, DIM)
    server = job.raw(worker, "none", 0)
    worker.start()
    server.send(Kind.DATA, ROUND, 0, C, floats(0), counter=50)
    server.send(Kind.END, ROUND, 1, C, counter=40)
    assert server.get(Kind.NACK)[1] == b"\x06"


def test_who_says_nothing_is_left_behind_and_not_heard(job, policy, until):
    server = job.endpoint(0, 1, DIM)
    raw = job.raw(server, "none", 1)
    server.start()
    raw.send(Kind.READY, ROUND)
    until(lambda: server.counters()[1]["accepted"] == 1)
    stack_nd = np.zeros((1, DIM), np.float32)
    closed = server.collect(ROUND, stack_nd, policy(live_n=(True,), deadline_s=0.01))
    assert closed.heard_n.all()  # READY before the round
    closed = server.collect(ROUND + 1, stack_nd, policy(live_n=(True,), deadline_s=0.01))
    assert not closed.heard_n.any()
    params_d, started = np.ones(DIM, np.float32), time.monotonic()
    assert not server.broadcast(ROUND, params_d, (True,), 1_000_000, 9.0, 0.05).any()
    assert time.monotonic() - started < 5.0
