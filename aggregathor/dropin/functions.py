"""What calls of a script's ``tf.function`` need: turns between threads, and a split for XLA.

Threads may train the same variables. On each rank their rounds must follow one another, each of
them whole: the server applies an aggregate and publishes before the next one begins. Eagerly a
round takes its turn. A graph cannot: so a call of a function takes the turns of all rounds in it.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from aggregathor.dropin import xla
from aggregathor.internals.patching import as_method
from aggregathor.internals.tensorflow import PolymorphicFunction, is_for_xla

_call = threading.local()  # `running`: the outermost call of a function on this thread


class Turn:
    """What only one thread at a time may do; a thread that has its turn may ask again."""

    _made = 0

    def __init__(self) -> None:
        """Begins free."""
        self.lock = threading.RLock()
        Turn._made += 1
        self.number = Turn._made


class _Known:
    """What is known of a function: the turns of its rounds, once it has been traced."""

    def __init__(self) -> None:
        self.turns: set[Turn] = set()
        self.first = threading.Lock()  # of the first call: no other runs before it is traced
        self.is_traced = False


class _Call:
    """A call of a function by a thread, which has the turns of the rounds that are known of it."""

    def __init__(self, known: _Known) -> None:
        self._known = known
        self._taken = contextlib.ExitStack()

    def __enter__(self) -> None:
        if not self._known.is_traced:
            self._taken.enter_context(self._known.first)
        for turn in sorted(self._known.turns, key=lambda turn: turn.number):
            self._taken.enter_context(turn.lock)
        _call.running = self

    def __exit__(self, *error: object) -> None:
        _call.running = None
        self._known.is_traced = True
        self._taken.close()

    def add(self, turn: Turn) -> None:
        """Adds a round that was found while the function is traced."""
        if turn not in self._known.turns:
            self._taken.enter_context(turn.lock)
            self._known.turns.add(turn)


@contextlib.contextmanager
def turns(turn: Turn) -> Iterator[None]:
    """A context in which a round is made, eagerly or while a function is traced."""
    running = getattr(_call, "running", None)
    if running is not None:
        running.add(turn)
        yield
    else:
        with turn.lock:
            yield


class Functions:
    """Patches what ``tf.function`` makes."""

    def __init__(self) -> None:
        """Patches TensorFlow."""
        self._call = PolymorphicFunction.__call__
        self._known: weakref.WeakKeyDictionary[Any, _Known] = weakref.WeakKeyDictionary()
        self._splits: weakref.WeakKeyDictionary[Any, xla.Split] = weakref.WeakKeyDictionary()
        PolymorphicFunction.__call__ = as_method(self._run)

    def _run(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        run = self._split(function) if _shall_be_split(function) else self._call.__get__(function)
        if not tf.executing_eagerly() or getattr(_call, "running", None) is not None:
            return run(*args, **kwargs)
        known = self._known.get(function) or self._known.setdefault(function, _Known())
        with _Call(known):
            return run(*args, **kwargs)

    def _split(self, function: Any) -> xla.Split:
        if function not in self._splits:
            name = f"the tf.function {getattr(function.python_function, '__name__', '?')}"
            remedy = "Make it with jit_compile=False to say so."
            self._splits[function] = xla.Split(function, name, remedy)
        return self._splits[function]


def _shall_be_split(function: Any) -> bool:
    """Whether XLA would compile a function of the script's that may apply gradients."""
    if not is_for_xla(function) or xla.is_recording() or xla.is_split(function):
        return False
    module = str(getattr(function.python_function, "__module__", ""))
    return module.partition(".")[0] not in ("keras", "tensorflow")


__all__ = ["Functions", "Turn", "turns"]
