"""A worker's rounds over UDP as an op makes them: by C, and in parts where they come so."""

import contextlib
import itertools
import threading
import time

import numpy as np
import pytest

from lossympi import backend
from lossympi.options import Options
from lossympi.udp_link import UdpServer, UdpWorker
from tests.lossympi.conftest import PLANES, Job
from tests.lossympi.rounds import Caller

D = 352 * 100 + 7  # the last datagram is short
FAST_BPS = 1e9

pytestmark = pytest.mark.skipif(backend.native() is None, reason=backend.why_not_native())


@pytest.fixture(params=["native", "native workers"])
def link(request):
    """Returns a function that makes a server's end, of either plane, and a worker's rounds."""
    with contextlib.closing(Job(PLANES[request.param])) as job:

        def make(rate_bps=FAST_BPS, drop=0.0, idle=lambda *_: None, **options):
            chosen = Options(**options)
            server, workers = job.connected(1, D, drop=drop)
            link = UdpServer(server, 1, D, rate_bps, chosen)
            return link, Caller(UdpWorker(workers[0], 0, D, chosen), idle)

        yield make


def vector(seed):
    return np.random.default_rng(seed).standard_normal(D, dtype=np.float32)


def ranges(*cuts):
    """Returns what lies between the cuts, as (first, count)."""
    return [(first, end - first) for first, end in itertools.pairwise((0, *cuts, D))]


def collect(server, rounds, background):
    """Lets the server make rounds; returns a call that gives what it has collected."""

    def serve():
        collected = []
        for round in range(rounds):
            got = server.collect(round)
            collected.append((got.stack_nd[0].copy(), got.stats))
            server.broadcast(round, vector([2, round]))
        return collected

    return background(serve)


ORDERS = {
    "whole": [],
    "from the end": ranges(30_000, 31_000)[::-1],
    "from the beginning": ranges(1, 353, 704),
    "all at once": ranges(),
    "some of it": [(400, 20_000), (0, 10)],
    "less than a datagram": [(353, 350)],
    "nothing": [(5, 0), (5, 0)],
}


@pytest.mark.parametrize("order", ORDERS)
def test_a_gradient_arrives_however_it_is_written(link, background, order):
    server, worker = link()
    served = collect(server, 3, background)
    sent_d = np.empty(D, np.float32)
    for round in range(3):
        grad_d = vector(round)
        sent_d[:] = np.nan  # what is not written must not leave
        for first, count in ORDERS[order]:
            sent_d[first : first + count] = grad_d[first : first + count]
            assert worker.send_part(sent_d, first, count) == 0
        sent_d[:] = grad_d
        np.testing.assert_array_equal(worker.run(sent_d), vector([2, round]))
        assert worker.native.round == round + 1
    for round, (row_d, stats) in enumerate(served.result()):
        np.testing.assert_array_equal(row_d, vector(round))
        assert stats.workers[0].duplicate == 0
        assert stats.workers[0].rejected == {}


def test_a_part_arrives_while_the_rest_is_not_there(link, background):
    server, worker = link()
    endpoint = server._endpoint
    served = collect(server, 1, background)
    grad_d = vector(0)
    worker.send_part(grad_d, D - 352 * 50, 352 * 50)
    deadline = time.monotonic() + 5
    while endpoint.counters()[1]["accepted"] < 49:  # the first of them is not whole
        assert time.monotonic() < deadline
    assert server.waiting_for() == [0]
    worker.run(grad_d)
    np.testing.assert_array_equal(served.result()[0][0], grad_d)


@pytest.mark.parametrize("max_loss", [1.0, 0.5])
def test_a_pause_is_not_the_end(link, background, max_loss):
    server, worker = link(quiet_s=0.05, max_loss=max_loss)
    served = collect(server, 1, background)
    grad_d = vector(0)
    for first, count in ranges(9_000)[::-1]:
        worker.send_part(grad_d, first, count)
        time.sleep(0.3)
    worker.run(grad_d)
    row_d, stats = served.result()[0]
    np.testing.assert_array_equal(row_d, grad_d)
    assert (stats.closed_by, stats.workers[0].delivered) == ("complete", 1.0)


