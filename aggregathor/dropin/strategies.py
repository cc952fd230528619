"""Refuses the strategies of ``tf.distribute`` that would send gradients past the rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from aggregathor.errors import UserError

_REFUSED = {
    "MultiWorkerMirroredStrategy": "it averages the gradients of all workers, so that a single one "
    "decides the result",
    "ParameterServerStrategy": "its workers write the variables on the parameter server themselves",
    "Server": "whoever reaches its port can write every variable, and LossyMPI replaces it",
    "TPUStrategy": "its replicas add up their gradients on the TPU, before any rule sees them",
}


def refuse() -> None:
    """Makes the constructors of these classes raise ``UserError``."""
    for name, reason in _REFUSED.items():
        for module in (tf.distribute, tf.distribute.experimental, tf.compat.v1.distribute):
            if hasattr(module, name):
                # The class stays: Keras asks whether a strategy is one of them.
                getattr(module, name).__init__ = _refusal(name, reason)


def _refusal(name: str, reason: str) -> Callable[..., None]:
    def refused(self: Any, *args: Any, **kwargs: Any) -> None:
        raise UserError(
            f"tf.distribute.{name} cannot be used here: {reason}. Leave it out: every rank "
            "that mpirun starts is a worker already. For several GPUs in one worker use "
            "tf.distribute.MirroredStrategy."
        )

    return refused
