"""Seeds: with a seed that a script fixes, all workers would draw the same batches.

What a script draws from Python's and NumPy's generators before it trains, such as the rows that it
tests on, must be the same on all ranks: otherwise workers would train on the server's test data. So
these generators differ between ranks only once the training begins. Those of TensorFlow and Keras,
whose seeds datasets and layers take when they are made, differ at once.
"""

from __future__ import annotations

import functools
import logging
import random
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from aggregathor.internals.keras import change_default_seeds, set_global_seed

_logger = logging.getLogger(__name__)
APART = 7919  # a prime: a script's seeds 0, 1, 2, ... do not coincide with other ranks'


class Seeds:
    """Adds 7919 times the rank to every global seed that the script sets."""

    def __init__(self, rank: int, *, is_server: bool) -> None:
        """Patches Python's, NumPy's, TensorFlow's and Keras's."""
        self._rank = rank
        self._is_server = is_server
        self._has_begun = False
        self._said = False
        self._later: dict[Callable[..., Any], int] = {}  # seeds for when the training begins
        for module in (random, np.random):
            module.seed = self._spread(module.seed, at_once=False)  # type: ignore[attr-defined]
        for module, name in ((tf.random, "set_seed"), (tf.compat.v1, "set_random_seed")):
            setattr(module, name, self._spread(getattr(module, name), at_once=True))
        set_random_seed = self._with_state(keras.utils.set_random_seed)
        for module in (keras.utils, tf.keras.utils):
            module.set_random_seed = set_random_seed
        change_default_seeds(self._own)

    def begin(self) -> None:
        """Makes the ranks draw differently from now on: the training begins."""
        self._has_begun = True
        for function, seed in self._later.items():
            if not self._is_server:  # which draws what the script would alone
                function(self._own(seed))
        self._later.clear()

    def _with_state(self, function: Callable[[int], None]) -> Callable[[int], None]:
        """Returns Keras's own, which calls the others by their names, with a seed of this rank."""

        @functools.wraps(function)
        def set_random_seed(seed: int) -> None:
            function(seed)
            set_global_seed(self._own(seed))

        return set_random_seed

    def _spread(self, function: Callable[..., Any], *, at_once: bool) -> Callable[..., Any]:
        @functools.wraps(function)
        def seeded(seed: Any = None, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool):
                self._later.pop(function, None)
                return function(seed, *args, **kwargs)
            if self._is_server and not self._said:
                self._said = True
                _logger.info(
                    "seeds: rank r uses %d + %d r, so that each worker draws its own batches: in "
                    "TensorFlow at once, in Python and NumPy when the training begins",
                    seed,
                    APART,
                )
            if at_once or self._has_begun:
                return function(self._own(int(seed)), *args, **kwargs)
            self._later[function] = int(seed)
            return function(seed, *args, **kwargs)

        return seeded

    def _own(self, seed: int) -> int:
        return (seed + APART * self._rank) % 2**32
