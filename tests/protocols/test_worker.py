"""The worker's half: what it asks of its link, message for message."""

import numpy as np
import pytest

from aggregathor.protocols.worker import SLICE_S, WorkerHalf
from lossympi import LinkError
from lossympi.link import Model

D = 3
GRAD_D = np.arange(D, dtype=np.float32)


class Link:
    """A worker's end that notes its calls and gives prepared answers; an exception is raised."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.calls = []

    def send(self, round, grad_d, wait_s=None):
        self.calls.append(("send", round, grad_d.tolist(), wait_s))
        return self._answer()

    def receive(self, round, wait_s=None):
        self.calls.append(("receive", round, wait_s))
        answer = self._answer()
        return answer if answer is None else Model(answer, np.full(D, answer, np.float32))

    def close(self):
        self._answer()

    def _answer(self):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Watch:
    """Notes when it is asked; ends a round at the time that it was given."""

    def __init__(self, until_s=np.inf):
        self.until_s = until_s
        self.looks = []

    def look(self, sending, round, waited_s):
        self.looks.append((sending, round, round_s(waited_s)))
        if waited_s >= self.until_s:
            raise TimeoutError(f"round {round} has taken too long")

    def ended(self, error):
        return EOFError(f"it has ended: {error}")

    def leave(self):
        self.until_s = 0.0


def round_s(seconds):
    return round(seconds, 3)


def half(link, watch=None, **more):
    """A half whose clock moves by a slice with each answer of the link."""
    return WorkerHalf(link, watch=watch, now=lambda: SLICE_S * len(link.calls), **more)


def test_a_round_is_a_send_and_a_receive():
    link = Link(True, 0, True, 1)
    worker = half(link)
    np.testing.assert_array_equal(worker.exchange(GRAD_D), np.zeros(D))
    np.testing.assert_array_equal(worker.exchange(2 * GRAD_D), np.ones(D))
    assert link.calls == [
        ("send", 0, [0, 1, 2], None),
        ("receive", 0, None),
        ("send", 1, [0, 2, 4], None),
        ("receive", 1, None),
    ]


def test_a_watch_looks_between_slices_of_a_wait():
    link, watch = Link(None, None, True, None, 0), Watch()
    half(link, watch).exchange(GRAD_D)
    assert [call[0] for call in link.calls] == ["send", "send", "send", "receive", "receive"]
    assert {call[-1] for call in link.calls} == {SLICE_S}
    assert watch.looks == [(True, 0, 0.2), (True, 0, 0.4), (False, 0, 0.2)]


@pytest.mark.parametrize("closed_early", [False, True])
def test_who_was_left_behind_goes_on_after_the_model_it_gets(closed_early):
    link = Link(not closed_early, 6, True, 7)
    worker = half(link)
    worker.exchange(GRAD_D)
    assert worker.round == 7
    worker.exchange(GRAD_D)
    assert [call[:2] for call in link.calls] == [
        ("send", 0), ("receive", 0), ("send", 7), ("receive", 7),
    ]  # fmt: skip


@pytest.mark.parametrize("answers", [[None] * 9, [True] + [None] * 9])
def test_what_the_watch_raises_ends_the_round(answers):
    worker = half(Link(*answers), Watch(until_s=1.0))
    with pytest.raises(TimeoutError, match="round 0 has taken too long"):
        worker.exchange(GRAD_D)
    assert worker.round == 0


def test_leaving_ends_a_wait():
    worker = half(Link(True, None, 0), Watch())
    worker.leave()
    with pytest.raises(TimeoutError):
        worker.exchange(GRAD_D)


@pytest.mark.parametrize("answers", [[LinkError("gone")], [True, LinkError("gone")]])
def test_the_watch_says_what_a_broken_link_means(answers):
    with pytest.raises(EOFError, match="it has ended: gone"):
        half(Link(*answers), Watch()).exchange(GRAD_D)
    with pytest.raises(LinkError, match="gone"):
        half(Link(*answers)).exchange(GRAD_D)


def test_an_attack_sees_the_round_and_takes_the_gradients_place():
    class Attack:
        def __call__(self, round, grad_d):
            return -(round + 1) * grad_d

        def state(self):
            return {"memory": np.ones(2)}

        def restore(self, state):
            self.restored = state

    attack = Attack()
    link = Link(True, 0, True, 1)
    worker = half(link, attack=attack)
    worker.exchange(GRAD_D)
    worker.exchange(GRAD_D)
    assert [call[2] for call in link.calls if call[0] == "send"] == [[0, -1, -2], [0, -2, -4]]
    assert worker.native(print) is None  # C knows of no attack
    state = worker.state()
    assert (int(state["round"]), list(state)) == (2, ["round", "attack/memory"])
    other = half(Link(), attack=Attack())
    other.restore(state)
    assert (other.round, list(other._attack.restored)) == (2, ["memory"])


def test_a_gradient_in_any_memory_order_leaves_whole():
    link = Link(True, 0)
    half(link).exchange(np.arange(2 * D, dtype=np.float32)[::2])
    assert link.calls[0][2] == [0, 2, 4]


def test_the_end_of_a_link_that_is_gone_is_no_error():
    half(Link(LinkError("gone"))).close()
