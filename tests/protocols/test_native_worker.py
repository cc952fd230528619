"""The native worker round does what the worker's half does: the same calls, the same ends.

Both are driven over the same end of a link, which answers from the same script. The script and
where the watch ends a wait are drawn at random; what is noted are the verbs that reach the link,
with their arguments, and what the watch is asked.
"""

import numpy as np
import pytest

from aggregathor.protocols.worker import WorkerHalf
from lossympi import LinkError, backend
from lossympi.link import Model
from tests.lossympi.rounds import Caller, Recorder, vector

pytestmark = pytest.mark.skipif(backend.native() is None, reason=backend.why_not_native())


class Link:
    """A worker's end over a recorder, as ``WorkerHalf`` has it."""

    def __init__(self, end):
        self.end = end

    def send(self, round, grad_d, wait_s):
        return self._answered(self.end.send(round, grad_d, wait_s))

    def receive(self, round, wait_s):
        found = self._answered(self.end.receive(round, wait_s))
        return None if found is None else Model(*found)

    def native(self, idle):
        return self.end.native(idle)

    def _answered(self, answer):
        if answer:
            return answer
        if self.end.server_left():
            raise LinkError("the server has closed the link")
        return None


class Watch:
    """Notes with the link's calls what it is asked; ends the waits that it was told to."""

    def __init__(self, calls, stops_at):
        self._calls, self._stops_at, self._asked = calls, stops_at, 0

    def look(self, sending, round, waited_s):
        assert 0 <= waited_s < 10
        self._calls.append(("look", sending, round))
        self._asked += 1
        if self._asked in self._stops_at:
            raise TimeoutError(f"look {self._asked}")

    def ended(self, error):
        self._calls.append(("ended", str(error).partition(" in round")[0]))
        return EOFError("the training has ended")


class Driver:
    """A half with a script of its own; ``exchange`` as the half's, by ``WorkerHalf`` itself."""

    def __init__(self, script, stops_at):
        self.end = Recorder(**script)
        self.half = WorkerHalf(Link(self.end), watch=Watch(self.end.calls, stops_at))

    @property
    def calls(self):
        """Without the question whether the server has left, which a link asks itself."""
        return [call for call in self.end.calls if call[0] != "server_left"]

    def exchange(self, grad_d):
        return self.half.exchange(grad_d)

    def receive_again(self, round):
        self.half.round = round
        return self.half.receive()


class Native(Driver):
    """The same by the native fast path of the half."""

    def __init__(self, script, stops_at):
        super().__init__(script, stops_at)
        self._failures = []
        native = self.half.native(self._failures.append)
        self._caller = Caller(_Given(native))

    def exchange(self, grad_d):
        return self._result(self._caller.run(grad_d))

    def receive_again(self, round):
        return self._result(self._caller.run(None))

    def _result(self, found):
        if isinstance(found, int):
            raise self._failures.pop()
        assert not self._failures
        return found


class _Given:
    def __init__(self, native):
        self._native = native

    def native(self, _):
        return self._native


def outcome(call, *args):
    """Returns the vector, or what was raised in its place."""
    try:
        return call(*args).tolist()
    except (TimeoutError, EOFError) as error:
        return repr(error)


def both(script, stops_at, steps):
    """Drives both through the same steps, and compares after each."""
    half, native = Driver(script, stops_at), Native(script, stops_at)
    for step in steps:
        found = [step(driver) for driver in (half, native)]
        assert found[0] == found[1]
        assert half.half.round == native.half.round
        assert half.calls == native.calls
    return half.calls


def exchanging(number):
    return lambda driver: outcome(driver.exchange, vector(number))


def test_a_round_that_is_left_behind_and_one_that_waits():
    calls = both(
        {"sends": [False, True, True], "models": [None, 6, 7]},
        stops_at=(),
        steps=[exchanging(1), exchanging(2)],
    )
    assert calls == [
        ("send", 0, 1, 0.2),
        ("look", True, 0),
        ("send", 0, 1, 0.2),
        ("receive", 0, 0.2),
        ("look", False, 0),
        ("receive", 0, 0.2),
        ("send", 7, 2, 0.2),
        ("receive", 7, 0.2),
    ]


@pytest.mark.parametrize("sends", [[False], [True]])
def test_a_server_that_leaves(sends):
    calls = both({"sends": sends, "models": [None], "left": [True]}, (), [exchanging(1)])
    assert calls[-1] == ("ended", "the server has closed the link")


def test_a_model_that_is_received_again():
    calls = both(
        {"models": [3, None, 5, 6]},
        stops_at=(),
        steps=[
            lambda driver: setattr(driver.half, "round", 3),
            exchanging(1),
            lambda driver: outcome(driver.receive_again, 3),
            exchanging(2),
        ],
    )
    assert [call[:2] for call in calls if call[0] != "look"] == [
        *[("send", 3), ("receive", 3), ("receive", 3), ("receive", 3)],
        *[("send", 6), ("receive", 6)],
    ]


def test_whatever_the_link_answers_and_the_watch_decides():
    seen = set()
    for seed in range(300):
        rng = np.random.default_rng(seed)
        models = np.cumsum(rng.integers(1, 3, 20)).tolist()
        script = {
            "sends": rng.choice([False, True], 30).tolist(),
            "models": [each for m in models for each in [None] * rng.integers(0, 3) + [m]],
            "left": (rng.random(60) < 0.05).tolist(),
        }
        stops_at = set(rng.integers(1, 40, 3).tolist())
        calls = both(script, stops_at, [exchanging(number) for number in range(8)])
        seen |= {call[0] for call in calls}
    assert seen == {"send", "receive", "look", "ended"}
