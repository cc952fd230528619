"""Writes that become writes of a copy: the variable stays as it is, and the script goes on."""

import contextlib
import re

import numpy as np
import pytest
import tensorflow as tf

from aggregathor.locking import Guard, LockError
from tests.locking.test_scan import ONES, OTHER, WRITES


@pytest.fixture
def guard():
    with contextlib.closing(Guard("rank 2")) as guard:
        yield guard


# What does not name the variable itself is refused, as without patches.
REFUSED = {"packed", "chosen", "argument", "variable argument", "numpy_function", "py_function"}


def variable_for(way):
    return tf.Variable(tf.zeros([2, 3]) if way != "count up" else 0, name="kernel")


@pytest.mark.parametrize("way", [way for way in WRITES if way not in REFUSED])
def test_a_write_goes_to_a_copy(way, guard, capsys):
    v = variable_for(way)
    guard.lock([v], patch=True)
    before = v.numpy()

    @tf.function
    def step():
        WRITES[way](v)
        return v.read_value()

    for _ in range(2):
        np.testing.assert_array_equal(step(), before)
        np.testing.assert_array_equal(v.numpy(), before)
        if way == "destroyed":  # the copy is gone, as the variable would be
            break
    said = capsys.readouterr().err
    assert re.search(r"rank 2: \w+ '\S+' made at \S+test_scan.py:\d+, in .* a copy of kernel", said)


@pytest.mark.parametrize("way", sorted(REFUSED))
def test_what_cannot_be_patched_is_refused(way, guard):
    v = variable_for(way)
    guard.lock([v], patch=True)
    with pytest.raises(LockError, match="rank 2 would write kernel"):
        tf.function(lambda: WRITES[way](v) and None)()
    np.testing.assert_array_equal(v.numpy(), 0)


def test_the_copy_holds_what_is_written_and_is_not_read(guard):
    v = tf.Variable([1.0, 2.0], name="kernel")
    guard.lock([v], patch=True)

    @tf.function
    def step():
        return v.assign_add([10.0, 10.0])  # and reads

    for written in ([11, 12], [21, 22]):
        np.testing.assert_array_equal(step(), [1, 2])
        (copy,) = guard._copies._made.values()
        value = tf.raw_ops.ReadVariableOp(resource=copy, dtype=tf.float32)
        np.testing.assert_array_equal(value, written)


def test_others_are_written_as_ever(guard):
    v = tf.Variable(ONES)
    guard.lock([v], patch=True)
    OTHER.assign(ONES)

    @tf.function
    def step():
        OTHER.assign_add(v)
        guard.allow(v.assign(3 * ONES, read_value=False))

    step()
    np.testing.assert_array_equal(OTHER, 2 * ONES)
    np.testing.assert_array_equal(v, 3 * ONES)


def test_what_was_traced_before_is_refused(guard):
    v = tf.Variable(ONES)
    step = tf.function(lambda: v.assign(ONES))
    step()
    with pytest.raises(LockError):
        guard.lock([v], patch=True)
