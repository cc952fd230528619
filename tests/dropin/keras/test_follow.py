"""How a worker's epochs follow what the server tells, without a job."""

from collections import deque
from types import SimpleNamespace

import pytest

from aggregathor.cluster.ranks import AGAIN
from aggregathor.dropin.keras.follow import FitLeft, Follower, News

ARGUMENTS = [1, "arguments", {"epochs": 2, "verbose": 0}]
SHAPE = [1, "shape", {"steps": 3}]
LOGS = [1, "logs", {"epoch": 0, "logs": {"loss": 0.5}}]


class Ranks:
    """A server that says each of these when it is waited for, or when told to say it at once."""

    def __init__(self, later, now=()):
        self.later, self.now = deque(later), deque(now)

    def heard(self):
        return self.now.popleft() if self.now else None

    def wait(self, until, whom):
        while not until():
            self.now.append(self.later.popleft())  # IndexError: it would wait for ever


def follower(*later, now=()):
    ranks = Ranks(later, [ARGUMENTS, SHAPE, *now])
    found = Follower(ranks, News(ranks), 1, SimpleNamespace(stop_training=False))
    found.first().set_params({})
    found.made = 0
    return found, ranks


def test_an_epoch_has_the_servers_steps_and_then_waits_for_its_word():
    found, ranks = follower(LOGS)
    steps = 0
    while found.goes_on():
        found.made += 1
        steps += 1
    assert steps == 3
    assert not ranks.later


def test_what_the_server_says_earlier_ends_the_epoch():
    found, ranks = follower()
    found.made += 1
    assert found.goes_on()
    ranks.now.append(LOGS)
    assert not found.goes_on()


def test_a_round_that_is_repeated_is_a_step_more():
    """Else the server would wait for a gradient, and this worker for the end of the epoch."""
    found, _ = follower([0, AGAIN, {}], LOGS)
    found.made = 3
    assert found.goes_on()
    found.made += 1
    assert not found.goes_on()


def test_what_is_counted_is_never_too_much():
    found, _ = follower()
    for rounds in (1, 1, 2, 1):  # a step that sometimes makes two
        found.count(rounds, 1, True)
    assert found.made == 1 + 1 + 1 + 0.5
    found.made = 0
    found.count(2, 4, False)  # the data ended after two of four steps
    found.count(5, 4, False)  # it has missed a round
    found.count(0, 4, False)  # nothing is trained
    assert found.made == 2 + 5 + 4


def test_a_fit_that_the_server_has_left_is_left_after_the_epochs_that_it_had():
    found, _ = follower(now=[LOGS, [1, "left", {}]])
    assert not found.goes_on()
    found._epoch = 1
    with pytest.raises(FitLeft):
        found.goes_on()


def test_news_of_another_fit_wait_for_it():
    """A callback may fit another model."""
    ranks = Ranks([], [[2, "arguments", {}], [1, "end", {}], [1, "left", {}]])
    news = News(ranks)
    assert news.next(1) == ("end", {})
    news.forget(1)
    assert news.next(2) == ("arguments", {})
    assert news.next(2) is None
