"""Seeds: a script that fixes its own would make all workers draw the same batches.

What a script draws from Python's and NumPy's generators before it trains, such as which rows it
tests on, must be the same on all ranks: the workers would else train on what the server tests on.
So these go their own ways when the training begins; TensorFlow's and Keras's, which datasets and
layers take as they are made, do at once.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.random import seed_generator
from keras.src.utils.rng_utils import GLOBAL_RANDOM_SEED

from aggregathor.log import say

APART = 7919  # a prime: scripts that use seeds 0, 1, 2, ... do not meet those of other ranks


class Seeds:
    """Adds 7919 times the rank to every global seed that the script sets."""

    def __init__(self, rank: int) -> None:
        """Patches Python's, NumPy's, TensorFlow's and Keras's."""
        self._rank = rank
        self._has_begun = False
        self._said = False
        self._later: dict[Callable[..., Any], int] = {}  # seeds that count when training begins
        for module in (random, np.random):
            module.seed = self._spread(module.seed, at_once=False)  # type: ignore[attr-defined]
        for module, name in ((tf.random, "set_seed"), (tf.compat.v1, "set_random_seed")):
            setattr(module, name, self._spread(getattr(module, name), at_once=True))
        set_random_seed = self._with_state(keras.utils.set_random_seed)
        for module in (keras.utils, tf.keras.utils):
            module.set_random_seed = set_random_seed
        make_default_seed = seed_generator.make_default_seed
        seed_generator.make_default_seed = lambda: self._own(make_default_seed())

    def begin(self) -> None:
        """Lets the ranks draw differently from now on: the training begins."""
        self._has_begun = True
        for function, seed in self._later.items():
            if self._rank > 0:  # the server goes on as the script would alone
                function(self._own(seed))
        self._later.clear()

    def _with_state(self, function: Callable[[int], None]) -> Callable[[int], None]:
        """As Keras's own, which sets the others by their names, but for the state it keeps."""

        @functools.wraps(function)
        def set_random_seed(seed: int) -> None:
            function(seed)
            global_state.set_global_attribute(GLOBAL_RANDOM_SEED, self._own(seed))

        return set_random_seed

    def _spread(self, function: Callable[..., Any], *, at_once: bool) -> Callable[..., Any]:
        @functools.wraps(function)
        def seeded(seed: Any = None, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool):
                self._later.pop(function, None)
                return function(seed, *args, **kwargs)
            if self._rank == 0 and not self._said:
                self._said = True
                say(
                    f"seeds: rank r uses {seed} + {APART} r, so that each worker draws its own "
                    "batches: in TensorFlow at once, in Python and NumPy when the training begins"
                )
            if at_once or self._has_begun:
                return function(self._own(int(seed)), *args, **kwargs)
            self._later[function] = int(seed)
            return function(seed, *args, **kwargs)

        return seeded

    def _own(self, seed: int) -> int:
        return (seed + APART * self._rank) % 2**32
