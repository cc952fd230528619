"""Initial values of variables that a step makes while it is traced for the first time.

A ``tf.function`` may make variables in its first trace, such as those of a model that its first
call builds. TensorFlow initialises them after the trace, from their initializers in the graph. But
the first exchange is made within the trace, and all ranks begin it with the server's values: so the
variables are initialised then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from aggregathor.errors import UserError
from aggregathor.internals.tensorflow import (
    FirstTraceVariable,
    UnliftableError,
    initialise_variables_within,
    lift_to_graph,
)
from aggregathor.locking import Guard

_INITIAL = "_aggregathor_initial"  # on a variable: its initial value, a tensor of the trace


def keep_initial_values(guard: Guard | None) -> None:
    """Patches TensorFlow's variables of a first trace: each keeps its initial value.

    A branch of the trace assigns that value, and does not run once the variable has one; a graph of
    its own assigns it after the trace. A worker's ``guard`` allows both.
    """
    original = FirstTraceVariable.__init__

    def init(self: Any, *args: Any, add_initializers_to: Any = None, **kwargs: Any) -> None:
        allowed = contextlib.nullcontext() if guard is None else guard.making_a_variable()
        # What the step's ops wait for, such as its data, the initial value does not need.
        with allowed, tf.control_dependencies(None):
            original(self, *args, add_initializers_to=add_initializers_to, **kwargs)
        if add_initializers_to and add_initializers_to[-1][0] is self:
            setattr(self, _INITIAL, add_initializers_to[-1][1])

    FirstTraceVariable.__init__ = init
    if guard is not None:
        initialise_variables_within(guard.making_a_variable)


def initialise(variables: Sequence[tf.Variable]) -> None:
    """Initialises variables of a first trace as TensorFlow would after it.

    TensorFlow then skips those that have a value.

    Raises:
      UserError: a variable has no value, and none can be computed during the trace.
    """
    missing = [v for v in variables if not v.is_initialized()]
    for variable in missing:
        if not hasattr(_first(variable), _INITIAL):
            raise UserError(
                f"{variable.name} has no value yet. Build the model before its first step, by an "
                "Input, model.build(shape), or a call outside of the step."
            )
    if not missing:
        return

    initial = [getattr(_first(variable), _INITIAL) for variable in missing]

    @tf.function(autograph=False)
    def compute() -> list[tf.Tensor]:
        return lift_to_graph(initial, tf.compat.v1.get_default_graph())

    try:
        values = compute()
    except UnliftableError:
        raise UserError(
            f"{missing[0].name} is made by the step that trains it, and its initial value depends "
            "on the data of the step. Build the model before its first step, by an Input, "
            "model.build(shape), or a call outside of the step."
        ) from None
    for variable, value in zip(missing, values, strict=True):
        for replica in getattr(variable, "values", [variable]):
            replica.assign(value)
            vars(replica).pop(_INITIAL, None)


def _first(variable: Any) -> tf.Variable:
    """Returns the first replica of a mirrored variable, by whose value the others begin."""
    return getattr(variable, "values", [variable])[0]
