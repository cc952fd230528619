"""The ends of a link as a training loop uses them: who falls behind, and what is counted."""

import threading
import time

import numpy as np
import pytest

from lossympi import LinkError
from lossympi.options import Options
from lossympi.udp_link import UdpServer, UdpWorker

DIM = 1000
PARAMS = np.zeros(DIM, np.float32)
RATE_BPS = 1e9


@pytest.fixture
def play(job, background):
    """Returns a function that gives what `serve(link)` and each `work(link)` return."""

    def run(serve, work, n=1, drop=0.0, **options):
        chosen = Options(**options)
        server, workers = job.connected(n, DIM, drop=drop)
        links = [UdpWorker(each, row, DIM, chosen) for row, each in enumerate(workers)]
        calls = [background(work, link) for link in links]
        link = UdpServer(server, n, DIM, RATE_BPS, chosen)
        served = serve(link)
        link.close()
        return [served, *(call.result() for call in calls)]

    return run


def test_parameters_that_are_there_are_not_waited_for(play):
    left = threading.Event()

    def serve(link):
        link.broadcast(5, PARAMS + 5)
        left.wait(10)

    def work(link):
        models = [link.receive(round) for round in (1, 2, 5)]
        left.set()
        return [(model.round, model.params_d[0]) for model in models]

    _, got = play(serve, work)
    assert got == [(5, 5.0)] * 3


@pytest.mark.parametrize("jumps", [True, False], ids=["follows the model", "counts on its own"])
def test_a_worker_that_was_away_catches_up(play, jumps):
    """It is dead meanwhile, and the others' rounds go on."""
    rounds, away_s = 40, 0.6

    def serve(link):
        delivered_rn = []
        for round in range(rounds):
            delivered_rn.append(link.collect(round).delivered_n.tolist())
            link.broadcast(round, PARAMS)
            time.sleep(0.02)
        return np.array(delivered_rn)

    def work(link):
        round = 0
        while round < rounds:
            if link.rank == 1 and round == 3:
                time.sleep(away_s)
            link.send(round, PARAMS)
            model = link.receive(round)
            round = (model.round if jumps else round) + 1

    delivered_rn, *workers = play(serve, work, 2, timeout_s=0.1)
    assert workers == [None, None]
    assert (delivered_rn[3:6, 1] == 0).all()
    # Once t_B is learnt it is a few milliseconds, and a busy machine may miss one.
    assert delivered_rn[:, 0].mean() > 0.9
    assert delivered_rn[-10:, 1].mean() > 0.8


def test_what_is_nobody_s_is_counted(play):
    def serve(link):
        others = []
        for round in range(20):
            others.append(link.collect(round).stats.others)
            link.broadcast(round, PARAMS)
        return sum(each.get("dropped", 0) for each in others)

    def work(link):
        for round in range(20):
            link.send(round, PARAMS)
            link.receive(round)

    dropped, worker = play(serve, work, drop=0.2)
    assert worker is None
    assert 5 < dropped < 200


@pytest.mark.parametrize("round", [-1, 1.5, "1", True, None])
def test_rounds_are_whole_numbers(play, round):
    def refuses(call, *args):
        with pytest.raises(ValueError, match=r"rounds are whole numbers from 0 on, got "):
            call(round, *args)

    def serve(link):
        refuses(link.collect)
        refuses(link.broadcast, PARAMS)

    def work(link):
        refuses(link.send, PARAMS)
        refuses(link.receive)

    assert play(serve, work) == [None, None]


def test_a_server_that_left_is_told(play):
    def work(link):
        with pytest.raises(LinkError, match="it has closed the link"):
            link.receive(0)

    assert play(lambda link: None, work) == [None, None]


def test_wait_s_ends_a_wait_without_an_error(play):
    """Nothing is granted and nothing sent yet; then both are."""
    waited = threading.Event()

    def serve(link):
        assert link.waiting_for() == []
        waited.wait(10)
        asked = []
        timer = threading.Timer(0.1, lambda: asked.append(link.waiting_for()))
        timer.start()
        got = link.collect(0)
        timer.join()
        link.broadcast(0, PARAMS)
        return got.delivered_n.tolist(), asked, link.waiting_for()

    def work(link):
        begun = time.monotonic()
        assert link.send(0, PARAMS, wait_s=0.03) is None
        assert link.receive(0, wait_s=0.03) is None
        assert link.receive(0, wait_s=0) is None
        assert 0.06 <= time.monotonic() - begun < 1
        for wrong in (-1, float("nan"), "1"):
            with pytest.raises(ValueError, match="wait_s is a time of 0 s or more, or None"):
                link.receive(0, wait_s=wrong)
        waited.set()
        time.sleep(0.3)
        assert link.send(0, PARAMS, wait_s=5) is True
        model = link.receive(0, wait_s=5)
        assert link.receive(0, wait_s=0) is model
        return model.round

    assert play(serve, work) == [([1.0], [[0]], []), 0]
