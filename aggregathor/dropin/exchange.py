"""The rounds of one optimizer, as tensors: what stands between its gradients and its variables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aggregathor.cluster.job import Job
from aggregathor.cluster.server import ServerChannel
from aggregathor.cluster.worker import WorkerChannel
from aggregathor.flat import FlatLayout


class Exchange:
    """A channel for a list of variables; eagerly, in a ``tf.function`` and in a v1 graph."""

    def __init__(self, job: Job, variables: Sequence[tf.Variable], params_d: np.ndarray) -> None:
        """Opens the channel; collective.

        Args:
          job: of this process.
          variables: the same on all ranks, in the same order.
          params_d: their values, float32 [d], as all ranks have them.
        """
        self._job = job
        self._variables = list(variables)
        self._layout = FlatLayout(self._variables)
        self._channel = job.connect(params_d)

    def aggregate(self) -> list[tf.Tensor]:
        """Server: gives the aggregate of the workers' gradients, in the variables' shapes."""
        channel = self._channel
        assert isinstance(channel, ServerChannel)

        def aggregate() -> np.ndarray:
            self._job.last_round = channel.aggregate()
            return self._job.last_round.grad_d

        return self._layout.unflatten(self._outside(aggregate))

    def publish(self) -> tf.Tensor:
        """Server: sends the variables as they are now; gives a dummy to wait for."""
        channel = self._channel
        assert isinstance(channel, ServerChannel)

        def publish(params_d: np.ndarray) -> np.ndarray:
            channel.publish(params_d)
            return np.zeros(1, np.float32)

        values = [v.read_value() for v in self._variables]
        return self._outside(publish, self._layout.flatten(values), dim=1)

    def replace(self, gradients: Sequence[Any]) -> list[tf.Tensor]:
        """Worker: sends the gradients; gives the variables' new values."""
        channel = self._channel
        assert isinstance(channel, WorkerChannel)
        grad_d = self._layout.flatten(gradients)
        return self._layout.unflatten(self._outside(channel.exchange, grad_d))

    def flatten(self, gradients: Sequence[Any]) -> tf.Tensor:
        """Concatenates gradients to float32 [d]."""
        return self._layout.flatten(gradients)

    def unflatten(self, vector_d: tf.Tensor) -> list[tf.Tensor]:
        """Cuts [d] into tensors of the variables' shapes."""
        return self._layout.unflatten(vector_d)

    def _outside(
        self, function: Callable[..., np.ndarray], *inputs: tf.Tensor, dim: int | None = None
    ) -> tf.Tensor:
        """Runs a function of arrays that returns float32 [dim], by default [d], in its turn."""
        if tf.executing_eagerly():
            return tf.convert_to_tensor(function(*(value.numpy() for value in inputs)))

        def noted(*arrays: np.ndarray) -> np.ndarray:
            try:
                return function(*arrays)
            except Exception as error:
                # TensorFlow raises one of its own errors instead, with this one as text.
                self._job.failure = error
                raise

        with tf.device("/CPU:0"):
            result = tf.numpy_function(noted, inputs, tf.float32, stateful=True)
        result.set_shape([self._layout.dim if dim is None else dim])
        return result
