"""The native worker round, call by call: its end of a link is a Python object that notes all."""

import numpy as np
import pytest

from lossympi import backend
from tests.lossympi.rounds import InParts, Recorder, vector

pytestmark = pytest.mark.skipif(backend.native() is None, reason=backend.why_not_native())

D = Recorder.dim
SLICE_S = 0.2  # the native round looks up so often
UNKNOWN, INTERNAL = 2, 13  # absl::StatusCode


def slices(verb, answered, *, is_sending):
    """Returns the calls of a verb that is repeated until it is answered, and the looks between."""
    look = [("server_left",), ("idle", is_sending, False)]
    return [call for _ in range(answered - 1) for call in (verb, *look)] + [verb]


def test_a_round_sends_and_receives():
    end = Recorder(models=[0, 1])
    caller = end.caller()
    for round in range(2):
        np.testing.assert_array_equal(caller.run(vector(10 + round)), vector(round))
        assert caller.native.round == round + 1
    assert end.calls == [
        ("send", 0, 10, SLICE_S),
        ("receive", 0, SLICE_S),
        ("send", 1, 11, SLICE_S),
        ("receive", 1, SLICE_S),
    ]


def test_a_verb_that_takes_longer_is_repeated_with_the_same_arguments():
    end = Recorder(sends=[False, False, True], models=[None, None, None, 0])
    np.testing.assert_array_equal(end.caller().run(vector(7)), vector(0))
    assert end.calls == [
        *slices(("send", 0, 7, SLICE_S), 3, is_sending=True),
        *slices(("receive", 0, SLICE_S), 4, is_sending=False),
    ]


def test_who_was_left_behind_goes_on_after_the_model_that_came():
    end = Recorder(models=[6, 7])
    caller = end.caller()
    np.testing.assert_array_equal(caller.run(vector(1)), vector(6))
    assert caller.native.round == 7
    np.testing.assert_array_equal(caller.run(vector(2)), vector(7))
    assert [call[:2] for call in end.calls] == [
        ("send", 0),
        ("receive", 0),
        ("send", 7),
        ("receive", 7),
    ]


def test_the_round_may_be_set_between_two():
    end = Recorder(models=[4])
    caller = end.caller()
    caller.native.round = 4
    caller.run(vector(1))
    assert [call[:2] for call in end.calls] == [("send", 4), ("receive", 4)]


def test_a_server_that_leaves_while_a_gradient_is_to_leave():
    end = Recorder(sends=[False, False], left=[False, True], stops_at=2)
    caller = end.caller()
    assert caller.run(vector(7)) == UNKNOWN
    assert caller.message.value == b"LinkError: no more"
    send = ("send", 0, 7, SLICE_S)
    assert end.calls == [
        *(send, ("server_left",), ("idle", True, False)),
        *(send, ("server_left",), ("idle", True, True)),
    ]
    assert caller.native.round == 0


def test_a_server_that_leaves_while_a_model_is_to_come():
    end = Recorder(models=[None, None], left=[False, True], stops_at=2)
    caller = end.caller()
    assert caller.run(vector(7)) == UNKNOWN
    receive = ("receive", 0, SLICE_S)
    assert end.calls == [
        ("send", 0, 7, SLICE_S),
        *(receive, ("server_left",), ("idle", False, False)),
        *(receive, ("server_left",), ("idle", False, True)),
    ]
    assert caller.native.round == 0


def test_what_idle_does_not_raise_lets_the_round_go_on_though_the_server_has_left():
    """What it has sent before may still come."""
    end = Recorder(models=[None, 0], left=[True])
    np.testing.assert_array_equal(end.caller().run(vector(7)), vector(0))
    assert ("idle", False, True) in end.calls


