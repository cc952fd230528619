import contextlib
import math
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from lossympi.backend import choose_plane
from lossympi.endpoint import REASONS, Setup
from lossympi.plane.packet import Kind, decode_floats, encode_floats

DIM = 352 * 40 + 5
C = 41
RATE_KBPS = 1_000_000
NOTHING_WRONG = dict.fromkeys(("accepted", *REASONS, "unsent", "dropped", "overflow"), 0)


def train(job, background, policy, dim=DIM, rounds=(1, 2), max_loss=1.0, **setup):
    """Runs a server and two workers; returns what each round gave to the server and the workers."""
    server, workers = job.connected(2, dim, **setup)
    grads_rnd = np.random.default_rng(0).standard_normal((len(rounds), 2, dim)).astype(np.float32)

    def work(worker, grads_rd):
        got = []
        for round, grad_d in zip(rounds, grads_rd, strict=True):
            sent = worker.send(round, grad_d, max_loss, timeout_s=5.0)
            got.append((sent, *worker.receive(round, timeout_s=5.0)))
            got[-1] = (*got[-1][:2], got[-1][2].copy())
        return got

    calls = [background(work, worker, grads_rnd[:, row]) for row, worker in enumerate(workers)]
    results = []
    for at, round in enumerate(rounds):
        stack_nd = np.full((2, dim), np.nan, np.float32)
        closed = server.collect(round, stack_nd, policy(max_loss=max_loss))
        model_d = grads_rnd[at, 0] + 1
        done_n = server.broadcast(round, model_d, (True, True), RATE_KBPS, 5.0, 0.5)
        results.append((closed, stack_nd, grads_rnd[at], model_d, done_n))
    return results, [call.result() for call in calls], server, workers


@pytest.mark.parametrize("cipher", ["none", "aes256gcm", "chacha20poly1305"])
@pytest.mark.parametrize("dim", [1, DIM])
def test_gradients_and_models_arrive(job, background, policy, cipher, dim):
    rounds = (1, 2, 7)
    results, got, server, workers = train(
        job, background, policy, dim=dim, rounds=rounds, cipher=cipher
    )
    for at, (closed, stack_nd, grads_nd, model_d, done_n) in enumerate(results):
        assert closed.reason == "complete"
        assert closed.arrived_nc.all()
        assert closed.heard_n.all()
        assert 0 < closed.settled_s_n.max() <= closed.elapsed_s < 5
        assert done_n.all()
        np.testing.assert_array_equal(stack_nd, grads_nd)
        for worker_got in got:
            sent, round, received_d = worker_got[at]
            assert sent
            assert round == rounds[at]
            np.testing.assert_array_equal(received_d, model_d)
    for endpoint in (server, *workers):
        for counts in endpoint.counters().values():
            # END is late where a row is complete before it, or where the other worker was faster.
            assert {**counts, "accepted": 0, "late": 0}.items() <= NOTHING_WRONG.items()


@pytest.mark.parametrize("wire", ["float16", "bfloat16"])
def test_narrow_types_round_what_they_carry(job, background, policy, wire):
    results, got, _, _ = train(job, background, policy, wire=wire)
    for at, (_, stack_nd, grads_nd, model_d, _) in enumerate(results):
        rounded_nd = decode_floats(encode_floats(grads_nd.ravel(), wire), wire).reshape(2, DIM)
        np.testing.assert_array_equal(stack_nd, rounded_nd)
        for worker_got in got:
            wanted_d = decode_floats(encode_floats(model_d, wire), wire)
            np.testing.assert_array_equal(worker_got[at][2], wanted_d)


def test_losses_stay_lost_in_gradients_only(job, background, policy):
    dim = 352 * 600
    results, got, server, _ = train(job, background, policy, dim=dim, drop=0.1, cipher="aes256gcm")
    for at, (closed, stack_nd, grads_nd, model_d, done_n) in enumerate(results):
        assert closed.reason == "early"
        assert closed.arrived_nc.mean() == pytest.approx(0.9, abs=0.03)
        arrived_nd = np.repeat(closed.arrived_nc, 352, axis=1)
        np.testing.assert_array_equal(stack_nd[arrived_nd], grads_nd[arrived_nd])
        assert np.isnan(stack_nd[~arrived_nd]).all()
        assert done_n.all()
        for worker_got in got:
            np.testing.assert_array_equal(worker_got[at][2], model_d)
    assert server.counters()[-1]["dropped"] > 0


