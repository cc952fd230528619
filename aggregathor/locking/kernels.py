"""The kernel lock: this process's CPU kernels refuse to write a locked variable, whoever asks.

The native half (`ops/tf/kernel_lock_op.cc`) has every kernel checked whose op is not known to be
harmless (`effects`), and identifies variables by their objects. A locked variable can be written by
a node that has the token, and by a thread that is allowed to. SECURITY.md says what this
guarantees, and what it does not.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections import Counter
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from aggregathor import ops
from aggregathor.internals.tensorflow import (
    after_loading_a_library,
    clear_kernel_cache,
    reference_of,
    registered_kernels,
    synchronous_execution,
)
from aggregathor.locking import effects

_MESSAGE_BYTES = 1024  # AGGREGATHOR_LOCK_MESSAGE_BYTES
_ON_CPU = ("CPU", "DEFAULT")  # a kernel for any device is for the CPU too
_OURS = frozenset({"AggregathorLock", "AggregathorLockReference"})


class NoKernelLock(Exception):
    """This process cannot have the kernel lock; the message says why."""


class _Lock(ctypes.Structure):
    """``AggregathorLock`` of `ops/tf/kernel_lock.h`."""

    _fields_ = (
        ("ops", ctypes.POINTER(ctypes.c_char_p)),
        ("num_ops", ctypes.c_int64),
        ("in_place_ops", ctypes.POINTER(ctypes.c_char_p)),
        ("num_in_place_ops", ctypes.c_int64),
        ("python_ops", ctypes.POINTER(ctypes.c_char_p)),
        ("num_python_ops", ctypes.c_int64),
        ("num_kernels", ctypes.c_int64),
        ("who", ctypes.c_char_p),
        ("attribute", ctypes.c_char_p),
        ("token", ctypes.c_char_p),
        ("token_bytes", ctypes.c_int64),
        ("factory_offset", ctypes.c_int64),
    )


class KernelLock:
    """Checks of this process's kernels, and the variables that they refuse to write.

    Attributes:
      num_checked: how many of the kernels that TensorFlow lists are checked.
    """

    def __init__(self, who: str, allowed: tuple[str, bytes], *, factory_offset: int = 0) -> None:
        """Has the kernels checked that are made from now on, also those of libraries to come.

        Functions that have run before keep their kernels, unchecked; ops that run eagerly get new
        ones. Once in a process is enough: the checks stay, and refuse nothing once closed.

        Args:
          who: who may not write, such as "rank 2".
          allowed: an attribute and its value: nodes that have it may write.
          factory_offset: for tests, another offset of the factories of TensorFlow's kernels.
        Raises:
          NoKernelLock: TensorFlow is not the one that the library was built for, or does not store
            its kernels as that one does; then nothing has changed.
        Cost: 0.1 s once, and 0.04 us for each run of a checked kernel (BUILD_NOTES.md).
        """
        self.num_checked = 0
        self._who = who
        self._attribute, self._token = allowed
        self._offset = factory_offset
        self._ops, self._library = _native()
        self._install()
        clear_kernel_cache()
        self._stop_installing = after_loading_a_library(self._install)

    def close(self) -> None:
        """Unlocks all variables."""
        self._stop_installing()
        self._library.aggregathor_lock_clear()

    def lock(self, variable: Any, name: str) -> Any:
        """Locks a ``tf.Variable``, or a reference of v1: at once, or by the op that is returned.

        Returns None for a variable that is not on a CPU, which is not locked.
        """
        if variable.device and "CPU" not in variable.device.upper():
            return None
        # In a graph: outside of any branch, and before anything else.
        with tf.control_dependencies(None), tf.device(variable.device):
            if hasattr(variable, "handle"):
                return self._ops.aggregathor_lock(variable.handle, called=name)
            return self._ops.aggregathor_lock_reference(reference_of(variable), called=name)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Allows this thread to write locked variables eagerly."""
        # Ops that run on a thread of their own would not be allowed.
        with synchronous_execution():
            self._allow(True)
            try:
                yield
            finally:
                self._allow(False)

    def refused(self) -> Counter[str]:
        """Returns how often an op was refused in this process, by op."""
        size = self._library.aggregathor_lock_refused(None, 0) + _MESSAGE_BYTES  # it may grow
        lines = ctypes.create_string_buffer(size)
        self._library.aggregathor_lock_refused(lines, size)
        pairs = (line.split() for line in lines.value.decode().splitlines())
        return Counter({op: int(count) for op, count in pairs})

    def _allow(self, may: bool) -> None:
        done = self._library.aggregathor_lock_let_thread_write(
            self._token, len(self._token), int(may)
        )
        if not done:
            raise RuntimeError("another kernel lock has taken this one's place")

    def _install(self) -> None:
        listed = [each.op for each in registered_kernels() if each.device_type in _ON_CPU]
        checked = {op for op in listed if not _is_harmless(op)}
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        lock = _Lock(
            *_names(checked - effects.IN_PLACE - effects.PYTHON),
            *_names(checked & effects.IN_PLACE),
            *_names(checked & effects.PYTHON),
            sum(op in checked for op in listed),
            self._who.encode(),
            self._attribute.encode(),
            self._token,
            len(self._token),
            self._offset,
        )
        num_checked = self._library.aggregathor_lock_install(ctypes.byref(lock), message)
        if num_checked < 0:
            raise NoKernelLock(message.value.decode())
        self.num_checked = num_checked


def _native() -> tuple[Any, Any]:
    """Returns the ops and the library.

    Raises:
      NoKernelLock: there is none, or it was built for a TensorFlow that is not exactly this one.
    """
    state = ops.state()
    if state.in_use == "tensorflow":
        raise NoKernelLock(f"it needs the native library: {state.reason}")
    built_for = state.build.get("tensorflow", "")
    if built_for != tf.__version__:
        raise NoKernelLock(
            f"the native library was built for TensorFlow {built_for} and {tf.__version__} is "
            f"installed; {ops.REBUILD}"
        )
    loaded = ops.kernels().loaded()
    library = loaded[1]
    library.aggregathor_lock_install.restype = ctypes.c_int64
    library.aggregathor_lock_refused.restype = ctypes.c_int64
    library.aggregathor_lock_refused.argtypes = (ctypes.c_char_p, ctypes.c_int64)
    library.aggregathor_lock_let_thread_write.argtypes = (
        ctypes.c_char_p,
        ctypes.c_int64,
        ctypes.c_int,
    )
    return loaded


def _is_harmless(op: str) -> bool:
    return op in effects.HARMLESS or op in _OURS or effects.is_dataset(op)


def _names(names: set[str]) -> tuple[Any, int]:
    encoded = [name.encode() for name in sorted(names)]
    return (ctypes.c_char_p * len(encoded))(*encoded), len(encoded)


__all__ = ["KernelLock", "NoKernelLock"]
