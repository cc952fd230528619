import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lossympi
from lossympi import FLOATS_PER_DATAGRAM, Collected, LinkError, Network, fill, num_datagrams
from lossympi.memory import connect

# One float; one short of a datagram, one datagram, one over; two whole ones; a short third.
DIMS = [1, 351, 352, 353, 704, 1000]
NUM_WORKERS = 4


def gradients(round, dim):
    rng = np.random.default_rng([round, dim])
    return rng.standard_normal((NUM_WORKERS, dim)).astype(np.float32)


def send_and_collect(server, workers, round, stack_nd):
    for worker, grad_d in zip(workers, stack_nd, strict=True):
        worker.send(round, grad_d)
    return server.collect(round)


@pytest.mark.parametrize(("dim", "expected"), [*zip(DIMS, [1, 1, 1, 2, 2, 3], strict=True)])
def test_num_datagrams(dim, expected):
    assert num_datagrams(dim) == expected


@pytest.mark.parametrize(("dim", "floats", "expected"), [(704, 704, 1), (705, 704, 2), (3, 1, 3)])
def test_num_datagrams_of_another_size(dim, floats, expected):
    assert num_datagrams(dim, floats) == expected


def test_a_datagram_carries_a_float():
    with pytest.raises(ValueError, match="at least 1 float, got 0"):
        num_datagrams(1, 0)


def test_a_datagram_fits_an_ethernet_frame_and_fills_cache_lines():
    payload_bytes = 4 * FLOATS_PER_DATAGRAM
    assert 20 + 8 + 32 + payload_bytes + 16 <= 1500
    assert payload_bytes % 64 == 0


@pytest.mark.parametrize("dim", DIMS)
def test_without_loss_the_stack_is_what_was_sent(dim):
    server, workers = connect(NUM_WORKERS, dim)
    for round in range(3):
        sent_nd = gradients(round, dim)
        collected = send_and_collect(server, workers, round, sent_nd)
        assert collected.round == round
        assert collected.stack_nd.dtype == np.float32
        np.testing.assert_array_equal(collected.stack_nd, sent_nd)
        assert collected.arrived_nc.shape == (NUM_WORKERS, num_datagrams(dim))
        assert collected.arrived_nc.all()
        np.testing.assert_array_equal(collected.delivered_n, np.ones(NUM_WORKERS))


@pytest.mark.parametrize("loss", [0.3, 1.0])
@pytest.mark.parametrize("dim", DIMS)
def test_holes_are_those_of_the_bitmap(dim, loss):
    network = Network(loss, seed=dim)
    server, workers = connect(NUM_WORKERS, dim, network)
    for round in range(8):
        sent_nd = gradients(round, dim)
        collected = send_and_collect(server, workers, round, sent_nd)
        expected_nd = sent_nd.copy()
        for worker in range(NUM_WORKERS):
            arrived_c = network.arrived(round, worker, num_datagrams(dim))
            np.testing.assert_array_equal(collected.arrived_nc[worker], arrived_c)
            for lost in np.flatnonzero(~arrived_c):
                expected_nd[worker, 352 * lost : 352 * (lost + 1)] = np.nan
        delivered_n = np.isfinite(expected_nd).mean(axis=1)
        np.testing.assert_allclose(collected.delivered_n, delivered_n, rtol=1e-15)
        fill(collected.stack_nd, collected.arrived_nc, "nan")
        np.testing.assert_array_equal(collected.stack_nd, expected_nd)


def test_delivered_share_counts_floats():
    stack_nd = np.zeros((4, 353), np.float32)
    arrived_nc = np.array([[True, True], [True, False], [False, True], [False, False]])
    delivered_n = Collected(0, stack_nd, arrived_nc).delivered_n
    np.testing.assert_array_equal(delivered_n, [1, 352 / 353, 1 / 353, 0])


def test_delivered_share_counts_floats_of_datagrams_of_another_size():
    arrived_nc = np.array([[True, False], [False, True]])
    collected = Collected(0, np.zeros((2, 705), np.float32), arrived_nc, floats_per_datagram=704)
    np.testing.assert_array_equal(collected.delivered_n, [704 / 705, 1 / 705])