@pytest.mark.parametrize(("dim", "drop"), [(352 * 100, 0.2), (1, 0.5)])
def test_what_must_not_be_lost_is_repaired(job, background, policy, dim, drop):
    results, got, _, _ = train(
        job, background, policy, dim=dim, drop=drop, drop_seed=1, max_loss=0.0
    )
    for closed, stack_nd, grads_nd, _, _ in results:
        assert closed.reason == "complete"
        np.testing.assert_array_equal(stack_nd, grads_nd)
    assert all(sent for worker_got in got for sent, _, _ in worker_got)


def test_repair_stops_where_it_may(job, background, policy):
    results, *_ = train(
        job, background, policy, dim=352 * 200, drop=0.3, rounds=(1,), max_loss=0.15
    )
    [(closed, *_)] = results
    assert closed.reason in ("early", "complete")
    assert (np.count_nonzero(~closed.arrived_nc, axis=1) <= 30).all()  # of 200


def test_a_silent_worker_costs_the_deadline_and_is_left_behind(job, background, policy):
    server, workers = job.connected(2, DIM)
    grad_d = np.ones(DIM, np.float32)
    call = background(workers[0].send, 1, grad_d, 1.0, 5.0)
    stack_nd = np.zeros((2, DIM), np.float32)
    closed = server.collect(1, stack_nd, policy(deadline_s=0.1))
    assert call.result()
    assert closed.reason == "deadline"
    assert 0.1 <= closed.elapsed_s < 2.0
    np.testing.assert_array_equal(closed.heard_n, [True, False])
    np.testing.assert_array_equal(stack_nd, [[1] * DIM, [0] * DIM])
    assert np.isnan(closed.settled_s_n[1])
    workers[1].close()
    call = background(workers[0].receive, 1, 5.0)
    done_n = server.broadcast(1, grad_d, (True, True), RATE_KBPS, 5.0, 0.1)
    np.testing.assert_array_equal(done_n, [True, False])
    assert call.result()[0] == 1


def test_one_that_is_too_late_is_told(job, policy, until):
    server, workers = job.connected(1, DIM)
    stack_nd = np.zeros((1, DIM), np.float32)
    server.collect(1, stack_nd, policy(live_n=(True,), deadline_s=0.01))
    until(lambda: workers[0].counters()[0]["accepted"] == 2)  # GRANT and DONE
    assert not workers[0].send(1, np.ones(DIM, np.float32), 1.0, timeout_s=2.0)
    assert not stack_nd.any()


@pytest.mark.parametrize("max_loss", [1.0, 0.0])
def test_a_round_that_closes_stops_the_sender(job, background, policy, max_loss):
    dim = 352 * 1000
    server, workers = job.connected(1, dim)
    call = background(workers[0].send, 1, np.ones(dim, np.float32), max_loss, 5.0)
    started = time.monotonic()
    # 1.1 s for the whole.
    slow = policy(live_n=(True,), deadline_s=0.1, rate_kbps=10_000, max_loss=max_loss)
    closed = server.collect(1, np.zeros((1, dim), np.float32), slow)
    assert call.result() is False
    assert time.monotonic() - started < 0.9
    # 1250 bytes in a millisecond are 0.87 of a datagram; a busy machine oversleeps, and sends less.
    assert 10 < closed.arrived_nc.sum() <= 2 + 870 * closed.elapsed_s


def test_a_rate_is_kept(job, background, policy):
    server, workers = job.connected(1, 352 * 50)
    call = background(workers[0].send, 1, np.ones(352 * 50, np.float32), 1.0, 5.0)
    slow = policy(live_n=(True,), rate_kbps=5_760)  # 1440 bytes in 2 ms
    closed = server.collect(1, np.zeros((1, 352 * 50), np.float32), slow)
    assert call.result()
    assert closed.reason == "complete"
    assert 0.09 < closed.elapsed_s < 1.0


