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


def follower(*later, now=(), shape=SHAPE, is_skipping=lambda: False):
    ranks = Ranks(later, [ARGUMENTS, shape, *now])
    model = SimpleNamespace(stop_training=False)
    found = Follower(ranks, News(ranks), 1, model, True, is_skipping)
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


UNKNOWN = [1, "shape", {"steps": None}]
DECIDED = [1, "decided", {"epoch": 0, "stop": False, "rates": [], "steps": 3}]
RESUMED = [1, "resumed", {}]


def skipped(found):
    while found.goes_on():
        found.made += 1
        assert found.made < 100
    return found.made


@pytest.mark.parametrize(
    ("shape", "later", "now"),
    [
        (SHAPE, [], []),
        (SHAPE, [], [LOGS, DECIDED]),
        (SHAPE, [], [LOGS]),
        (UNKNOWN, [LOGS, DECIDED], []),
        (UNKNOWN, [], [LOGS, DECIDED, RESUMED]),
        (UNKNOWN, [], [LOGS, DECIDED, [1, "end", {}]]),
    ],
    ids=["alike", "faster", "a little faster", "slower", "far ahead", "at the end"],
)
def test_all_steps_of_a_skipped_epoch_are_skipped_however_fast_the_server_does(shape, later, now):
    """Else this worker would skip the rest in the next epoch, and wait there for its end."""
    found, _ = follower(*later, now=now, shape=shape, is_skipping=lambda: True)
    assert skipped(found) == 3


def test_the_last_steps_that_are_skipped_are_of_the_epoch_in_which_the_server_goes_on():
    found, ranks = follower(RESUMED, shape=UNKNOWN, is_skipping=lambda: found.made < 2)
    found.made = 0
    assert found.goes_on()
    assert not ranks.later
    found.made = 2
    assert found.goes_on()
    ranks.now.append(LOGS)
    assert not found.goes_on()


def test_a_skipped_epoch_of_a_fit_that_was_left_is_left():
    found, _ = follower(now=[[1, "left", {}]], shape=UNKNOWN, is_skipping=lambda: True)
    with pytest.raises(FitLeft):
        found.goes_on()


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
