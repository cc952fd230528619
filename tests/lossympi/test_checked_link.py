"""What every link checks, of a link that only notes what comes through."""

import math
import time

import numpy as np
import pytest

from lossympi import LinkError, Model
from lossympi.checked_link import CheckedServerLink, CheckedWorkerLink
from lossympi.timeout import Waiting

D = 3
ZEROS_D = np.zeros(D, np.float32)
ROUNDS_THAT_ARE_NONE = [-1, 1.5, "1", True, None, 2**63]


class Server(CheckedServerLink):
    def __init__(self):
        super().__init__(2, D, Waiting(2, patience=3, cap_s=1.0))
        self.calls = []

    def _collect(self, round, on_columns):
        self.calls.append(("collect", round, on_columns))
        return "collected"

    def _broadcast(self, round, params_d):
        self.calls.append(("broadcast", round, params_d))

    def _waiting_for(self):
        return [1]

    def _forget(self, row):
        self.calls.append(("forget", row, self._waiting.live))

    def _close(self):
        self.calls.append("close")


class Worker(CheckedWorkerLink):
    """One whose server has sent the models in `models`, and leaves when it is told to."""

    def __init__(self, give_up_s=math.inf):
        super().__init__(1, D, give_up_s)
        self.calls, self.models, self.left = [], [], False

    def _send(self, round, grad_d, wait_s):
        self.calls.append(("send", round, grad_d, wait_s))
        return False

    def _receive(self, round, wait_s):
        self.calls.append(("receive", round, wait_s))
        return next((model for model in reversed(self.models) if model.round >= round), None)

    def _server_left(self):
        return self.left

    def _close(self):
        self.calls.append("close")


def test_what_is_right_comes_through():
    server, on_columns = Server(), object()
    assert server.collect(np.int64(0), on_columns) == "collected"
    server.broadcast(0, ZEROS_D)
    server.collect(5)
    assert [call[:2] for call in server.calls] == [("collect", 0), ("broadcast", 0), ("collect", 5)]
    assert server.calls[0][2] is on_columns
    assert server.calls[1][2] is ZEROS_D
    assert server.waiting_for() == [1]
    assert server.native() is None
    worker = Worker()
    assert worker.send(3, ZEROS_D) is False
    assert worker.send(3, ZEROS_D, wait_s=0.5) is False
    assert worker.calls == [("send", 3, ZEROS_D, math.inf), ("send", 3, ZEROS_D, 0.5)]
    assert worker.native(print) is None


@pytest.mark.parametrize("round", ROUNDS_THAT_ARE_NONE)
def test_rounds_are_whole_numbers(round):
    server, worker = Server(), Worker()
    for call in (
        lambda: server.collect(round),
        lambda: server.broadcast(round, ZEROS_D),
        lambda: worker.send(round, ZEROS_D),
        lambda: worker.receive(round),
    ):
        with pytest.raises(ValueError, match="rounds are whole numbers from 0 on, got "):
            call()
    assert server.calls == worker.calls == []


@pytest.mark.parametrize("wrong_d", [ZEROS_D[1:], ZEROS_D.astype(np.float64), [0, 0, 0], None])
def test_vectors_are_float32_of_d(wrong_d):
    server, worker = Server(), Worker()
    with pytest.raises(ValueError, match=r"params_d must be a NumPy array, float32 \[3\]; got "):
        server.broadcast(0, wrong_d)
    with pytest.raises(ValueError, match=r"grad_d must be a NumPy array, float32 \[3\]; got "):
        worker.send(0, wrong_d)
    assert server.calls == worker.calls == []
    server.broadcast(0, ZEROS_D)  # what was refused was no round


@pytest.mark.parametrize("wait_s", [-1, math.nan, "1"])
def test_a_wait_is_a_time(wait_s):
    worker = Worker()
    for call in (lambda: worker.send(0, ZEROS_D, wait_s), lambda: worker.receive(0, wait_s)):
        with pytest.raises(ValueError, match="wait_s is a time of 0 s or more, or None; got "):
            call()
    assert worker.calls == []


def test_rounds_increase():
    server = Server()
    server.collect(4)
    server.broadcast(4, ZEROS_D)
    for round in (0, 4):
        with pytest.raises(ValueError, match=f"round 4 has been collected, got round {round}"):
            server.collect(round)
        with pytest.raises(ValueError, match=f"round 4 has been broadcast, got round {round}"):
            server.broadcast(round, ZEROS_D)
    assert len(server.calls) == 2


def test_a_round_that_was_interrupted_was_collected(monkeypatch):
    server = Server()

    def interrupt(round, on_columns):
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "_collect", interrupt)
    with pytest.raises(KeyboardInterrupt):
        server.collect(0)
    with pytest.raises(ValueError, match="round 0 has been collected"):
        server.collect(0)


def test_who_is_forgotten_is_dead_before_the_link_hears_of_it():
    server = Server()
    server.forget(1)
    assert server.calls == [("forget", 1, (True, False))]
    for row in (-1, 2):
        with pytest.raises(ValueError, match=rf"rows are 0\.\.1, got {row}"):
            server.forget(row)
    assert len(server.calls) == 1


def test_closing_is_once_and_ends_all_else():
    server, worker = Server(), Worker()
    for end in (server, worker):
        end.close()
        end.close()
    for call in (lambda: server.collect(0), lambda: server.broadcast(0, ZEROS_D)):
        with pytest.raises(ValueError, match="the server has closed this link"):
            call()
    for call in (lambda: worker.send(0, ZEROS_D), lambda: worker.receive(0)):
        with pytest.raises(ValueError, match="worker 1 has closed its end"):
            call()
    assert server.calls == worker.calls == ["close"]
    server.forget(0)  # by a thread that has not heard of the end
    assert server.waiting_for() == [1]


def test_the_newest_model_is_returned_and_the_one_held_where_there_is_none():
    worker = Worker(give_up_s=7.0)
    first, second = Model(2, ZEROS_D), Model(5, ZEROS_D)
    assert worker.receive(0, wait_s=0.5) is None
    worker.models = [first]
    assert worker.receive(1, wait_s=99) is first
    assert worker.receive(2) is worker.receive(0) is first  # there is no newer one
    worker.models = [first, second]
    assert worker.receive(2) is second
    assert worker.receive(6, wait_s=0) is None
    assert worker.receive(5) is second
    assert [call[1:] for call in worker.calls] == [
        (0, 0.5),
        (1, 7.0),
        (3, 0.0),
        (3, 0.0),
        (3, 0.0),
        (6, 0),
        (6, 0.0),
    ]


def test_a_server_that_has_left_is_told_only_where_it_is_needed():
    worker = Worker()
    worker.models = [Model(2, ZEROS_D)]
    worker.receive(2)
    worker.left = True
    assert worker.receive(2).round == 2
    with pytest.raises(LinkError, match="send the parameters of round 3, but it has closed"):
        worker.receive(3, wait_s=0)


def test_who_hears_nothing_gives_up(monkeypatch):
    worker, now = Worker(give_up_s=10.0), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def wait(round, wait_s):
        now[0] += wait_s

    monkeypatch.setattr(worker, "_receive", wait)
    assert worker.receive(0, wait_s=9.0) is None
    for wait_s in (None, 11.0):
        with pytest.raises(LinkError, match="waited 10 s for the server to send the parameters of"):
            worker.receive(0, wait_s)