def test_a_round_that_idle_has_ended_is_made_again_from_its_gradient_on():
    end = Recorder(models=[None, 0], stops_at=1)
    caller = end.caller()
    assert caller.run(vector(7)) == UNKNOWN
    np.testing.assert_array_equal(caller.run(vector(8)), vector(0))
    assert [call[:3] for call in end.calls if call[0] == "send"] == [("send", 0, 7), ("send", 0, 8)]


def test_a_model_that_was_overwritten_is_received_again_and_nothing_sent():
    end = Recorder(models=[3, None, 5, 6], intact=[False, True])
    caller = end.caller()
    caller.native.round = 3
    caller.run(vector(1))
    assert not caller.is_intact()
    np.testing.assert_array_equal(caller.run(None), vector(5))
    assert caller.is_intact()
    assert caller.native.round == 6
    caller.run(vector(2))
    assert end.calls == [
        ("send", 3, 1, SLICE_S),
        ("receive", 3, SLICE_S),
        ("is_intact",),
        *slices(("receive", 3, SLICE_S), 2, is_sending=False),
        ("is_intact",),
        ("send", 6, 2, SLICE_S),
        ("receive", 6, SLICE_S),
    ]


def test_parts_are_sent_as_they_are_written_and_the_rest_with_the_round():
    end = InParts(sends=[False, True], models=[0])
    caller = end.caller()
    assert caller.send_part(vector(7), 3, 2, step=5) == 0
    assert caller.send_part(vector(7), 0, 1, step=5) == 0
    caller.run(vector(7))
    assert end.calls == [
        ("written", 3, 2),
        *slices(("send_written", 0, 7, SLICE_S), 2, is_sending=True),
        ("written", 0, 1),
        ("send_written", 0, 7, SLICE_S),
        ("clear_written",),
        ("send", 0, 7, SLICE_S),
        ("receive", 0, SLICE_S),
    ]


def test_what_a_step_has_written_that_ended_without_a_round_is_forgotten():
    end = InParts(models=[0])
    caller = end.caller()
    caller.send_part(vector(7), 0, 2, step=5)
    caller.send_part(vector(8), 1, 3, step=6)
    caller.run(vector(8))
    caller.send_part(vector(9), 1, 3, step=7)
    assert end.calls == [
        ("written", 0, 2),
        ("send_written", 0, 7, SLICE_S),
        ("clear_written",),
        ("written", 1, 3),
        ("send_written", 0, 8, SLICE_S),
        ("clear_written",),
        ("send", 0, 8, SLICE_S),
        ("receive", 0, SLICE_S),
        ("written", 1, 3),  # the round has cleared what was before
        ("send_written", 1, 9, SLICE_S),
    ]


def test_a_part_that_idle_ends_fails():
    end = InParts(sends=[False], stops_at=1)
    caller = end.caller()
    assert caller.send_part(vector(7), 0, 2) == UNKNOWN
    assert caller.message.value == b"LinkError: no more"


@pytest.mark.parametrize("verb", ["send", "receive", "server_left"])
def test_what_an_end_raises_fails_the_round_with_its_words(verb, monkeypatch):
    def fail(*_):
        raise ValueError("this end is closed")

    end = Recorder(models=[None])
    monkeypatch.setattr(end, verb, fail)
    caller = end.caller()
    assert caller.run(vector(7)) == INTERNAL
    assert caller.message.value.startswith(b"ValueError: this end is closed")


def test_a_model_of_another_length_is_an_error():
    end = Recorder()
    end.receive = lambda round, wait_s: (0, np.zeros(D + 1, np.float32))
    caller = end.caller()
    assert caller.run(vector(7)) == INTERNAL
    assert b"params_d must be a NumPy array, float32 [5]; got float32 [6]" in caller.message.value


def test_an_end_may_lend_the_memory_that_its_gradient_is_written_to():
    end = Recorder(models=[0])
    grad_d = np.zeros(D, np.float32)
    end.next_grad = lambda: grad_d
    caller = end.caller()
    caller.outgoing_d()[:] = 7
    assert (grad_d == 7).all()
