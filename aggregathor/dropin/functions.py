"""What calls of a script's ``tf.function`` need: turns between threads, and a split for XLA.

Threads may train the same variables. On each rank their rounds must follow one another, each of
them whole: the server applies an aggregate and publishes before the next one begins. Eagerly a
round takes its turn. A graph cannot: so a call of a function takes the turns of all rounds in it.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from aggregathor.dropin import xla
from aggregathor.internals.tensorflow import PolymorphicFunction, is_for_xla, not_converted

_KNOWN = "_aggregathor_known"  # of a function: what is known of it
_PLAIN = "plain"  # that is called as ever, as its first trace has made no round
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
    """What is known of a function.

    Attributes:
      split: what is called in its place, if XLA would compile it.
      turns: those of its rounds.
      is_traced: whether a call of it has ended.
      first: of its first call: no other runs before it is traced.
    """

    def __init__(self, split: xla.Split | None = None) -> None:
        """Begins with a function that was never called."""
        self.split = split
        self.turns: set[Turn] = set()
        self.is_traced = False
        self.first = threading.Lock()

    def __reduce__(self) -> Any:
        """A copy of the function begins anew."""
        return _Known, ()


class _Call:
    """A call of a function by a thread, which has the turns of the rounds that are known of it."""

    __slots__ = ("_known", "_taken", "_within")

    def __init__(self, known: _Known) -> None:
        self._known = known
        self._taken: list[Any] = []  # locks
        self._within: list[_Known] = []  # functions that it calls, the innermost last

    def begin(self) -> None:
        """Takes the turns that are known."""
        if not self._known.is_traced:
            self._take(self._known.first)
        for turn in sorted(self._known.turns, key=lambda turn: turn.number):
            self._take(turn.lock)

    def add(self, turn: Turn) -> None:
        """Adds a round that was found while the function is traced."""
        for known in self._within:  # which may be called by themselves later
            known.turns.add(turn)
        if turn not in self._known.turns:
            self._take(turn.lock)
            self._known.turns.add(turn)

    @contextlib.contextmanager
    def within(self, known: _Known) -> Iterator[None]:
        """A context in which it calls another function."""
        self._within.append(known)
        try:
            yield
        finally:
            self._within.pop()

    def end(self) -> None:
        """Gives the turns back."""
        self._known.is_traced = True
        while self._taken:
            self._taken.pop().release()

    def _take(self, lock: Any) -> None:
        lock.acquire()
        self._taken.append(lock)


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


def patch_calls() -> None:
    """Patches calls of what ``tf.function`` makes."""
    call = PolymorphicFunction.__call__

    # No wrapper that turns AutoGraph off: the function may need it. Short, as every call passes.
    def patched(function: Any, *args: Any, **kwargs: Any) -> Any:
        known = function.__dict__.get(_KNOWN)
        if known is _PLAIN:
            return call(function, *args, **kwargs)
        if known is None:
            known = function.__dict__.setdefault(_KNOWN, _Known(_split_of(function)))
        if known.split is not None and not xla.is_recording():
            run = known.split
        else:
            run = functools.partial(call, function)
        outer = getattr(_call, "running", None)
        if outer is not None or not tf.executing_eagerly():
            with contextlib.nullcontext() if outer is None else outer.within(known):
                return run(*args, **kwargs)
        running = _Call(known)
        if known.turns or not known.is_traced:
            running.begin()
        _call.running = running
        try:
            return run(*args, **kwargs)
        finally:
            _call.running = None
            running.end()
            if not known.turns and known.split is None:
                function.__dict__[_KNOWN] = _PLAIN

    PolymorphicFunction.__call__ = not_converted(patched)


def _split_of(function: Any) -> xla.Split | None:
    """Returns a function of the script's that XLA would compile, to be called in its place."""
    if not is_for_xla(function) or xla.is_split(function):
        return None
    python = function.python_function
    if str(getattr(python, "__module__", "")).partition(".")[0] in ("keras", "tensorflow"):
        return None
    name = f"the tf.function {getattr(python, '__name__', '?')}"
    return xla.Split(function, name, "Make it with jit_compile=False to say so.")


__all__ = ["Turn", "patch_calls", "turns"]
