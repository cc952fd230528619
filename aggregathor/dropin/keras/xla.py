"""``jit_compile=True``: XLA compiles the user's step, and the exchange takes place outside of it.

XLA compiles neither custom ops nor Python functions. So the train step is compiled with an
``apply`` that only records the gradients, as one more output of the compiled function; the round
and the update follow in the function around it. A step that applies more than once a batch needs
the new variables in between and cannot be split: it runs without XLA, with a warning.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import tensorflow as tf

_recording = threading.local()


class _CannotSplit(Exception):
    """The step does not apply gradients exactly once."""


def record(optimizer: Any, grads: list[Any], variables: list[Any]) -> bool:
    """Records the gradients of a step that is being compiled; returns False if none is."""
    calls = getattr(_recording, "calls", None)
    if calls is None:
        return False
    calls.append((optimizer, grads, variables, tf.compat.v1.get_default_graph()))
    return True


def split(step: Callable[[Any], Any], name: str) -> Callable[[Any], Any]:
    """Returns a train step that XLA compiles, except for the exchange.

    Args:
      step: ``step(data)``, Keras's or the user's own, which calls ``apply`` of an optimizer.
      name: the model's, for the warning.
    """
    applied: list[tuple[Any, list[Any]]] = []
    present: list[list[bool]] = []

    @tf.function(jit_compile=True, reduce_retracing=True, autograph=False)
    def compiled(data: Any) -> tuple[Any, list[tf.Tensor]]:
        calls: list[Any] = []
        _recording.calls = calls
        try:
            outputs = step(data)
        finally:
            _recording.calls = None
        if len(calls) != 1 or calls[0][3] is not tf.compat.v1.get_default_graph():
            raise _CannotSplit
        optimizer, grads, variables, _ = calls[0]
        applied[:] = [(optimizer, variables)]
        present[:] = [[g is not None for g in grads]]
        return outputs, [tf.convert_to_tensor(g) for g in grads if g is not None]

    def split_step(data: Any) -> Any:
        try:
            outputs, dense = compiled(data)
        except _CannotSplit:
            warnings.warn(
                f"{name} applies gradients several times a step, or in a branch of it: XLA "
                "cannot compile around the exchange, so this model runs without XLA. "
                "Pass jit_compile=False to compile() to say so.",
                stacklevel=2,
            )
            return step(data)
        parts = iter(dense)
        grads = [next(parts) if there else None for there in present[0]]
        optimizer, variables = applied[0]
        optimizer.apply(grads, variables)
        return outputs

    return split_step
