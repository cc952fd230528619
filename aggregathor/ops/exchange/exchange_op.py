"""Channels: a function of Python, between arrays, in the middle of TensorFlow's graphs.

Both kinds take a list of tensors, d numbers in all, join them to a vector [d] of float32 or
float64, call a function and cut what it returns into tensors; either list may be empty. Calls take
their turns. In a ``tf.function`` or a v1 graph an error of the function becomes one of
TensorFlow's.
"""

from __future__ import annotations

import atexit
import ctypes
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf
from numpy.typing import DTypeLike

if TYPE_CHECKING:
    from lossympi.link import NativeRound

# Takes the values, or None where there are none; returns the results, or None. The values are valid
# until it is called again, and so must the results be. [d] of the channel's dtype both.
Function = Callable[[np.ndarray | None], np.ndarray | None]
# A part of a gradient that is shorter leaves with the rest: it costs a switch of threads.
LEAST_PART = 16384  # floats
# What the native op takes and gives; the rest is cast to what the channel is of.
DTYPES = (tf.float32, tf.float16, tf.bfloat16, tf.float64)


class Channel(Protocol):
    """What both kinds have."""

    def call(self, values: Sequence[tf.Tensor], specs: Sequence[tf.TensorSpec]) -> Any:
        """Returns the results; without any, in a graph, what control dependencies may be on."""

    def close(self, wait_s: float) -> None:
        """Lets later calls fail; a call that runs has this long to end."""


class NativeChannel:
    """A channel by way of the op ``AggregathorExchange``: no thread of TensorFlow's waits in it."""

    def __init__(
        self,
        ops: Any,
        library: ctypes.CDLL,
        function: Function,
        dim: int,
        native: NativeRound | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        """Starts the thread that calls the function.

        Args:
          ops: what ``tf.load_op_library`` returned.
          library: the same library.
          function: what is called.
          dim: d.
          native: rounds in C; where it makes them, the function is not called.
          dtype: float32 or float64; values are cast to it, and results from it.
        Raises:
          ValueError: ``native`` is of vectors of another length.
        """
        self._ops = ops
        self._library = library
        self._function = function
        self._dim = dim
        self._dtype = np.dtype(dtype)
        self._views: dict[int, np.ndarray] = {}
        self._result_d: np.ndarray | None = None  # the op reads it after the call
        self._native = native  # it lives as long as its functions may be called
        self._callback = _FUNCTION(self._call)
        _declare(library)
        address = native.address if native is not None else None
        self._handle = library.aggregathor_channel_open(
            address, self._callback, dim, self._dtype == np.float64
        )
        if self._handle == 0:
            floats = dim * self._dtype.itemsize // 4
            raise ValueError(f"the native rounds are of vectors that have not {floats} floats")
        # With one thread TensorFlow runs what waits for a gradient after the last of them.
        sends_parts = library.aggregathor_channel_sends_parts(self._handle)
        self._sends_parts = bool(sends_parts) and num_op_threads() > 1
        _open.append(self)

    def call(self, values: Sequence[tf.Tensor], specs: Sequence[tf.TensorSpec]) -> Any:
        """Returns the results; without any, in a graph, what control dependencies may be on."""
        parts = _place(values, self._dtype)
        with tf.device("/CPU:0"):
            early = [part for part in parts if self._leaves_early(part)]
            late = [part for part in parts if not self._leaves_early(part)]
            with tf.control_dependencies(self._fill(early)):
                results = self._ops.aggregathor_exchange(
                    values=[part.value for part in late],
                    firsts=[part.first for part in late],
                    filled=sum(part.size for part in early),
                    U=[spec.dtype if spec.dtype in DTYPES else self._dtype for spec in specs],
                    shapes=[spec.shape for spec in specs],
                    handle=self._handle,
                )
        if not specs:
            return results
        return [tf.cast(result, spec.dtype) for result, spec in zip(results, specs, strict=True)]

    def _leaves_early(self, part: _Part) -> bool:
        """Whether a part of what is sent is worth its own op, which sends it once it is there."""
        return self._sends_parts and part.size >= LEAST_PART and not tf.executing_eagerly()

    def _fill(self, parts: Sequence[_Part]) -> list[tf.Operation]:
        # A `tf.function` runs them in this order, and backpropagation comes from the end.
        return [
            self._ops.aggregathor_fill(value=part.value, first=part.first, handle=self._handle)
            for part in reversed(parts)
        ]

    def close(self, wait_s: float) -> None:
        """Lets later calls fail; a call that runs has this long to end."""
        # One that runs on still needs the function.
        if self._library.aggregathor_channel_close(self._handle, wait_s) and self in _open:
            _open.remove(self)

    def _call(self, sent: int | None, received: int | None, message: int) -> int:
        """Is called by the channel's thread."""
        self._result_d = None
        try:
            result = self._function(None if sent is None else self._view(sent))
            if received is not None:
                self._result_d = _checked(result, self._dim, self._dtype)
                ctypes.c_void_p.from_address(received).value = self._result_d.ctypes.data
        except BaseException as error:  # nobody above could take it
            text = f"{type(error).__name__}: {error}".encode()[: _MESSAGE_BYTES - 1]
            text = text.decode(errors="ignore").encode()  # no half of a character
            ctypes.memmove(message, text, len(text))  # the rest is 0
            return _code(error)
        return 0

    def _view(self, address: int) -> np.ndarray:
        if address not in self._views:
            number = ctypes.c_double if self._dtype == np.float64 else ctypes.c_float
            memory: Any = (number * self._dim).from_address(address)
            self._views[address] = np.ctypeslib.as_array(memory)
        return self._views[address]


class PythonChannel:
    """A channel by way of ``tf.numpy_function``: slower, same results."""

    def __init__(self, function: Function, dim: int, dtype: DTypeLike = np.float32) -> None:
        """Takes the function, d, and what values are cast to, and results from."""
        self._function = function
        self._dim = dim
        self._dtype = np.dtype(dtype)
        self._is_closed = False

    def call(self, values: Sequence[tf.Tensor], specs: Sequence[tf.TensorSpec]) -> Any:
        """Returns the results; without any, in a graph, what control dependencies may be on."""
        parts = [tf.cast(tf.reshape(value, [-1]), self._dtype) for value in values]
        inputs = [tf.concat(parts, axis=0)] if parts else []
        if tf.executing_eagerly():
            result = tf.convert_to_tensor(self._call(*(value.numpy() for value in inputs)))
        else:
            with tf.device("/CPU:0"):
                result = tf.numpy_function(self._call, inputs, self._dtype, stateful=True)
        if not specs:
            return result
        result.set_shape([self._dim])
        sizes = [spec.shape.num_elements() for spec in specs]
        return [
            tf.cast(tf.reshape(part, spec.shape), spec.dtype)
            for part, spec in zip(tf.split(result, sizes), specs, strict=True)
        ]

    def close(self, wait_s: float) -> None:
        """Lets later calls fail."""
        self._is_closed = True

    def _call(self, sent_d: np.ndarray | None = None) -> np.ndarray:
        if self._is_closed:
            raise RuntimeError("this channel was closed: the training has ended")
        result = self._function(sent_d)
        # TensorFlow may take over the memory of an array that it is given.
        if result is None:
            return np.zeros(0, self._dtype)
        return np.array(_checked(result, self._dim, self._dtype))


_MESSAGE_BYTES = 1024  # LOSSYMPI_MESSAGE_BYTES
_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)


