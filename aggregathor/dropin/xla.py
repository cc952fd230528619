"""``jit_compile=True``: XLA compiles the user's step, and the exchange takes place outside of it.

XLA compiles neither custom ops nor Python functions. So the step is compiled with an ``apply`` that
only records the gradients, as more outputs of the compiled function; the round and the update
follow in the function around it. This needs a step that applies gradients once, outside of any
branch, and that does not use the variables afterwards: there the new values would be missing. Any
other step runs without XLA, with a warning that names the line of the script.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from aggregathor import notes
from aggregathor.internals.tensorflow import without_xla, wrapped
from aggregathor.locking import parts_of, place_of

_recording = threading.local()
_split: weakref.WeakSet[Any] = weakref.WeakSet()  # functions that are what XLA compiles of a step


class _Recorded(NamedTuple):
    """What a step has applied while it was traced.

    Attributes:
      apply: applies gradients, a list with None where there was none.
      present: where there was one.
    """

    apply: Callable[[list[Any]], None]
    present: list[bool]


class _Trace:
    """One trace of a step: the calls of ``apply`` in it.

    Attributes:
      calls: what it applies.
      gradients: those of the only call that are not None.
      why_not: why it cannot be split, as the end of a sentence; "" if it can.
    """

    def __init__(self, graph: tf.Graph) -> None:
        """Begins a trace into a graph."""
        self._graph = graph
        self.calls: list[_Recorded] = []
        self.gradients: list[tf.Tensor] = []
        self.why_not = ""
        self._marks: list[tf.Operation] = []  # made at the place of each call
        self._handles: set[int] = set()

    def add(
        self, apply: Callable[[list[Any]], None], gradients: Sequence[Any], variables: Sequence[Any]
    ) -> None:
        """Adds a call of ``apply``."""
        mark = tf.no_op()
        self._marks.append(mark)
        self.calls.append(_Recorded(apply, [g is not None for g in gradients]))
        if tf.compat.v1.get_default_graph() is not self._graph:
            self.why_not = f"applies gradients in a branch or loop at {place_of(mark)}"
            return
        if len(self.calls) > 1:
            self.why_not = f"applies gradients several times, again at {place_of(mark)}"
            return
        self.gradients = [tf.convert_to_tensor(g) for g in gradients if g is not None]
        self._handles = {id(part.handle) for v in variables for part in parts_of(v)}

    def finish(self) -> None:
        """Looks whether the step uses a variable after it has applied its gradient."""
        if self.why_not or not self.calls:
            return
        held = {id(inner) for outer, inner in self._graph.captures if id(outer) in self._handles}
        operations = self._graph.get_operations()
        for operation in operations[operations.index(self._marks[0]) :]:
            if any(id(tensor) in held for tensor in operation.inputs):
                place = place_of(operation)
                self.why_not = f"uses a variable at {place}, after its gradient was applied"
                return


def record(
    apply: Callable[[list[Any]], None], gradients: Sequence[Any], variables: Sequence[Any]
) -> bool:
    """Records the gradients of a step that is being compiled; returns False if none is.

    Args:
      apply: called with the gradients outside of what XLA compiles.
      gradients: a list, with None where there is none.
      variables: that are changed.
    """
    trace = getattr(_recording, "trace", None)
    if trace is None:
        return False
    trace.add(apply, gradients, variables)
    return True


def is_recording() -> bool:
    """Whether a step is being traced for XLA on this thread."""
    return getattr(_recording, "trace", None) is not None


def split(step: Callable[[Any], Any], name: str) -> Split:
    """Returns a train step of Keras's ``fit`` that XLA compiles, except for the exchange.

    Args:
      step: ``step(data)``, Keras's or the user's own, which calls ``apply`` of an optimizer.
      name: the model's, for the warning.
    """
    function = tf.function(step, jit_compile=True, reduce_retracing=True, autograph=False)
    return Split(function, name, "Pass jit_compile=False to compile() to say so.")


class _CannotSplit(Exception):
    """A later trace of the step cannot be split, though an earlier one could."""


def is_split(function: Any) -> bool:
    """Whether a ``tf.function`` is one of those into which a step was split."""
    return function in _split


class Split:
    """A step that XLA compiles, except for the exchange."""

    def __init__(self, function: Any, name: str, remedy: str) -> None:
        """Takes a step.

        Args:
          function: a ``tf.function`` with ``jit_compile=True``, whose Python function may apply
            gradients of what takes part.
          name: of the step, for the warning.
          remedy: for the warning too: what to write instead.
        """
        self._name = name
        self._remedy = remedy
        self._compiled = wrapped(function, self._trace)
        _split.add(self._compiled)
        self._plain = without_xla(function)
        self._around = tf.function(self._run, autograph=False, reduce_retracing=True)
        self._recorded: list[_Recorded] = []
        self._has_traced = False
        self._why_not = ""
        self._warned = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Makes a step, eagerly or in a graph."""
        if not self._has_traced:
            # Without running it: if it trains, its variables must be the server's first.
            self._compiled.get_concrete_function(*args, **kwargs)
            self._has_traced = True
            if self._recorded:
                notes.add(notes.COMPILED, f"{self._name} by XLA, but for the exchange")
        if not self._why_not:
            run = self._around if self._recorded and tf.executing_eagerly() else self._run
            with contextlib.suppress(_CannotSplit):
                return run(*args, **kwargs)
        if not self._warned:
            self._warned = True
            notes.add(notes.LOOK_AT, f"{self._name} {self._why_not}, so it runs without XLA")
            warnings.warn(
                f"{self._name} {self._why_not}: XLA cannot compile around the exchange there, so "
                f"it runs without XLA. {self._remedy}",
                stacklevel=3,
            )
        return self._plain(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        outputs, gradients = self._compiled(*args, **kwargs)
        for number, dense in gradients.items():
            recorded, parts = self._recorded[int(number)], iter(dense)
            recorded.apply([next(parts) if there else None for there in recorded.present])
        return outputs

    def _trace(self, step: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Traces the step; returns its outputs, and its gradients by the number of their call.

        A key of a dict says which trace it was: XLA compiles one for each signature.
        """
        trace = _Trace(tf.compat.v1.get_default_graph())
        _recording.trace = trace
        try:
            outputs = step(*args, **kwargs)
        finally:
            _recording.trace = None
        trace.finish()
        if trace.why_not:
            self._why_not = trace.why_not
            if self._has_traced:
                raise _CannotSplit
            return outputs, {}
        if not trace.calls:
            return outputs, {}
        self._recorded += trace.calls
        return outputs, {str(len(self._recorded) - 1): trace.gradients}


__all__ = ["Split", "is_recording", "is_split", "record", "split"]