@pytest.mark.parametrize("max_loss", [1.0, 0.0])
@pytest.mark.parametrize("drop", [0.0, 0.2])
def test_a_gradient_that_leaves_in_several_calls_leaves_once(
    job, background, policy, max_loss, drop
):
    """Who waits in slices must not begin anew in each: the end of a long gradient never leaves."""
    dim = 352 * 200
    server, workers = job.connected(1, dim, drop=drop)
    grad_d = np.arange(dim, dtype=np.float32)

    def send():
        calls = 1
        while not workers[0].send(1, grad_d, max_loss, timeout_s=0.01):
            calls += 1
            assert calls < 500
        return calls

    call = background(send)
    stack_nd = np.full((1, dim), np.nan, np.float32)
    # 0.1 s for the whole.
    slow = policy(live_n=(True,), rate_kbps=24_000, max_loss=max_loss)
    closed = server.collect(1, stack_nd, slow)
    assert call.result() >= 5
    there_d = ~np.isnan(stack_nd[0])
    assert (stack_nd[0][there_d] == grad_d[there_d]).all()
    assert there_d.all() if max_loss == 0 or drop == 0 else 0.6 < there_d.mean() < 0.95
    assert closed.reason == ("complete" if there_d.all() else "early")
    if drop == 0:
        assert server.counters()[1]["duplicate"] == 0


@pytest.mark.parametrize("drop", [0.0, 0.1])
def test_columns_that_all_rows_have_are_told_while_the_round_is_open(job, background, policy, drop):
    dim = 352 * 200 + 5
    server, workers = job.connected(2, dim, drop=drop)
    grads_nd = np.random.default_rng(1).standard_normal((2, dim)).astype(np.float32)
    for round in (1, 2):
        calls = [
            background(worker.send, round, grad_d, 1.0, 5.0)
            for worker, grad_d in zip(workers, grads_nd, strict=True)
        ]
        stack_nd = np.full((2, dim), np.nan, np.float32)
        told = []

        def on_whole(seqs_k, told=told, stack_nd=stack_nd):
            told.extend(seqs_k.tolist())
            for seq in seqs_k:
                columns = slice(352 * int(seq), 352 * (int(seq) + 1))
                np.testing.assert_array_equal(stack_nd[:, columns], grads_nd[:, columns])

        # 60 ms for the whole.
        closed = server.collect(round, stack_nd, policy(rate_kbps=40_000), on_whole)
        assert all(call.result() for call in calls)
        whole = np.flatnonzero(closed.arrived_nc.all(axis=0))
        assert len(set(told)) == len(told)
        assert set(told) <= set(whole.tolist())
        assert len(told) > len(whole) / 2
        assert closed.arrived_nc.all() == (drop == 0)
        server.broadcast(round, grads_nd[0], (True, True), RATE_KBPS, 5.0, 0.5)


def test_what_is_told_may_end_the_round(job, background, policy):
    server, workers = job.connected(1, DIM)
    call = background(workers[0].send, 1, np.ones(DIM, np.float32), 1.0, 1.0)

    def on_whole(seqs_k):
        raise RuntimeError("no more")

    stack_nd = np.zeros((1, DIM), np.float32)
    slow = policy(live_n=(True,), rate_kbps=5_760)
    with pytest.raises(RuntimeError, match="no more"):
        server.collect(1, stack_nd, slow, on_whole)
    as_it_was_nd = stack_nd.copy()
    call.result()
    np.testing.assert_array_equal(stack_nd, as_it_was_nd)
    call = background(workers[0].send, 2, np.ones(DIM, np.float32), 1.0, 5.0)
    assert server.collect(2, stack_nd, policy(live_n=(True,))).reason == "complete"
    assert call.result()


def test_nothing_waits_for_longer_than_told(job):
    server, workers = job.connected(1, DIM)
    workers[0].close()
    started = time.monotonic()
    assert server.probe(0.03) == {1: 0}
    params_d = np.ones(DIM, np.float32)
    assert not server.broadcast(1, params_d, (True,), RATE_KBPS, 0.03, 9.0).any()
    assert not server.broadcast(2, params_d, (False,), RATE_KBPS, 9.0, 9.0).any()
    server.close()
    lone = job.endpoint(1, 1, DIM)
    lone.add_peer(0, "127.0.0.1", 9, b"", b"")
    lone.start()
    assert lone.receive(1, 0.03) is None
    assert not lone.send(1, params_d, 1.0, 0.03)
    lone.close()
    assert time.monotonic() - started < 0.9


def test_bye_ends_what_waits(job, background):
    server, workers = job.connected(1, DIM)
    assert not workers[0].server_left()
    call = background(workers[0].receive, 1, 9.0)
    server.close()
    assert call.result(2.0) is None
    assert workers[0].server_left()
    assert not workers[0].send(1, np.ones(DIM, np.float32), 1.0, 9.0)


