"""Every way to write a locked variable meets the layers that the table says, and no others."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import aggregathor.locking
from aggregathor import ops
from aggregathor.locking import Guard, KernelLock, LockError
from tests.locking.ways import MATRIX

PAGE = Path(aggregathor.locking.__file__).with_name("SECURITY.md")
WAYS = pytest.mark.parametrize("way", MATRIX, ids=lambda way: way.__name__)


def variable():
    # On the heap by itself: memory that nobody else shares.
    return tf.Variable(tf.random.uniform([2, 3]) * 0, name="kernel")


@WAYS
def test_the_scan(way):
    v = variable()
    with contextlib.closing(Guard("rank 1")) as guard:
        guard.lock([v])
        if "S" in MATRIX[way]:
            with pytest.raises(LockError, match="rank 1 would write kernel"):
                way(v)
            np.testing.assert_array_equal(v, 0)
        else:
            way(v)
            assert (v.numpy() != 0).any()


@WAYS
def test_the_kernels(way):
    v = variable()
    with contextlib.closing(KernelLock("rank 1", ("_of_tests", b"token"))) as lock:
        lock.lock(v, "kernel")
        refused = lock.refused().total()
        # A thread, or a function of Python, has errors of its own.
        with contextlib.suppress(tf.errors.OpError):
            way(v)
        assert (lock.refused().total() > refused) == ("K" in MATRIX[way])
        assert (v.numpy() != 0).any() == (not {*MATRIX[way]} & {*"KC"})


@WAYS
def test_the_digest(way):
    v = variable()
    told = []
    store = ops.kernels().digest_store(1, told.append)
    with contextlib.closing(store):
        store.record([tf.zeros([2, 3])], [0])
        store.compare([v.read_value()], [0])
        assert told == []
        way(v)
        store.compare([v.read_value()], [0])
    # What it does not see has changed nothing.
    assert bool(told) == ("D" in MATRIX[way]) == bool((v.numpy() != 0).any())


def test_the_page_tells_what_was_seen_here():
    cells = {"S": "refused", "K": "refused", "C": "a copy", "D": "seen"}
    layers = ("S", "KC", "D")
    told = {}
    for line in PAGE.read_text().splitlines():
        name, _, *row = line.strip("| ").split(" | ") if line.count("|") == 6 else ("", "")
        told[name] = row
    for way, met in MATRIX.items():
        expected = [next((cells[m] for m in met if m in layer), "–") for layer in layers]
        assert told[way.__name__] == expected, way.__name__


def test_none_is_met_by_nothing():
    assert len(MATRIX) >= 25
    assert all(MATRIX.values())
