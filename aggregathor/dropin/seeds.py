"""Seeds: a script that fixes its own would make all workers draw the same batches."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from aggregathor.cluster.terminal import say

APART = 7919  # a prime: scripts that use seeds 0, 1, 2, ... do not meet those of other ranks


def spread(rank: int) -> None:
    """Adds 7919 times the rank to every global seed that the script sets from now on."""
    said: list[bool] = []
    for module, name in (
        (tf.random, "set_seed"),
        (tf.compat.v1, "set_random_seed"),
        (np.random, "seed"),
        (random, "seed"),
        (keras.utils, "set_random_seed"),
    ):
        setattr(module, name, _spread(getattr(module, name), rank, said))


def _spread(function: Callable[..., Any], rank: int, said: list[bool]) -> Callable[..., Any]:
    @functools.wraps(function)
    def seeded(seed: Any = None, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool):
            return function(seed, *args, **kwargs)
        if rank == 0 and not said:
            said.append(True)
            say(f"seeds: rank r uses {seed} + {APART} r, so that each worker draws its own batches")
        return function((int(seed) + APART * rank) % 2**32, *args, **kwargs)

    return seeded