def test_bye_tells_what_a_lost_done_would_have(job, background):
    worker = job.endpoint(1, 1, DIM)
    server = job.raw(worker, "none", 0)
    worker.start()
    call = background(worker.send, 1, np.ones(DIM, np.float32), 0.0, 9.0)
    server.get(Kind.READY)
    server.send(Kind.GRANT, 1, RATE_KBPS)
    server.get(Kind.END)
    assert server.is_told_nothing(Kind.DONE)
    server.send(Kind.BYE, 0)
    assert call.result(2.0) is True


CONTROL_C = """
import os, signal, sys, threading, time
import numpy as np
from lossympi.endpoint import ClosePolicy, Setup
from lossympi.backend import choose_plane

rank, verb = {rank}, {verb!r}
endpoint = choose_plane({plane!r}).Endpoint(Setup(rank, 1, "127.0.0.1", 1, 10))
endpoint.add_peer(1 - rank, "127.0.0.1", 9, b"", b"")
endpoint.start()
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
vector_d = np.zeros(10, np.float32)
policy = ClosePolicy(9.0, 0.01, 1.0, 1.0, 1, (True,), 1000)
begun = time.monotonic()
try:
    if verb == "collect":
        endpoint.collect(1, vector_d[None], policy)
    elif verb == "broadcast":
        endpoint.broadcast(1, vector_d, (True,), 1000, 9.0, 9.0)
    elif verb == "send":
        endpoint.send(1, vector_d, 1.0, 9.0)
    else:
        endpoint.receive(1, 9.0)
except KeyboardInterrupt:
    print(time.monotonic() - begun)
"""


@pytest.mark.parametrize("plane", ["native", "python"])
@pytest.mark.parametrize(
    ("rank", "verb"), [(0, "collect"), (0, "broadcast"), (1, "send"), (1, "receive")]
)
def test_control_c_ends_what_waits(plane, rank, verb):
    script = CONTROL_C.format(plane=plane, rank=rank, verb=verb)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout, done.stderr
    assert 0.1 < float(done.stdout) < 2.0


def test_a_worker_that_left_gets_no_model(job, until):
    server, workers = job.connected(1, DIM)
    workers[0].close()
    until(lambda: server.counters()[1]["accepted"] == 3)
    assert not server.broadcast(1, np.ones(DIM, np.float32), (True,), RATE_KBPS, 9.0, 9.0).any()


@pytest.mark.parametrize("cipher", ["none", "aes256gcm"])
@pytest.mark.parametrize("mtu", [576, 1500, 9000])
def test_probes_measure_the_path(job, background, cipher, mtu):
    server, workers = job.connected(2, DIM, cipher=cipher, mtu=mtu)
    assert server.probe(2.0) == {1: mtu, 2: mtu}
    assert workers[0].probe(2.0) == {0: mtu}


def test_a_held_model_stays_and_the_newest_whole_one_comes_next(job, policy):
    server, workers = job.connected(1, DIM)
    models_rd = np.arange(5 * DIM, dtype=np.float32).reshape(5, DIM)

    def broadcast(round):
        args = ((True,), RATE_KBPS, 2.0, 0.5)
        assert server.broadcast(round, models_rd[round], *args).all()

    broadcast(1)
    broadcast(2)  # takes the place of 1, which nobody took
    round, held_d = workers[0].receive(1, 0.0)
    assert round == 2
    assert not held_d.flags.writeable
    for newer in (3, 4):
        broadcast(newer)
        np.testing.assert_array_equal(held_d, models_rd[2])
    assert workers[0].receive(5, 0.0) is None
    np.testing.assert_array_equal(held_d, models_rd[2])
    round, newest_d = workers[0].receive(1, 0.0)
    assert round == 4
    np.testing.assert_array_equal(newest_d, models_rd[4])


def test_the_stack_is_not_written_after_the_close(job, policy, until):
    server = job.endpoint(0, 1, DIM)
    raw = job.raw(server, "none", 1)
    server.start()
    stack_nd = np.zeros((1, DIM), np.float32)
    closed = server.collect(1, stack_nd, policy(live_n=(True,), deadline_s=0.01))
    raw.send(Kind.DATA, 1, 0, C, np.ones(352, np.float32).tobytes())
    until(lambda: server.counters()[1]["late"] == 1)
    assert not stack_nd.any()
    assert not closed.arrived_nc.any()


