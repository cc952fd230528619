"""Which part of the data a worker trains on."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from aggregathor.cluster import job
from aggregathor.errors import UserError


def shard(data: Any) -> Any:
    """Returns this worker's own part of the data: element i goes to worker i mod n.

    The server, which trains on nothing, gets the part of the last worker: as no part is shorter, no
    worker is through with its data before the server is. In a process that was started alone the
    data are returned as they are.

    Args:
      data: a ``tf.data.Dataset``, before it is shuffled and batched; or an array, or a tuple of
        arrays, whose first axis is shared out.
    Raises:
      UserError: the data are something else, or fewer than there are workers.
    """
    job.check_initialised("agt.shard")
    current = job.current()
    if current is None:
        return data
    n = current.ranks.num_workers
    index = n - 1 if current.is_server else current.ranks.rank - 1
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
        raise UserError(f"{len(array)} examples cannot be shared out among {n} workers.")
    return array[index::n]
