"""The part of the data that a worker trains on."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from aggregathor.errors import UserError


def part_of(data: Any, n: int, index: int) -> Any:
    """Returns the elements i with i mod n = index: see ``aggregathor.shard``."""
    if isinstance(data, tf.data.Dataset):
        return data.shard(n, index)
    if isinstance(data, tuple):
        return tuple(_rows(each, n, index) for each in data)
    return _rows(data, n, index)


def _rows(array: Any, n: int, index: int) -> Any:
    if not isinstance(array, (np.ndarray, tf.Tensor)) or len(array.shape) == 0:
        raise UserError(
            "agt.shard takes a tf.data.Dataset, an array or a tuple of arrays, got "
            f"{type(array).__name__}."
        )
    if len(array) < n:
        raise UserError(f"{len(array)} examples cannot be divided among {n} workers.")
    return array[index::n]