def test_the_thread_and_the_socket_end_with_the_endpoint(job, until):
    server, _ = job.connected(1, DIM)
    until(lambda: num_threads() == 2)
    threads, sockets = num_threads(), num_sockets()
    server.close()
    server.close()
    until(lambda: num_threads() == threads - 1)  # /proc may be late
    assert num_sockets() == sockets - 1
    with pytest.raises(ValueError, match="closed"):
        server.probe(1.0)
    assert server.counters()[1]["accepted"] == 0


def num_threads():
    """Returns how many receive threads there are; both planes name theirs."""
    python = sum(each.name == "lossympi" for each in threading.enumerate())
    native = 0
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # it has just ended
            native += Path(f"/proc/self/task/{task}/comm").read_text() == "lossympi\n"
    return python + native


def num_sockets():
    names = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return sum(os.path.exists(n) and os.readlink(n).startswith("socket:") for n in names)


@pytest.mark.parametrize("plane", ["python", "native"])
@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"rank": 3}, "rank"),
        ({"num_workers": 0}, "num_workers"),
        ({"session": 2**32}, "session"),
        ({"dim": 0}, "dim"),
        ({"mtu": 100}, "mtu"),
        ({"wire": "int8"}, "wire"),
        ({"drop": 2.0}, "drop"),
        ({"drop": math.nan}, "drop"),
        ({"cipher": "rot13"}, "cipher"),
        ({"receive_buffer": 2**31}, "receive_buffer"),
    ],
)
def test_impossible_setups_are_refused(plane, change, found):
    setup = {"rank": 1, "num_workers": 2, "address": "127.0.0.1", "session": 1, "dim": 1}
    with pytest.raises(ValueError, match=f"{found} must be"):
        choose_plane(plane).Endpoint(Setup(**{**setup, **change}))


def test_verbs_are_for_whom_they_are_for(job, policy):
    server, workers = job.connected(1, DIM)
    vector_d = np.zeros(DIM, np.float32)
    with pytest.raises(ValueError, match="is for a worker"):
        server.receive(1, 0.0)
    with pytest.raises(ValueError, match="is for the server"):
        workers[0].broadcast(1, vector_d, (True,), 1, 0.0, 0.0)
    with pytest.raises(ValueError, match="is for a worker"):
        server.server_left()
    with pytest.raises(ValueError, match="started"):
        server.start()
    with pytest.raises(ValueError, match="Add peers before"):
        server.add_peer(1, "127.0.0.1", 1, b"", b"")
    lone = job.endpoint(0, 1, DIM)
    for rank, address, port, message in (
        (2, "127.0.0.1", 1, "no peer 2"),
        (1, "localhost", 1, "numeric IPv4"),
        (1, "127.0.0.1", 65536, "65535"),
    ):
        with pytest.raises(ValueError, match=message):
            lone.add_peer(rank, address, port, b"", b"")
    with pytest.raises(ValueError, match="1 was not added"):
        lone.start()
    lone.add_peer(1, "127.0.0.1", 1, b"", b"")
    with pytest.raises(ValueError, match="not started"):
        lone.probe(1.0)


