"""Notes of what tensors are, taken and compared within a step, by keyed digests.

Whoever does not know the key, which is drawn at random and stays here, cannot change a tensor
unseen: see `digest.h` for the probability. Both kinds do the same.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

# Is told, by their places, which of the tensors are not what was noted.
OnChange = Callable[[list[int]], None]


class Notes(Protocol):
    """What both kinds have."""

    def note(self, values: Sequence[tf.Tensor], places: Sequence[int]) -> Any:
        """Notes values, each by its place, each k-th time for the first; else forgets them.

        Returns what control dependencies may be on, in a graph.
        """

    def compare(self, values: Sequence[tf.Tensor], places: Sequence[int]) -> Any:
        """Tells of values that are not what was noted of their places, if anything was."""

    def forget(self) -> None:
        """Forgets what was noted."""

    def close(self) -> None:
        """Tells of nothing any more."""


class NativeNotes:
    """Notes by ops of the native library, on TensorFlow's threads."""

    def __init__(self, ops: Any, library: ctypes.CDLL, every: int, on_change: OnChange) -> None:
        """Begins with nothing noted.

        Args:
          ops: what ``tf.load_op_library`` returned.
          library: the same library.
          every: k.
          on_change: is called on a thread of TensorFlow's.
        """

        def called(places: Any, count: int) -> None:
            on_change(places[:count])

        self._ops = ops
        self._library = library
        self._callback = _CHANGED(called)
        library.aggregathor_notes_open.restype = ctypes.c_int64
        library.aggregathor_notes_open.argtypes = (ctypes.c_int64, _CHANGED)
        self._handle = library.aggregathor_notes_open(every, self._callback)
        _open.add(self)

    def note(self, values: Sequence[tf.Tensor], places: Sequence[int]) -> Any:
        """Notes values, each by its place, each k-th time for the first."""
        with tf.device("/CPU:0"):
            return self._ops.aggregathor_note(
                values=values, places=list(places), handle=self._handle
            )

    def compare(self, values: Sequence[tf.Tensor], places: Sequence[int]) -> Any:
        """Tells of values that are not what was noted of their places."""
        with tf.device("/CPU:0"):
            return self._ops.aggregathor_compare(
                values=values, places=list(places), handle=self._handle
            )

    def forget(self) -> None:
        """Forgets what was noted."""
        self._library.aggregathor_notes_forget(ctypes.c_int64(self._handle))

    def close(self) -> None:
        """Tells of nothing any more."""
        self._library.aggregathor_notes_close(ctypes.c_int64(self._handle))
        _open.discard(self)


class PythonNotes:
    """Notes by functions of Python."""

    def __init__(self, every: int, on_change: OnChange) -> None:
        """Begins with nothing noted."""
        self._every = every
        self._calls: Counter[int] = Counter()
        self._key = secrets.token_bytes(32)
        self._noted: dict[int, bytes] = {}
        self._on_change: OnChange | None = on_change

    def note(self, values: Sequence[tf.Tensor], places: Sequence[int]) -> Any:
        """Notes values, each by its place, each k-th time for the first."""
        return _run(lambda *arrays: self._note(arrays, places), values)

    def compare(self, values: Sequence[tf.Tensor], places: Sequence[int]) -> Any:
        """Tells of values that are not what was noted of their places."""
        return _run(lambda *arrays: self._compare(arrays, places), values)

    def forget(self) -> None:
        """Forgets what was noted."""
        self._noted = {}

    def close(self) -> None:
        """Tells of nothing any more."""
        self._on_change = None

    def _note(self, arrays: Sequence[np.ndarray], places: Sequence[int]) -> None:
        self._calls[places[0]] += 1
        is_due = self._calls[places[0]] % self._every == 0
        for place, array in zip(places, arrays, strict=True):
            self._noted.pop(place, None)
            if is_due:
                self._noted[place] = self._digest(array)

    def _compare(self, arrays: Sequence[np.ndarray], places: Sequence[int]) -> None:
        noted = dict(self._noted)
        changed = [
            place
            for place, array in zip(places, arrays, strict=True)
            if place in noted and noted[place] != self._digest(array)
        ]
        if changed and self._on_change is not None:
            self._on_change(changed)

    def _digest(self, array: np.ndarray) -> bytes:
        return hashlib.blake2b(array.tobytes(), key=self._key, digest_size=16).digest()


def _run(function: Callable[..., None], values: Sequence[tf.Tensor]) -> Any:
    if tf.executing_eagerly():
        return function(*(value.numpy() for value in values))
    with tf.device("/CPU:0"):
        return tf.numpy_function(function, values, [], stateful=True)


_CHANGED = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_int64), ctypes.c_int64)
_open: set[NativeNotes] = set()  # what is called must be there


@atexit.register
def _close_all() -> None:
    """No thread may call Python while it ends."""
    for notes in list(_open):
        notes.close()