def test_nothing_arrives_from_a_worker_that_sent_nothing():
    server, workers = connect(2, 353)
    for worker in workers:
        worker.send(0, np.ones(353, np.float32))
    server.collect(0)
    workers[1].send(1, np.ones(353, np.float32))
    collected = server.collect(1)
    np.testing.assert_array_equal(collected.delivered_n, [0, 1])
    np.testing.assert_array_equal(server.collect(2).delivered_n, [0, 0])


def test_order_of_sends_does_not_matter():
    sent_nd = gradients(0, 1000)
    results = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        server, workers = connect(NUM_WORKERS, 1000, Network(0.5))
        for rank in order:
            workers[rank].send(0, sent_nd[rank])
        collected = server.collect(0)
        fill(collected.stack_nd, collected.arrived_nc, "random")
        results.append(collected)
    np.testing.assert_array_equal(results[0].arrived_nc, results[1].arrived_nc)
    np.testing.assert_array_equal(results[0].stack_nd, results[1].stack_nd)


def test_the_stack_is_reused_and_the_bitmap_is_not():
    server, workers = connect(NUM_WORKERS, 353, Network(0.5))
    first = send_and_collect(server, workers, 0, gradients(0, 353))
    arrived_nc = first.arrived_nc.copy()
    second = send_and_collect(server, workers, 1, gradients(1, 353))
    assert second.stack_nd is first.stack_nd
    assert not np.array_equal(first.arrived_nc, second.arrived_nc)
    np.testing.assert_array_equal(first.arrived_nc, arrived_nc)


def test_what_a_worker_sends_is_kept_bit_by_bit():
    sent_d = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 3e38], np.float32)
    sent_d.view(np.uint32)[0] = 0x7FC0BEEF  # a NaN with a payload
    server, workers = connect(1, len(sent_d))
    workers[0].send(0, sent_d)
    np.testing.assert_array_equal(
        server.collect(0).stack_nd[0].view(np.uint32), sent_d.view(np.uint32)
    )


def test_a_strided_gradient_is_sent_as_its_values():
    wide = np.arange(2000, dtype=np.float32)
    server, workers = connect(1, 1000)
    workers[0].send(0, wide[::2])
    np.testing.assert_array_equal(server.collect(0).stack_nd[0], wide[::2])


def test_ends_know_their_place():
    server, workers = connect(3, 7)
    assert (server.num_workers, server.dim) == (3, 7)
    assert [(worker.rank, worker.dim) for worker in workers] == [(0, 7), (1, 7), (2, 7)]


def test_parameters_reach_every_worker_whatever_the_loss():
    server, workers = connect(3, 1000, Network(1.0))
    for round in range(2):
        params_d = np.full(1000, round, np.float32)
        server.broadcast(round, params_d)
        for worker in workers:
            model = worker.receive(round)
            assert model.round == round
            np.testing.assert_array_equal(model.params_d, params_d)


def test_received_parameters_can_be_changed_by_nobody():
    server, workers = connect(1, 2)
    params_d = np.ones(2, np.float32)
    server.broadcast(0, params_d)
    received_d = workers[0].receive(0).params_d
    with pytest.raises(ValueError, match="read-only"):
        received_d[0] = 2
    with pytest.raises(ValueError, match="WRITEABLE"):
        received_d.setflags(write=True)
    params_d[:] = 3
    server.broadcast(1, params_d)
    np.testing.assert_array_equal(received_d, [1, 1])


def test_receive_before_broadcast_says_who_waits_for_whom():
    server, workers = connect(2, 1)
    with pytest.raises(
        LinkError, match=r"worker 1 waits for the server's .* round 0, .* broadcast nothing"
    ):
        workers[1].receive(0)
    server.broadcast(3, np.zeros(1, np.float32))
    with pytest.raises(LinkError, match=r"worker 1 .* round 4, .* round 3 last"):
        workers[1].receive(4)


def test_with_wait_s_nothing_to_receive_is_no_error():
    server, (worker,) = connect(1, 4)
    assert worker.receive(0, wait_s=1.0) is None
    assert worker.send(0, np.ones(4, np.float32), wait_s=0) is True
    assert server.waiting_for() == []
    server.collect(0)
    server.broadcast(0, np.ones(4, np.float32))
    assert worker.receive(1, wait_s=0) is None
    assert worker.receive(0, wait_s=0).round == 0
    with pytest.raises(ValueError, match="wait_s is a time"):
        worker.receive(0, wait_s=-1)


