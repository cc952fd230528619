"""Dropout's random states, placed for each gradient: it draws the same wherever it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import keras
import numpy as np

from aggregathor.trainer.training import Workers


class Seeds:
    """The states of a model's random number generators."""

    def __init__(self, model: keras.Model, compute: Callable[[], object]) -> None:
        """Makes one gradient to see how far it moves each state; changes nothing of the model.

        Args:
          model: as all ranks have it at the beginning.
          compute: makes a gradient, or a forward pass, which draws as much.
        """
        self._variables = seeds_of(model)
        self._first = [np.array(v.numpy()) for v in self._variables]
        with unchanged(model):
            compute()
            self._draws = [
                v.numpy() - first for v, first in zip(self._variables, self._first, strict=True)
            ]

    @classmethod
    def of_gradients(cls, model: keras.Model, workers: Workers) -> Seeds:
        """Traces and compiles what workers compute; their momentum stays as it is."""
        momentum = workers.state()
        seeds = cls(model, lambda: workers.compute(0))
        workers.restore(momentum)
        return seeds

    def place(self, number: int) -> None:
        """Sets them to where they are before gradient ``number`` if all are made one by one."""
        for seed, first, draw in zip(self._variables, self._first, self._draws, strict=True):
            seed.assign(first + draw * np.array(number).astype(first.dtype))  # modulo 2^32


def seeds_of(model: keras.Model) -> list[keras.Variable]:
    """Returns the states of its random number generators."""
    return [v for v in model.non_trainable_variables if "seed_generator_state" in v.path]


@contextmanager
def unchanged(model: keras.Model) -> Iterator[None]:
    """Gives all variables that are not trained their values back at the end."""
    variables = model.non_trainable_variables
    before = [np.array(v.numpy()) for v in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
