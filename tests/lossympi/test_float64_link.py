"""Links whose values are float64: all of their bits, and holes of whole values."""

import numpy as np
import pytest

from lossympi import FILLS, Network, fill, memory
from lossympi.float64_link import of_dtype
from lossympi.network import LOSSLESS
from lossympi.options import Options
from lossympi.udp_link import UdpServer, UdpWorker

D = 1001  # six datagrams of 176 values; the last is short
ROUNDS = 3
RATE_BPS = 1e9
# What float32 holds not at all, or only in part.
HARD = np.array([1 + 1e-12, 1e300, -1e-300, 5e-324, -0.0, np.inf, 1 / 3, np.nan, 0.0])
HARD.view(np.uint64)[-1] = 0x7F800001FF800001  # each half a signalling NaN of float32


def vector(*seed):
    vector_d = np.random.default_rng(seed).standard_normal(D)
    vector_d[: len(HARD)] = HARD
    return vector_d


def bits(values):
    return np.asarray(values, np.float64).view(np.uint64)


def check_arrived(got, sent_nd):
    """What has arrived is as it was sent; the rest is lost by whole datagrams."""
    assert (got.stack_nd.dtype, got.stack_nd.shape) == (np.float64, sent_nd.shape)
    arrived_nd = np.repeat(got.arrived_nc, got.floats_per_datagram, axis=1)[:, :D]
    np.testing.assert_array_equal(bits(got.stack_nd)[arrived_nd], bits(sent_nd)[arrived_nd])
    np.testing.assert_allclose(got.delivered_n, arrived_nd.mean(axis=1))
    return arrived_nd


def check_filled(got, sent_d, policy, previous_nd):
    """Fills what did not arrive of one row; returns a copy of the stack."""
    arrived_d = check_arrived(got, sent_d[None])[0]
    fill(
        got.stack_nd,
        got.arrived_nc,
        policy,
        round=got.round,
        previous_nd=previous_nd if policy == "previous" else None,
        floats_per_datagram=got.floats_per_datagram,
    )
    check_arrived(got, sent_d[None])
    holes = got.stack_nd[0, ~arrived_d]
    if policy == "nan":
        assert np.isnan(holes).all()
    elif policy == "random":
        came = sent_d[arrived_d]
        came = came[np.isfinite(came)]
        scale = np.max(np.abs(came), initial=0.0) or 1.0
        rms = scale * np.sqrt(np.mean((came / scale) ** 2)) if came.size else 0.0
        assert np.isfinite(holes).all()
        assert (np.abs(holes) < 6 * rms).all()
        assert holes.size == 0 or rms == 0 or np.max(np.abs(holes)) > rms
    else:
        before = 0 if policy == "zero" or previous_nd is None else previous_nd[0, ~arrived_d]
        np.testing.assert_array_equal(holes, np.broadcast_to(before, holes.shape))
    return got.stack_nd.copy()


@pytest.mark.parametrize("network", [LOSSLESS, Network(loss=0.4, seed=1)], ids=["whole", "lossy"])
def test_in_memory(network):
    server, workers = memory.connect(2, D, network, dtype=np.float64)
    assert (server.dim, server.dtype, workers[1].dim) == (D, np.float64, D)
    lost = 0
    for round in range(ROUNDS):
        sent_nd = np.stack([vector(row, round) for row in range(2)])
        for worker, row_d in zip(workers, sent_nd, strict=True):
            assert worker.send(round, row_d)
        got = server.collect(round)
        lost += np.count_nonzero(~check_arrived(got, sent_nd))
        server.broadcast(round, vector(9, round))
        for worker in workers:
            model = worker.receive(round)
            np.testing.assert_array_equal(bits(model.params_d), bits(vector(9, round)))
            assert not model.params_d.flags.writeable
    assert (lost > 0) == (network.loss > 0)


@pytest.mark.parametrize(("drop", "policy"), [(0.0, "zero"), *((0.3, each) for each in FILLS)])
def test_over_udp(job, background, drop, policy):
    options = Options()
    server, workers = job.connected(1, 2 * D, drop=drop)
    link = of_dtype(UdpServer(server, 1, 2 * D, RATE_BPS, options), np.float64)
    end = of_dtype(UdpWorker(workers[0], 0, 2 * D, options), np.float64)

    def work():
        models = []
        for round in range(ROUNDS):
            end.send(round, vector(0, round))
            models.append(np.array(end.receive(round).params_d))
        return models

    made = background(work)
    lost, whole, previous_nd = 0, [], None
    for round in range(ROUNDS):
        got = link.collect(round, lambda stack_nd, ranges_k2: whole.append((stack_nd, ranges_k2)))
        lost += np.count_nonzero(~check_arrived(got, vector(0, round)[None]))
        previous_nd = check_filled(got, vector(0, round), policy, previous_nd)
        for stack_nd, ranges_k2 in whole:
            assert stack_nd.shape == (1, D)
            assert (ranges_k2[:, 1] <= D).all()
        link.broadcast(round, vector(9, round))
    assert (lost > 0) == (drop > 0)
    for round, params_d in enumerate(made.result()):
        np.testing.assert_array_equal(bits(params_d), bits(vector(9, round)))
    link.close()
    end.close()


@pytest.mark.parametrize("policy", FILLS)
def test_what_is_lost_is_filled_with_values_of_float64(policy):
    server, [worker] = memory.connect(1, D, Network(loss=0.4, seed=1), dtype=np.float64)
    previous_nd = None
    for round in range(ROUNDS):
        sent_d = 1e200 * np.random.default_rng(round).standard_normal(D)
        worker.send(round, sent_d)
        previous_nd = check_filled(server.collect(round), sent_d, policy, previous_nd)


@pytest.mark.parametrize("largest", [5e-324, 1e-200, 1.7e308])
def test_random_values_have_the_magnitude_of_what_arrived(largest):
    """Squares of float64 underflow below 1e-162 and overflow above 1e154."""
    stack_nd = np.full((1, 352), largest)
    fill(stack_nd, np.array([[True, False]]), "random", floats_per_datagram=176)
    drawn = stack_nd[0, 176:]
    assert np.isfinite(drawn).all()
    assert 0.5 * largest <= np.sort(np.abs(drawn))[88] <= largest


def test_a_vector_of_another_type_is_refused():
    server, [worker] = memory.connect(1, D, dtype=np.float64)
    with pytest.raises(ValueError, match=r"grad_d must be a NumPy array, float64 \[1001\]"):
        worker.send(0, np.zeros(D, np.float32))
    with pytest.raises(ValueError, match=r"params_d must be a NumPy array, float64 \[1001\]"):
        server.broadcast(0, np.zeros(2 * D, np.float32))
    with pytest.raises(ValueError, match="a link carries float32 or float64, got dtype='float16'"):
        memory.connect(1, D, dtype="float16")
