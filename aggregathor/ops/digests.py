"""Keyed digests of tensors, recorded and compared within a step.

The key is drawn at random and stays here: whoever does not know it cannot change a tensor without
changing its digest, but with the probability that `digest.h` derives. Both kinds of store do the
same.
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

# Called with the places of the tensors whose digest changed.
OnChange = Callable[[list[int]], None]


class DigestStore(Protocol):
    """Digests of tensors, each known by its place, a number."""

    def record(self, values: Sequence[tf.Tensor], places: Sequence[int]) -> Any:
        """Records the digest of each value, in every k-th call for the first place.

        In the other calls the digests of these places are forgotten.

        Returns:
          In a graph, an operation for control dependencies.
        """

    def compare(self, values: Sequence[tf.Tensor], places: Sequence[int]) -> Any:
        """Reports the places whose value has not the digest that was recorded, if one was."""

    def forget(self) -> None:
        """Forgets all digests."""

    def close(self) -> None:
        """Reports nothing any more."""


class NativeDigestStore:
    """A store of the native library; its ops run on TensorFlow's threads."""

    def __init__(self, ops: Any, library: ctypes.CDLL, every: int, on_change: OnChange) -> None:
        """Opens an empty store.

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
        library.aggregathor_digests_open.restype = ctypes.c_int64
        library.aggregathor_digests_open.argtypes = (ctypes.c_int64, _CHANGED)
        self._handle = library.aggregathor_digests_open(every, self._callback)
        _open.add(self)

    def record(self, values: Sequence[tf.Tensor], places: Sequence[int]) -> Any:
        """Records the digest of each value, in every k-th call for the first place."""
        with tf.device("/CPU:0"):
            return self._ops.aggregathor_record_digests(
                values=values, places=list(places), handle=self._handle
            )

    def compare(self, values: Sequence[tf.Tensor], places: Sequence[int]) -> Any:
        """Reports the places whose value has not the digest that was recorded."""
        with tf.device("/CPU:0"):
            return self._ops.aggregathor_compare_digests(
                values=values, places=list(places), handle=self._handle
            )

    def forget(self) -> None:
        """Forgets all digests."""
        self._library.aggregathor_digests_forget(ctypes.c_int64(self._handle))

    def close(self) -> None:
        """Reports nothing any more."""
        self._library.aggregathor_digests_close(ctypes.c_int64(self._handle))
        _open.discard(self)


class PythonDigestStore:
    """A store of Python functions."""

    def __init__(self, every: int, on_change: OnChange) -> None:
        """Opens an empty store."""
        self._every = every
        self._calls: Counter[int] = Counter()
        self._key = secrets.token_bytes(32)
        self._digests: dict[int, bytes] = {}
        self._on_change: OnChange | None = on_change

    def record(self, values: Sequence[tf.Tensor], places: Sequence[int]) -> Any:
        """Records the digest of each value, in every k-th call for the first place."""
        return _run(lambda *arrays: self._record(arrays, places), values)

    def compare(self, values: Sequence[tf.Tensor], places: Sequence[int]) -> Any:
        """Reports the places whose value has not the digest that was recorded."""
        return _run(lambda *arrays: self._compare(arrays, places), values)

    def forget(self) -> None:
        """Forgets all digests."""
        self._digests = {}

    def close(self) -> None:
        """Reports nothing any more."""
        self._on_change = None

    def _record(self, arrays: Sequence[np.ndarray], places: Sequence[int]) -> None:
        self._calls[places[0]] += 1
        is_due = self._calls[places[0]] % self._every == 0
        for place, array in zip(places, arrays, strict=True):
            self._digests.pop(place, None)
            if is_due:
                self._digests[place] = self._digest(array)

    def _compare(self, arrays: Sequence[np.ndarray], places: Sequence[int]) -> None:
        recorded = dict(self._digests)
        changed = [
            place
            for place, array in zip(places, arrays, strict=True)
            if place in recorded and recorded[place] != self._digest(array)
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
_open: set[NativeDigestStore] = set()  # a store that may still call must exist


@atexit.register
def _close_all() -> None:
    """Keeps TensorFlow's threads from calling Python while it ends."""
    for store in list(_open):
        store.close()