@pytest.mark.parametrize("max_loss", [1.0, 0.0])
def test_losses_of_parts_are_borne_as_others(link, background, max_loss):
    server, worker = link(drop=0.2, max_loss=max_loss)
    served = collect(server, 3, background)
    for round in range(3):
        grad_d = vector(round)
        for first, count in ranges(9_000, 20_000)[::-1]:
            assert worker.send_part(grad_d, first, count) == 0
        np.testing.assert_array_equal(worker.run(grad_d), vector([2, round]))
    for round, (row_d, stats) in enumerate(served.result()):
        there_d = row_d == vector(round)
        assert there_d.mean() == pytest.approx(stats.workers[0].delivered)
        assert there_d.all() if max_loss == 0 else 0.5 < there_d.mean() < 1


def test_a_long_gradient_leaves_though_calls_are_short(link, background):
    """A wait is looked at every 0.2 s, and this takes 0.5 s."""
    waits = []
    server, worker = link(rate_bps=D * 4 * 8 * 2, idle=lambda *wait: waits.append(wait))
    served = collect(server, 2, background)
    for round, parts in enumerate([ranges(), []]):
        grad_d = vector(round)
        for first, count in parts:
            worker.send_part(grad_d, first, count)
        worker.run(grad_d)
    for round, (row_d, stats) in enumerate(served.result()):
        np.testing.assert_array_equal(row_d, vector(round))
        assert stats.workers[0].duplicate == 0
    assert len(waits) >= 4


@pytest.mark.parametrize("in_parts", [True, False])
def test_a_step_that_ends_half_way_is_made_up_for_by_the_next(link, background, in_parts):
    server, worker = link()
    served = collect(server, 2, background)
    cut = 352 * 50 + 100  # within a datagram
    worker.send_part(vector(8), 0, cut)
    again_d = np.full(D, np.nan, np.float32)
    for first, count in ranges(cut - 50, cut + 100) if in_parts else []:
        again_d[first : first + count] = vector(9)[first : first + count]
        assert worker.send_part(again_d, first, count, step=1) == 0
    np.testing.assert_array_equal(worker.run(vector(9)), vector([2, 0]))
    for first, count in ranges(cut):
        worker.send_part(vector(10), first, count, step=2)
    worker.run(vector(10))
    both_d = np.where(np.arange(D) < 352 * 50, vector(8), vector(9))  # what had left stays
    for (row_d, stats), expected_d in zip(served.result(), (both_d, vector(10)), strict=True):
        np.testing.assert_array_equal(row_d, expected_d)
        assert (stats.closed_by, stats.workers[0].duplicate) == ("complete", 0)


def test_parts_of_a_round_that_is_over_are_not_sent(link, background):
    server, worker = link(timeout_s=0.1)
    served = collect(server, 1, background)
    assert served.result()[0][1].workers[0].delivered == 0
    grad_d = vector(0)
    for first, count in ranges(9_000):
        assert worker.send_part(grad_d, first, count) == 0
    np.testing.assert_array_equal(worker.run(grad_d), vector([2, 0]))


def test_what_ends_a_wait_ends_a_part(link):
    def idle(is_sending, has_left, waited_s):
        raise RuntimeError(f"enough: {is_sending} {has_left}")

    _, worker = link(idle=idle)
    assert worker.send_part(vector(0), 0, D) == 2
    assert worker.message.value == b"RuntimeError: enough: True False"


def test_a_server_that_left_is_told_to_a_part(link):
    told = threading.Event()

    def idle(is_sending, has_left, waited_s):
        if has_left:
            told.set()
            raise RuntimeError("it has left")

    server, worker = link(idle=idle)
    server.close()
    assert worker.send_part(vector(0), 0, D) == 2
    assert told.is_set()