def test_a_worker_that_was_left_behind_gets_the_newest_parameters():
    server, workers = connect(1, 1)
    for round in range(4):
        server.broadcast(round, np.full(1, round, np.float32))
    assert workers[0].receive(1) == (3, np.float32(3))


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (np.zeros(352, np.float32), r"got float32 \[352\]"),
        (np.zeros((1, 353), np.float32), r"got float32 \[1, 353\]"),
        (np.zeros(353, np.float64), r"got float64 \[353\]"),
        (np.zeros(353, ">f4"), r"got >f4 \[353\]"),
        ([0.0] * 353, "got list"),
    ],
)
def test_only_float32_of_the_right_shape_is_sent(bad, found):
    server, workers = connect(1, 353)
    with pytest.raises(ValueError, match=rf"grad_d must be .* float32 \[353\]; {found}"):
        workers[0].send(0, bad)
    with pytest.raises(ValueError, match=rf"params_d must be .* float32 \[353\]; {found}"):
        server.broadcast(0, bad)
    assert not server.collect(0).arrived_nc.any()


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ([("send", 5), ("send", 5)], "worker 0 has sent for round 5 already"),
        ([("send", 5), ("send", 6)], "round 5 is being collected, worker 0's send named round 6"),
        ([("send", 5), ("send", 4)], "round 5 is being collected, worker 0's send named round 4"),
        ([("send", 5), ("collect", 6)], "round 5 is being collected, collect named round 6"),
        ([("collect", 5), ("send", 5)], "round 5 has been collected, worker 0's .* round 5"),
        ([("collect", 5), ("send", 4)], "round 5 has been collected, worker 0's .* round 4"),
        ([("collect", 5), ("collect", 5)], "round 5 has been collected, collect named round 5"),
        ([("broadcast", 5), ("broadcast", 5)], "round 5 has been broadcast, got round 5"),
        ([("close", None), ("send", 0)], "the server has closed this link"),
        ([("close", None), ("receive", 0)], "the server has closed this link"),
        ([("close", None), ("collect", 0)], "the server has closed this link"),
        ([("close", None), ("broadcast", 0)], "the server has closed this link"),
        ([("leave", None), ("send", 0)], "worker 0 has closed its end"),
        ([("leave", None), ("receive", 0)], "worker 0 has closed its end"),
    ],
)
def test_calls_out_of_order_are_refused(calls, message):
    server, workers = connect(1, 2)
    values_d = np.zeros(2, np.float32)
    call = {
        "send": lambda round: workers[0].send(round, values_d),
        "receive": lambda round: workers[0].receive(round),
        "leave": lambda _: workers[0].close(),
        "collect": server.collect,
        "broadcast": lambda round: server.broadcast(round, values_d),
        "close": lambda _: server.close(),
    }
    *before, (name, round) = calls
    for earlier, earlier_round in before:
        call[earlier](earlier_round)
    with pytest.raises(ValueError, match=message):
        call[name](round)


def test_a_refused_send_changes_nothing():
    server, workers = connect(2, 2)
    workers[0].send(0, np.ones(2, np.float32))
    with pytest.raises(ValueError, match="already"):
        workers[0].send(0, np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="named round 1"):
        workers[1].send(1, np.zeros(2, np.float32))
    collected = server.collect(0)
    np.testing.assert_array_equal(collected.stack_nd[0], [1, 1])
    np.testing.assert_array_equal(collected.delivered_n, [1, 0])


def test_closing_twice_is_allowed_and_a_worker_closes_only_its_own_end():
    server, workers = connect(2, 1)
    workers[0].close()
    workers[0].close()
    workers[1].send(0, np.zeros(1, np.float32))
    np.testing.assert_array_equal(server.collect(0).delivered_n, [0, 1])
    server.close()
    server.close()


@pytest.mark.parametrize(
    ("num_workers", "dim", "message"), [(0, 1, "num_workers=0"), (1, 0, "dim=0")]
)
def test_empty_links_are_refused(num_workers, dim, message):
    with pytest.raises(ValueError, match=message):
        connect(num_workers, dim)


def test_imports_neither_tensorflow_nor_aggregathor():
    code = "import sys, lossympi; print(*{name.partition('.')[0] for name in sys.modules})"
    root = Path(lossympi.__file__).parents[1]
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "lossympi" in loaded
    assert not {"tensorflow", "keras", "aggregathor"} & set(loaded)