VECTOR_D = np.zeros(DIM, np.float32)
WRONG = {
    "float64": ("grad_d must be", 1, "send", (1, VECTOR_D.astype(np.float64), 1.0, 0.0)),
    "send 0": ("round must be", 1, "send", (0, VECTOR_D, 1.0, 0.0)),
    "loss": ("max_loss must be", 1, "send", (1, VECTOR_D, math.nan, 0.0)),
    "for ever": ("timeout_s must be", 1, "send", (1, VECTOR_D, 1.0, math.nan)),
    "receive 0": ("round must be", 1, "receive", (0, 0.0)),
    "receive": ("timeout_s must be", 1, "receive", (1, -1.0)),
    "probe": ("timeout_s must be", 0, "probe", (math.nan,)),
    "shape": ("params_d must be", 0, "broadcast", (1, VECTOR_D[1:], (True,), 1, 0.0, 0.0)),
    "to": ("to_n must have 1", 0, "broadcast", (1, VECTOR_D, (True,) * 2, 1, 0.0, 0.0)),
    "rate": ("rate_kbps must be", 0, "broadcast", (1, VECTOR_D, (True,), 2**32, 0.0, 0.0)),
    "silence": ("silence_s must be", 0, "broadcast", (1, VECTOR_D, (True,), 1, 0.0, -1.0)),
    "round": ("round must be", 0, "broadcast", (2**64, VECTOR_D, (True,), 1, 0.0, 0.0)),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused(job, name):
    message, rank, verb, arguments = WRONG[name]
    server, workers = job.connected(1, DIM)
    with pytest.raises(ValueError, match=message):
        getattr((server, *workers)[rank], verb)(*arguments)


def test_wrong_stacks_and_policies_are_refused(job, policy):
    server, _ = job.connected(1, DIM)
    stack_nd = np.zeros((1, DIM), np.float32)
    for wrong_nd in (np.zeros((1, 2 * DIM), np.float32)[:, ::2], np.zeros((2, DIM), np.float32)):
        with pytest.raises(ValueError, match="stack_nd must be"):
            server.collect(1, wrong_nd, policy(live_n=(True,)))
    frozen_nd = stack_nd.copy()
    frozen_nd.setflags(write=False)
    with pytest.raises(ValueError, match="stack_nd must be writeable"):
        server.collect(1, frozen_nd, policy(live_n=(True,)))
    for change in (
        {"quorum": 0},
        {"max_loss": 1.1},
        {"live_n": (True, True)},
        {"rate_kbps": 0},
        {"deadline_s": math.nan},
        {"grace_s": -1.0},
    ):
        with pytest.raises(ValueError, match=r"must (be|have)|closes on"):
            server.collect(1, stack_nd, policy(**{"live_n": (True,), **change}))
    assert server.collect(3, stack_nd, policy(live_n=(True,), deadline_s=0.0)).reason == "deadline"
    for round in (0, 2, 3):
        with pytest.raises(ValueError, match="must"):
            server.collect(round, stack_nd, policy(live_n=(True,)))


WAITING = {
    "probe": (1, lambda e, policy: e.probe(9.0)),
    "receive": (1, lambda e, policy: e.receive(1, 9.0)),
    "send": (1, lambda e, policy: e.send(1, VECTOR_D, 1.0, 9.0)),
    "collect": (0, lambda e, policy: e.collect(1, VECTOR_D[None].copy(), policy)),
    "broadcast": (0, lambda e, policy: e.broadcast(1, VECTOR_D, (True,), 10**6, 9.0, 9.0)),
    "slow broadcast": (0, lambda e, policy: e.broadcast(1, VECTOR_D, (True,), 1, 9.0, 9.0)),
}


@pytest.mark.parametrize("name", WAITING)
def test_who_waits_is_told_of_a_close_and_of_another(job, policy, name):
    """Three threads: one waits, one wants something at the same time, one closes."""
    rank, call = WAITING[name]
    endpoint = job.endpoint(rank, 1, DIM)
    raw = job.raw(endpoint, "none", 1 - rank)
    endpoint.start()
    told = []

    def wait():
        try:
            call(endpoint, policy(live_n=(True,)))
        except ValueError as error:
            told.append(str(error))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    raw.socket.settimeout(2.0)
    raw.socket.recv(65536)  # it is at work
    with pytest.raises(ValueError, match="one thing at a time"):
        endpoint.probe(1.0)
    closers = [threading.Thread(target=endpoint.close, daemon=True) for _ in range(3)]
    for each in closers:
        each.start()
    for each in (*closers, thread):
        each.join(2.0)
        assert not each.is_alive(), "the call hangs"
    assert [("closed while" in text) for text in told] == [True]


AT_EXIT = """
import sys, threading, time
from lossympi.endpoint import Setup
from lossympi.backend import choose_plane

worker = choose_plane("{plane}").Endpoint(Setup(1, 1, "127.0.0.1", 1, 10))
worker.add_peer(0, "127.0.0.1", 9, b"", b"")
worker.start()
threading.Thread(target=worker.receive, args=(1, {timeout_s}), daemon=True).start()


class Slow:  # leaves the thread the time to come back while the interpreter ends
    def __del__(self, sleep=time.sleep):
        sleep(0.25)


slow = Slow()
time.sleep(0.02)
"""


@pytest.mark.parametrize("timeout_s", [0.1, 0.9])  # it comes back; it asks for signals
def test_an_interpreter_may_end_while_a_thread_waits(timeout_s):
    script = AT_EXIT.format(plane="native", timeout_s=timeout_s)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_close_frees_the_port_at_once_and_for_good(job):
    made = job.endpoint(1, 1, 10)
    port = made.port
    made.close()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", port))  # although `made` still lives
    with pytest.raises(ValueError, match="closed"):
        made.start()
