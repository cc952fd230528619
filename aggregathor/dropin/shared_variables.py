"""The variables that an optimizer trains and only the server writes, between tensors and rounds."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aggregathor import ops
from aggregathor.cluster.job import Half, Job
from aggregathor.dropin.functions import Turn
from aggregathor.dropin.validation import Validations
from aggregathor.flat import FlatLayout
from aggregathor.locking import Guard, name_of, variable_of
from aggregathor.protocols.server import ServerHalf
from aggregathor.protocols.worker import WorkerHalf


class SharedVariables:
    """A list of variables and their rounds; eagerly, in a ``tf.function`` and in a v1 graph.

    Attributes:
      turn: that a thread needs for a whole round.
    """

    def __init__(
        self,
        job: Job,
        variables: Sequence[Any],
        guard: Guard | None = None,
        read: Callable[[], Sequence[np.ndarray]] | None = None,
        *,
        learning_rate: Callable[[], float] | None = None,
        validations: Validations | None = None,
    ) -> None:
        """Opens the rounds; collective.

        Args:
          job: of this process.
          variables: of TensorFlow or Keras, the same on all ranks, in the same order.
          guard: of a worker whose variables are locked, and which knows them.
          read: gives their values as they are, on any thread; by default eagerly.
          learning_rate: gives that of the update rule in this step; None if unknown.
          validations: the server's, which judge gradients for rules that need that.
        """
        self.turn = Turn()
        self._job = job
        self._named = list(variables)
        self._variables = [variable_of(v) for v in variables]
        self._layout = FlatLayout(self._variables)
        self._read = read or self._read_eagerly
        dim, dtype = self._layout.dim, self._layout.dtype.as_numpy_dtype
        names = [name_of(variable) for variable in variables]
        self.half: Half
        if job.is_server:
            self.half = server = job.serve(
                dim,
                self._read_flat,
                dtype,
                names,
                learning_rate=learning_rate,
                validation=None if validations is None else validations.of(self._variables),
                validate=None if validations is None else validations.gradient_of(self._variables),
            )
            round = functools.partial(self._serve, server)
        else:
            self.half = worker = job.work(dim, self._read_flat, dtype, names)
            round = functools.partial(self._work, worker)
        self._op = ops.kernels().channel(round, dim, self.half.native(self._fail), dtype)
        job.at_close(self._op.close)
        self._guard = guard

    def aggregate(self) -> list[tf.Tensor]:
        """Server: gives the aggregate of the workers' gradients, in the variables' shapes."""
        return self._layout.restore(self._call([], self._layout.specs))

    def publish(self) -> Any:
        """Server: sends the variables as they are now; gives something to wait for."""
        return self._call(self._layout.dense([v.read_value() for v in self._variables]), [])

    def replace(self, gradients: Sequence[Any]) -> list[tf.Tensor]:
        """Worker: sends the gradients; gives the variables' new values."""
        dense = self._layout.dense(gradients)
        if self._guard is None:
            return self._receive(dense)
        # The last moment before the variables may be written.
        with _after(self._guard.compare(self._named)):
            values = self._receive(dense)
        with _after(self._guard.note(self._named, values)) as noted:
            return [tf.identity(value) for value in values] if noted else values

    def flatten(self, gradients: Sequence[Any]) -> tf.Tensor:
        """Concatenates gradients to a vector [d]; see ``FlatLayout``."""
        return self._layout.flatten(gradients)

    def unflatten(self, vector_d: tf.Tensor) -> list[tf.Tensor]:
        """Cuts [d] into tensors of the variables' shapes."""
        return self._layout.unflatten(vector_d)

    def _receive(self, dense: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return self._layout.restore(self._call(dense, self._layout.specs))

    def _call(self, values: Sequence[tf.Tensor], specs: Sequence[tf.TensorSpec]) -> Any:
        try:
            return self._op.call(values, specs)
        except Exception:
            failure = self._job.take_failure()
            if failure is None:
                raise
            raise failure from None  # eagerly it can be raised as it is, for the script to catch

    # What these return is valid until the next call.

    def _serve(self, server: ServerHalf, params_d: np.ndarray | None) -> np.ndarray | None:
        """One half of the server's round: aggregates, or publishes the parameters."""
        with self._failing():
            if params_d is None:
                self._job.end_check()
                self._job.last_round = None  # its aggregate is as long as the model
                return server.aggregate().grad_d
            self._job.last_round = server.publish(params_d)
            return None

    def _work(self, worker: WorkerHalf, grad_d: np.ndarray | None) -> np.ndarray | None:
        """A worker's round."""
        assert grad_d is not None
        with self._failing():
            return worker.exchange(grad_d)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._fail(error)
            raise

    def _fail(self, error: Exception) -> None:
        """Keeps an error: within a graph TensorFlow raises one of its own instead."""
        self._job.fail(error)

    def _read_flat(self) -> np.ndarray:
        return self._layout.flatten_arrays(self._read())

    def _read_eagerly(self) -> list[np.ndarray]:
        # Of a mirrored variable the first replica: they are all the same.
        return [getattr(v, "values", [v])[0].numpy() for v in self._variables]


@contextlib.contextmanager
def _after(operation: Any) -> Iterator[bool]:
    """Has what is made in the context wait for an operation of a graph, if there is one."""
    if operation is None or tf.executing_eagerly():
        yield False
        return
    with tf.control_dependencies([operation]):
        yield True