def _declare(library: ctypes.CDLL) -> None:
    """Gives the functions of `exchange.h` their types."""
    library.aggregathor_channel_open.argtypes = (
        ctypes.c_void_p,
        _FUNCTION,
        ctypes.c_int64,
        ctypes.c_int,
    )
    library.aggregathor_channel_open.restype = ctypes.c_int64
    library.aggregathor_channel_sends_parts.argtypes = (ctypes.c_int64,)
    library.aggregathor_channel_close.argtypes = (ctypes.c_int64, ctypes.c_double)


class _Part(NamedTuple):
    """A tensor, where it goes in the vector, and its size."""

    value: tf.Tensor
    first: int
    size: int


def _place(values: Sequence[tf.Tensor], dtype: np.dtype) -> list[_Part]:
    """Places tensors one after the other."""
    parts: list[_Part] = []
    first = 0
    for value in values:
        size = value.shape.num_elements()
        known = value if value.dtype in DTYPES else tf.cast(value, dtype)
        parts.append(_Part(known, first, size))
        first += size
    return parts


def num_op_threads() -> int:
    """How many ops TensorFlow runs at once."""
    told = os.environ.get("TF_NUM_INTEROP_THREADS", "")
    return (
        tf.config.threading.get_inter_op_parallelism_threads()
        or (int(told) if told.isdigit() else 0)
        or len(os.sched_getaffinity(0))
    )


def _checked(result: Any, dim: int, dtype: np.dtype) -> np.ndarray:
    result_d = np.ascontiguousarray(result, dtype)
    if result_d.shape != (dim,):
        raise ValueError(f"a round gives {dtype} [{dim}], got {list(result_d.shape)}")
    return result_d


# As `tf.numpy_function` has them.
_CODES = {
    TypeError: tf.errors.INVALID_ARGUMENT,
    ValueError: tf.errors.INVALID_ARGUMENT,
    MemoryError: tf.errors.RESOURCE_EXHAUSTED,
    NotImplementedError: tf.errors.UNIMPLEMENTED,
}


def _code(error: BaseException) -> int:
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return code
    return getattr(error, "error_code", None) or tf.errors.UNKNOWN


_open: list[NativeChannel] = []


@atexit.register
def _close_all() -> None:
    """No thread may call Python while it ends."""
    for channel in list(_open):
        channel.close(wait_s=5.0)
