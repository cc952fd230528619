"""The values of variables that a step makes while it is traced for the first time.

A ``tf.function`` may make variables in its first trace: a model that its first call builds. Their
values come after the trace, from what it holds of their initializers; the first exchange, which all
ranks begin with the server's values, is made within it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.eager.lift_to_graph import UnliftableError, lift_to_graph
from tensorflow.python.eager.polymorphic_function import polymorphic_function

from aggregathor.errors import UserError
from aggregathor.locking import Guard

_NOTED = "_aggregathor_initial"  # on a variable: its initial value, a tensor of the trace


def note_all(guard: Guard | None) -> None:
    """Patches TensorFlow's variables of a first trace: each is noted its initial value.

    A branch of the trace assigns it, which a worker's ``guard`` is told to let be: it does not run
    once the variable has a value.
    """
    kind = polymorphic_function.UnliftedInitializerVariable
    original = kind.__init__

    def init(self: Any, *args: Any, add_initializers_to: Any = None, **kwargs: Any) -> None:
        with contextlib.nullcontext() if guard is None else guard.making_a_variable():
            original(self, *args, add_initializers_to=add_initializers_to, **kwargs)
        if add_initializers_to and add_initializers_to[-1][0] is self:
            setattr(self, _NOTED, add_initializers_to[-1][1])

    kind.__init__ = init


def initialise(variables: Sequence[tf.Variable]) -> None:
    """Gives those of a first trace the values that TensorFlow would give them after it.

    TensorFlow leaves out what has a value by then.

    Raises:
      UserError: a variable has no value, and none that can be known during the trace.
    """
    missing = [v for v in variables if not v.is_initialized()]
    for variable in missing:
        if not hasattr(variable, _NOTED):
            raise UserError(
                f"{variable.name} has no value yet. Build the model before its first step, by an "
                "Input, model.build(shape), or a call outside of the step."
            )
    if not missing:
        return

    noted = [getattr(variable, _NOTED) for variable in missing]

    @tf.function(autograph=False)
    def compute() -> list[tf.Tensor]:
        lifted = lift_to_graph(noted, tf.compat.v1.get_default_graph())
        return [lifted[value] for value in noted]

    try:
        values = compute()
    except UnliftableError:
        raise UserError(
            f"{missing[0].name} is made by the step that trains it, from what the step is given, "
            "and so has no value before. Build the model before its first step, by an Input, "
            "model.build(shape), or a call outside of the step."
        ) from None
    for variable, value in zip(missing, values, strict=True):
        variable.assign(value)
        delattr(variable, _NOTED)
