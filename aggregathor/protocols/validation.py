"""The loss on validation data, by which rules such as Zeno judge gradients.

A server computes it at its parameters and after a step along each gradient, without changing
anything of the model: what computes the loss works on copies of all variables that it reads or
writes, such as weights, statistics of batch normalisation, metrics and states of random generators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from aggregathor.errors import UserError
from aggregathor.flat import FlatLayout
from aggregathor.gars.base import as_tensor
from aggregathor.internals.tensorflow import spec_of_variable


class Validation(Protocol):
    """What ``Context.losses`` is made of."""

    def __call__(
        self,
        params_d: np.ndarray,
        stack_nd: np.ndarray,
        rows: np.ndarray,
        gamma: float,
        n_r: int,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Returns the loss at x, and at x - gamma u for each row u that is named: float64.

        Args:
          params_d: x, [d].
          stack_nd: gradients, [n, d]; NaN counts as 0.
          rows: int64 [k], which of them.
          gamma: the step.
          n_r: how many examples the loss is of, the same in all rounds.
          rng: the round's generator, which draws them.
        """


class Examples:
    """Validation examples, of which each round draws some.

    Attributes:
      count: how many there are.
    """

    def __init__(self, arrays: Any) -> None:
        """Takes arrays in any structure, whose first axis are the examples.

        Raises:
          UserError: there are none, or the arrays differ in their number.
        """
        self._arrays = arrays
        counts = {len(each) for each in tf.nest.flatten(arrays)}
        if len(counts) != 1 or 0 in counts:
            found = ", ".join(map(str, sorted(counts))) or "none"
            raise UserError(f"validation data need examples, as many in each array: found {found}")
        (self.count,) = counts

    def draw(self, rng: np.random.Generator, n_r: int) -> Any:
        """Returns n_r different examples, in the structure of the arrays.

        Raises:
          UserError: there are fewer.
        """
        if n_r > self.count:
            raise UserError(
                f"n_r={n_r} examples are to be drawn of {self.count}: give more validation data, "
                "or a smaller n_r"
            )
        chosen = rng.choice(self.count, n_r, replace=False)
        return tf.nest.map_structure(lambda each: each[chosen], self._arrays)


class LossOnCopies:
    """A ``Validation`` by a loss that TensorFlow computes; its own copies of the variables change.

    Memory: one set of variables, and three vectors [d] while it computes.
    """

    def __init__(
        self,
        loss_of: Callable[..., Any],
        variables: Sequence[Any],
        examples: Examples | None,
    ) -> None:
        """Computes nothing yet.

        Args:
          loss_of: ``loss_of(*batch)`` returns the loss, a scalar, with the variables as they are.
            It is traced once, on the first call, for all that follow.
          variables: those that the gradients are of, in this order; ``tf.Variable``, mirrored ones
            among them.
          examples: the structure that a batch is drawn of, a tuple; None for a loss that takes
            none.
        """
        self._loss_of = loss_of
        self._variables = [getattr(v, "values", [v])[0] for v in variables]  # the first replica
        self._examples = examples
        self._layout = FlatLayout(self._variables)
        self._traced: Any = None
        self._trained: list[tuple[int, tf.Variable]] = []  # the place of each, and its copy
        self._others: list[tuple[Any, tf.TensorSpec, tf.Variable]] = []  # handles, and their copies
        self._losses: Any = None

    def __call__(
        self,
        params_d: np.ndarray,
        stack_nd: np.ndarray,
        rows: np.ndarray,
        gamma: float,
        n_r: int,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Returns float64 [k + 1]: see ``Validation``.

        Raises:
          UserError: the loss is no scalar, or does not depend on the variables, or there are fewer
            than n_r examples.
        """
        drawn = () if self._examples is None else self._examples.draw(rng, n_r)
        batch = tf.nest.map_structure(tf.convert_to_tensor, drawn)
        if self._traced is None:
            self._trace(batch)
        losses = self._losses(
            as_tensor(params_d),
            as_tensor(stack_nd),
            tf.constant(rows, tf.int32),
            tf.constant(gamma, stack_nd.dtype),
            batch,
        )
        return losses.numpy()

    def _trace(self, batch: Any) -> None:
        """Traces the loss, and gives its graph the copies in place of all variables."""
        specs = tf.nest.map_structure(tf.TensorSpec.from_tensor, batch)
        traced = tf.function(self._loss_of).get_concrete_function(*specs)
        loss = traced.structured_outputs
        if not isinstance(loss, tf.Tensor) or loss.shape.num_elements() != 1:
            found = f"shape {loss.shape}" if isinstance(loss, tf.Tensor) else type(loss).__name__
            raise UserError(f"the loss on validation data must be a scalar, got {found}")
        places = {id(variable.handle): place for place, variable in enumerate(self._variables)}
        captures = []
        for captured in traced.captured_inputs:
            spec = spec_of_variable(captured)
            if spec is None:
                captures.append(captured)
                continue
            value = tf.raw_ops.ReadVariableOp(resource=captured, dtype=spec.dtype)
            copy = tf.Variable(value, trainable=False, shape=spec.shape)
            if id(captured) in places:
                self._trained.append((places[id(captured)], copy))
            else:
                self._others.append((captured, spec, copy))
            captures.append(copy.handle)
        if not self._trained:
            raise UserError(
                "the loss on validation data depends on none of the variables that are trained: "
                "compute it by the model that is trained"
            )
        traced.set_external_captures(captures)
        self._traced = traced
        dim, dtype = self._layout.dim, self._layout.dtype
        self._losses = tf.function(
            self._losses_of_all,
            input_signature=[
                tf.TensorSpec([dim], dtype),
                tf.TensorSpec([None, dim], dtype),
                tf.TensorSpec([None], tf.int32),
                tf.TensorSpec([], dtype),
                specs,
            ],
            autograph=False,
        )

    def _losses_of_all(
        self,
        params_d: tf.Tensor,
        stack_nd: tf.Tensor,
        rows_k: tf.Tensor,
        gamma: tf.Tensor,
        batch: Any,
    ) -> tf.Tensor:
        """Makes the graph of all losses, one after the other."""
        # Read once: another thread may write them meanwhile, and all losses shall be of the same.
        others = [
            (copy, tf.raw_ops.ReadVariableOp(resource=handle, dtype=spec.dtype))
            for handle, spec, copy in self._others
        ]

        def loss_at(candidate_d: tf.Tensor) -> tf.Tensor:
            values = self._layout.unflatten(candidate_d)
            for place, copy in self._trained:
                copy.assign(values[place])
            for copy, value in others:
                copy.assign(value)
            return tf.cast(tf.reshape(self._traced(*batch), []), tf.float64)

        def loss_after(row: tf.Tensor) -> tf.Tensor:
            grad_d = stack_nd[row]
            grad_d = tf.where(tf.math.is_nan(grad_d), tf.zeros_like(grad_d), grad_d)
            return loss_at(params_d - gamma * grad_d)

        loss = loss_at(params_d)
        with tf.control_dependencies([loss]):
            loss_k = tf.map_fn(
                loss_after, rows_k, fn_output_signature=tf.float64, parallel_iterations=1
            )
        return tf.concat([loss[tf.newaxis], loss_k], axis=0)
