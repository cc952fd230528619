"""The rounds of one optimizer, as tensors: what stands between its gradients and its variables."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aggregathor import ops
from aggregathor.cluster.job import Job
from aggregathor.cluster.server import ServerChannel
from aggregathor.flat import FlatLayout
from aggregathor.locking import Guard, variable_of
from aggregathor.ops.exchange import Form


class Exchange:
    """A channel for a list of variables; eagerly, in a ``tf.function`` and in a v1 graph."""

    def __init__(
        self, job: Job, variables: Sequence[Any], params_d: np.ndarray, guard: Guard | None = None
    ) -> None:
        """Opens the channel; collective.

        Args:
          job: of this process.
          variables: of TensorFlow or Keras, the same on all ranks, in the same order.
          params_d: their values, float32 [d], as all ranks have them.
          guard: of a worker whose variables are locked, which has been told of them.
        """
        self._job = job
        self._variables = [variable_of(v) for v in variables]
        self._layout = FlatLayout(self._variables)
        self._forms = [
            Form(shape, dtype)
            for shape, dtype in zip(self._layout.shapes, self._layout.dtypes, strict=True)
        ]
        self._channel = job.connect(params_d)
        native = self._channel.native(self._fail)
        self._way = ops.kernels().channel(self._round, self._layout.dim, native)
        job.at_close(self._way.close)
        self._named = list(variables)
        self._guard = guard

    def aggregate(self) -> list[tf.Tensor]:
        """Server: gives the aggregate of the workers' gradients, in the variables' shapes."""
        return self._exchange([], self._forms)

    def publish(self) -> Any:
        """Server: sends the variables as they are now; gives something to wait for."""
        return self._exchange([v.read_value() for v in self._variables], [])

    def replace(self, gradients: Sequence[Any]) -> list[tf.Tensor]:
        """Worker: sends the gradients; gives the variables' new values."""
        dense = self._layout.dense(gradients)
        if self._guard is None:
            return self._exchange(dense, self._forms)
        # The last moment before the variables may be written.
        with _after(self._guard.compare(self._named)):
            values = self._exchange(dense, self._forms)
        with _after(self._guard.note(self._named, values)) as noted:
            return [tf.identity(value) for value in values] if noted else values

    def flatten(self, gradients: Sequence[Any]) -> tf.Tensor:
        """Concatenates gradients to float32 [d]."""
        return self._layout.flatten(gradients)

    def unflatten(self, vector_d: tf.Tensor) -> list[tf.Tensor]:
        """Cuts [d] into tensors of the variables' shapes."""
        return self._layout.unflatten(vector_d)

    def _exchange(self, values: Sequence[tf.Tensor], forms: Sequence[Form]) -> Any:
        try:
            return self._way.exchange(values, forms)
        except Exception:
            failure, self._job.failure = self._job.failure, None
            if failure is None:
                raise
            raise failure from None  # eagerly it can be raised as it is, for the script to catch

    def _round(self, sent_d: np.ndarray | None) -> np.ndarray | None:
        """Makes a worker's round, or that half of the server's for which it was given what to do.

        What it returns is valid until the next call.
        """
        channel = self._channel
        try:
            if not isinstance(channel, ServerChannel):
                assert sent_d is not None
                return channel.exchange(sent_d)
            if sent_d is None:
                self._job.last_round = None  # its aggregate is as long as the model
                return channel.aggregate().grad_d
            self._job.last_round = channel.publish(sent_d)
            return None
        except Exception as error:
            self._fail(error)
            raise

    def _fail(self, error: Exception) -> None:
        """Keeps an error: within a graph TensorFlow raises one of its own instead."""
        self._job.failure = error


@contextlib.contextmanager
def _after(operation: Any) -> Iterator[bool]:
    """Has what is made in the context wait for an operation of a graph, if there is one."""
    if operation is None or tf.executing_eagerly():
        yield False
        return
    with tf.control_dependencies([operation]):
        yield True
