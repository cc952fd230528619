import math

import pytest

from lossympi.plane.outgoing import Outgoing


def run(outgoing, until):
    """Returns what leaves and when, if each leaves as soon as it may."""
    left, now = [], 0.0
    while (now := max(now, outgoing.next_at())) < until:
        index = outgoing.head()
        outgoing.sent(index, now)
        left.append(("end" if index is None else index, pytest.approx(now)))
    return left


def test_data_once_then_three_ends():
    outgoing = Outgoing(2, repeats=False)
    assert run(outgoing, 1.0) == [(0, 0), (1, 0), ("end", 0), ("end", 0.0005), ("end", 0.001)]
    assert outgoing.next_at() == math.inf
    assert outgoing.all_left


def test_ends_go_on_until_stopped():
    times = [at for what, at in run(Outgoing(1, repeats=True), 0.006) if what == "end"]
    assert times == [0, 0.0005, 0.001, 0.003, 0.005]


def test_what_is_asked_for_leaves_once_and_then_an_end():
    outgoing = Outgoing(4, repeats=True)
    run(outgoing, 0.002)
    outgoing.ask([1, 3])
    outgoing.ask([3, 2])
    got = [what for what, _ in run(outgoing, 0.0019)]
    assert got == [1, 3, 2, "end"]


def test_asking_before_an_end_is_ignored():
    outgoing = Outgoing(2, repeats=True)
    outgoing.sent(0, 0.0)
    outgoing.ask([0])
    assert not outgoing.all_left
    assert [what for what, _ in run(outgoing, 0.0001)] == [1, "end"]
