"""The kernel lock: this process's CPU kernels refuse to write a locked variable, whoever asks.

The native half (`ops/tf/kernel_lock_op.cc`) puts a guard in front of every kernel whose op is not
known to be harmless (`effects`), and knows variables by the objects that they are. A locked one is
written by a node that has the token, or by a thread while it is let. SECURITY.md tells what that
guarantees, and what it does not.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections import Counter
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.client import pywrap_tf_session
from tensorflow.python.eager import context
from tensorflow.python.framework import kernels

from aggregathor import ops
from aggregathor.locking import effects

_MESSAGE_BYTES = 1024
_ON_CPU = ("CPU", "DEFAULT")  # what is registered for any device is for the CPU too
_OURS = frozenset({"AggregathorLock", "AggregathorLockReference"})


class NoKernelLock(Exception):
    """The kernel lock cannot be had in this process; the message says why."""


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
    """Guards in front of this process's kernels, and the variables that they refuse to write.

    Attributes:
      num_guarded: how many kernels TensorFlow lists that a guard stands in front of.
    """

    def __init__(self, who: str, allowed: tuple[str, bytes], *, factory_offset: int = 0) -> None:
        """Puts guards in front of the kernels that are made from now on, and in libraries to come.

        Functions that have run before keep their kernels, without guards; what has run eagerly
        gets new ones. Once in a process is enough: guards stay, and refuse nothing once closed.

        Args:
          who: may not write, such as "rank 2".
          allowed: an attribute and its value: nodes that have it may write.
          factory_offset: for tests, another place to look for what makes TensorFlow's kernels.
        Raises:
          NoKernelLock: TensorFlow is not the one that the library was built for, or does not keep
            its kernels as that one does; nothing has changed then.
        Cost: 0.1 s once, and 0.04 us for each run of a kernel that is guarded (BUILD_NOTES.md).
        """
        self.num_guarded = 0
        self._who = who
        self._attribute, self._token = allowed
        self._offset = factory_offset
        self._ops, self._library = _native()
        self._install()
        context.context().clear_kernel_cache()
        self._load = pywrap_tf_session.TF_LoadLibrary
        pywrap_tf_session.TF_LoadLibrary = self._load_and_install

    def close(self) -> None:
        """Lets everybody write everything."""
        pywrap_tf_session.TF_LoadLibrary = self._load
        self._library.aggregathor_lock_clear()

    def lock(self, variable: Any, name: str) -> Any:
        """Locks a ``tf.Variable``, or a reference of v1: at once, or by the op that is returned.

        A variable that is not on a CPU is left as it is, and gives None.
        """
        if variable.device and "CPU" not in variable.device.upper():
            return None
        # In a graph that is being made, neither in a branch nor after anything.
        with tf.control_dependencies(None), tf.device(variable.device):
            if hasattr(variable, "handle"):
                return self._ops.aggregathor_lock(variable.handle, called=name)
            return self._ops.aggregathor_lock_reference(variable._ref(), called=name)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Lets this thread write locked variables eagerly."""
        # Where ops run on a thread of their own, they would do so without leave.
        mode = context.SYNC if context.is_async() else None
        with context.execution_mode(mode):
            self._let(True)
            try:
                yield
            finally:
                self._let(False)

    def refused(self) -> Counter[str]:
        """Returns how often an op was refused in this process, by op."""
        size = self._library.aggregathor_lock_refused(None, 0) + _MESSAGE_BYTES  # it may grow
        lines = ctypes.create_string_buffer(size)
        self._library.aggregathor_lock_refused(lines, size)
        pairs = (line.split() for line in lines.value.decode().splitlines())
        return Counter({op: int(count) for op, count in pairs})

    def _let(self, may: bool) -> None:
        done = self._library.aggregathor_lock_let_thread_write(
            self._token, len(self._token), int(may)
        )
        if not done:
            raise RuntimeError("another kernel lock has taken this one's place")

    def _load_and_install(self, *args: Any, **kwargs: Any) -> Any:
        library = self._load(*args, **kwargs)
        self._install()
        return library

    def _install(self) -> None:
        listed = [each.op for each in _registered() if each.device_type in _ON_CPU]
        guarded = {op for op in listed if not _is_harmless(op)}
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        lock = _Lock(
            *_names(guarded - effects.IN_PLACE - effects.PYTHON),
            *_names(guarded & effects.IN_PLACE),
            *_names(guarded & effects.PYTHON),
            sum(op in guarded for op in listed),
            self._who.encode(),
            self._attribute.encode(),
            self._token,
            len(self._token),
            self._offset,
        )
        num_guarded = self._library.aggregathor_lock_install(ctypes.byref(lock), message)
        if num_guarded < 0:
            raise NoKernelLock(message.value.decode())
        self.num_guarded = num_guarded


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
    loaded = ops.kernels().native()
    library = loaded[1]
    if not hasattr(library, "aggregathor_lock_install"):  # a library of before
        raise NoKernelLock(f"the native library has none; {ops.REBUILD}")
    library.aggregathor_lock_install.restype = ctypes.c_int64
    library.aggregathor_lock_refused.restype = ctypes.c_int64
    library.aggregathor_lock_refused.argtypes = (ctypes.c_char_p, ctypes.c_int64)
    library.aggregathor_lock_let_thread_write.argtypes = (
        ctypes.c_char_p,
        ctypes.c_int64,
        ctypes.c_int,
    )
    return loaded


def _registered() -> Any:
    return kernels.get_all_registered_kernels().kernel


def _is_harmless(op: str) -> bool:
    return op in effects.HARMLESS or op in _OURS or effects.is_dataset(op)


def _names(names: set[str]) -> tuple[Any, int]:
    encoded = [name.encode() for name in sorted(names)]
    return (ctypes.c_char_p * len(encoded))(*encoded), len(encoded)


__all__ = ["KernelLock", "NoKernelLock"]
