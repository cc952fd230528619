"""Keras optimizers: their ``apply`` takes part in a round instead of using the local gradients.

Every Keras 3 optimizer changes variables in ``BaseOptimizer.apply`` alone. On the server it applies
the aggregate of the workers' gradients, clips, decays and averages as usual, and publishes the
variables. On a worker it sends the gradients and assigns what the server has published: the
worker's own slots are never used.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.optimizers import LossScaleOptimizer

from aggregathor.cluster.job import Job
from aggregathor.dropin.deferred_variables import initialise, keep_initial_values
from aggregathor.dropin.keras import xla
from aggregathor.dropin.keras.resume import Checkpoints
from aggregathor.dropin.shared_variables import SharedVariables
from aggregathor.errors import UserError
from aggregathor.flat import FlatLayout
from aggregathor.internals.keras import (
    BaseOptimizer,
    adapt_loss_scale,
    build_optimizer,
    built_variables,
)
from aggregathor.internals.patching import as_method
from aggregathor.locking import Guard, variable_of


class Optimizers:
    """The optimizers that take part, and the variables that they share.

    Attributes:
      all: whether every optimizer takes part, marked or not.
    """

    def __init__(self, job: Job, checkpoints: Checkpoints, guard: Guard | None) -> None:
        """Patches Keras; a worker's ``guard`` locks the variables that take part."""
        self.all = False
        self._job = job
        self._guard = guard
        self._checkpoints = checkpoints
        self._saved: dict[str, list[Any]] = {}
        self._inside = threading.local()  # an original `apply`, which may call `apply`
        self._shared: dict[tuple[int, ...], SharedVariables] = {}
        self._marked: list[Any] = []  # kept alive, as an id may be used again
        keep_initial_values(guard)
        self._apply = BaseOptimizer.apply
        self._scaled_apply = LossScaleOptimizer.apply
        BaseOptimizer.apply = as_method(self._take_part)
        LossScaleOptimizer.apply = as_method(self._take_part_scaled)

    def mark(self, optimizer: Any) -> None:
        """Lets an optimizer take part."""
        self._marked.append(getattr(optimizer, "inner_optimizer", optimizer))

    def takes_part(self, optimizer: Any) -> bool:
        """Whether ``apply`` of an optimizer makes a round."""
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        is_marked = self.all or any(each is inner for each in self._marked)
        return is_marked and self._job.is_here

    def shared(self, optimizer: Any, variables: Sequence[Any]) -> SharedVariables:
        """Returns the shared variables of an optimizer; collective the first time."""
        key = (id(optimizer), *map(id, variables))
        if key not in self._shared:
            if optimizer not in self._marked:
                self._marked.append(optimizer)
            with tf.init_scope():  # the current values, even while a function is being traced
                initialise([v for v in map(variable_of, variables) if not _is_mirrored(v)])
                if self._job.is_server:
                    self._take_saved(optimizer, variables)
                if self._guard is not None:
                    self._guard.train(variables)
                self.synchronise([*variables, optimizer.iterations])
                shared = SharedVariables(self._job, variables, self._guard)
                self._checkpoints.restore(len(self._job.halves) - 1)
                if self._guard is not None:
                    self._guard.lock(variables)
            self._shared[key] = shared
        return self._shared[key]

    def groups(self) -> dict[str, list[Any]]:
        """Returns the variables and slots, by optimizer, for a checkpoint of the server."""
        return self._saved

    def synchronise(self, variables: Sequence[Any]) -> list[np.ndarray]:
        """Gives every rank the server's variables, and returns their values; collective."""
        own = {f"{i}: {v.name}": _value(v) for i, v in enumerate(variables)}
        values = list(self._job.synchronise(own).values())
        if not self._job.is_server:
            for variable, value in zip(variables, values, strict=True):
                self._overwrite(variable_of(variable), value)
            if self._guard is not None:
                self._guard.note(variables, values)
        return values

    def _take_saved(self, optimizer: Any, variables: Sequence[Any]) -> None:
        number = len(self._shared)
        for name, group in (("variables", variables), ("optimizer", optimizer.variables)):
            self._saved[f"{number}/{name}"] = list(group)
            self._checkpoints.take(f"{number}/{name}", group)

    def _take_part(self, optimizer: Any, grads: Any, trainable_variables: Any = None) -> None:
        grads = list(grads)
        if not grads or getattr(self._inside, "apply", False) or not self.takes_part(optimizer):
            self._apply(optimizer, grads, trainable_variables)
            return
        variables = _variables(optimizer, trainable_variables)
        if len(variables) != len(grads):
            raise UserError(f"{len(grads)} gradients for {len(variables)} variables.")
        if optimizer.loss_scale_factor is not None:
            grads = [g if g is None else g / optimizer.loss_scale_factor for g in grads]
        if xla.record(optimizer, grads, variables):
            return
        strategy = tf.distribute.get_strategy()
        replicas = tf.distribute.get_replica_context()
        if replicas is not None and strategy.num_replicas_in_sync > 1:
            self._apply_in_replica(optimizer, grads, variables, replicas)
        elif self._job.is_server:
            shared = self.shared(optimizer, variables)
            self._apply_aggregate(optimizer, shared.aggregate(), grads, variables)
            shared.publish()
        else:
            values = self.shared(optimizer, variables).replace(grads)
            for variable, value in zip(variables, values, strict=True):
                self._overwrite(variable_of(variable), value)
            optimizer.iterations.assign_add(1)

    def _overwrite(self, variable: tf.Variable, value: Any) -> None:
        """Worker: assigns what the server has published."""
        if self._guard is None:
            variable.assign(value, read_value=False)
        else:
            self._guard.overwrite(variable, value)

    def _apply_aggregate(
        self, optimizer: Any, aggregate: Sequence[tf.Tensor], grads: Sequence[Any], variables: Any
    ) -> None:
        """Applies the aggregate as the optimizer would have applied the local gradients."""
        used = [None if g is None else a for g, a in zip(grads, aggregate, strict=True)]
        scale, optimizer.loss_scale_factor = optimizer.loss_scale_factor, None
        self._inside.apply = True
        try:
            self._apply(optimizer, used, variables)
        finally:
            self._inside.apply = False
            optimizer.loss_scale_factor = scale

    def _apply_in_replica(
        self, optimizer: Any, grads: Sequence[Any], variables: Any, replicas: Any
    ) -> None:
        """Takes part once for all replicas of a ``MirroredStrategy``."""
        if self._job.is_server:

            @tf.autograph.experimental.do_not_convert
            def aggregate(strategy: Any) -> tf.Tensor:
                shared = self.shared(optimizer, variables)
                return shared.flatten(shared.aggregate())

            @tf.autograph.experimental.do_not_convert
            def publish(strategy: Any) -> None:
                self.shared(optimizer, variables).publish()

            grad_d = replicas.merge_call(aggregate)
            shared = self.shared(optimizer, variables)
            # The replicas' gradients will be added up.
            parts = shared.unflatten(grad_d / replicas.num_replicas_in_sync)
            self._apply_aggregate(optimizer, parts, grads, variables)
            replicas.merge_call(publish)
            return

        @tf.autograph.experimental.do_not_convert
        def replace(strategy: Any, flat: Any) -> None:
            shared = self.shared(optimizer, variables)
            sum_d = strategy.reduce(tf.distribute.ReduceOp.SUM, flat, axis=None)
            values = shared.replace(shared.unflatten(sum_d))
            for variable, value in zip(variables, values, strict=True):
                strategy.extended.update(variable_of(variable), self._overwrite, args=(value,))

        grad_d = FlatLayout(variables).flatten(grads)
        replicas.merge_call(replace, args=(grad_d,))
        optimizer.iterations.assign_add(1)

    def _take_part_scaled(
        self, optimizer: Any, grads: Any, trainable_variables: Any = None
    ) -> None:
        """As ``LossScaleOptimizer.apply``, but with a round in every case.

        The original applies in a branch that runs only if all local gradients are finite: a worker
        with an overflow would not take part, and the others would wait for it. Here the rule
        judges values that are not finite, the server skips an aggregate that is not, and every rank
        adapts its own scale to its own gradients.
        """
        if not self.takes_part(optimizer):
            self._scaled_apply(optimizer, grads, trainable_variables)
            return
        variables = _variables(optimizer, trainable_variables)
        grads = list(grads)
        if xla.record(optimizer, grads, variables):
            return
        inner = optimizer.inner_optimizer
        if self._job.is_server:
            shared = self.shared(inner, variables)
            aggregate = shared.aggregate()
            finite = optimizer.check_finite(aggregate)
            keras.ops.cond(
                finite,
                lambda: self._apply_aggregate(inner, aggregate, grads, variables),
                lambda: None,
            )
            shared.publish()
            return
        scale = optimizer.dynamic_scale
        unscaled = [g if g is None else g / tf.cast(scale.value, g.dtype) for g in grads]
        finite = optimizer.check_finite([g for g in grads if g is not None])
        self._take_part(inner, unscaled, variables)
        adapt_loss_scale(optimizer, finite)


def _value(variable: Any) -> np.ndarray:
    variable = variable_of(variable)
    if _is_mirrored(variable):
        variable = variable.values[0]  # all its replicas are equal
    return variable.numpy()


def _is_mirrored(variable: tf.Variable) -> bool:
    return isinstance(variable, tf.distribute.DistributedValues)


def _variables(optimizer: Any, given: Any) -> list[Any]:
    """Returns the variables that ``apply`` is for; builds the optimizer if it is not built."""
    if given is None:
        return built_variables(optimizer)
    variables = list(given)
    build_optimizer(optimizer, variables)
    return variables
