"""Keras optimizers: their ``apply`` takes part in a round instead of using the local gradients.

Every Keras 3 optimizer changes variables in ``BaseOptimizer.apply`` alone. On the server it applies
the aggregate of the workers' gradients, clips, decays and averages as usual, and publishes the
variables. On a worker it sends the gradients and assigns what the server has published: the
worker's own slots are never used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.optimizers import LossScaleOptimizer

from aggregathor.dropin import xla
from aggregathor.dropin.description import Group
from aggregathor.dropin.updates import Update, Updates
from aggregathor.errors import UserError
from aggregathor.internals.keras import (
    BaseOptimizer,
    adapt_loss_scale,
    build_optimizer,
    built_variables,
    count_step,
    learning_rate_of,
    step_counter,
)
from aggregathor.internals.patching import as_method


class Optimizers:
    """The optimizers of Keras that take part.

    Attributes:
      all: whether every optimizer takes part, marked or not.
    """

    def __init__(self, updates: Updates) -> None:
        """Patches Keras."""
        self.all = False
        self._updates = updates
        self._marked: list[Any] = []
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
        return is_marked and self._updates.is_here

    def groups(self) -> dict[str, Group]:
        """Returns the variables and slots, by optimizer, for a checkpoint of the server."""
        return self._updates.groups()

    def synchronise(self, variables: Sequence[Any]) -> list[np.ndarray]:
        """Gives every rank the server's variables, and returns their values; collective."""
        return self._updates.synchronise(variables)

    def _take_part(self, optimizer: Any, grads: Any, trainable_variables: Any = None) -> None:
        grads = list(grads)
        if not grads or self._updates.is_applying or not self.takes_part(optimizer):
            self._apply(optimizer, grads, trainable_variables)
            return
        variables = _variables(optimizer, trainable_variables, grads)
        if optimizer.loss_scale_factor is not None:
            grads = [g if g is None else g / optimizer.loss_scale_factor for g in grads]
        self._updates.round(
            self._update(
                optimizer, variables, lambda used: self._apply_unscaled(optimizer, used, variables)
            ),
            grads,
        )

    def _update(self, optimizer: Any, variables: Sequence[Any], apply: Any) -> Update:
        return Update(
            owner=optimizer,
            variables=variables,
            apply=apply,
            follow=lambda: count_step(optimizer),
            counters=[step_counter(optimizer)],
            state=lambda: optimizer.variables,
            learning_rate=lambda: learning_rate_of(optimizer),
        )

    def _apply_unscaled(self, optimizer: Any, grads: Any, variables: Sequence[Any]) -> None:
        """Applies gradients as the optimizer does, without dividing them by the loss's scale."""
        scale, optimizer.loss_scale_factor = optimizer.loss_scale_factor, None
        try:
            self._apply(optimizer, grads, variables)
        finally:
            optimizer.loss_scale_factor = scale

    def _take_part_scaled(
        self, optimizer: Any, grads: Any, trainable_variables: Any = None
    ) -> None:
        """As ``LossScaleOptimizer.apply``, but with a round in every case.

        The original applies in a branch that runs only if all local gradients are finite: a worker
        with an overflow would not take part, and the others would wait for it. Here the rule
        judges values that are not finite, the server skips an aggregate that is not, and every rank
        adapts its own scale: the server to the aggregate, a worker to its own gradients.
        """
        if self._updates.is_applying or not self.takes_part(optimizer):
            self._scaled_apply(optimizer, grads, trainable_variables)
            return
        grads = list(grads)
        variables = _variables(optimizer, trainable_variables, grads)
        counters = [optimizer.step_counter, optimizer.dynamic_scale]

        def apply(given: list[Any]) -> None:
            self._take_part_scaled(optimizer, given, variables)

        if xla.record(apply, grads, [*variables, *counters]):
            return
        inner = optimizer.inner_optimizer
        scale = optimizer.dynamic_scale
        unscaled = [g if g is None else g / tf.cast(scale.value, g.dtype) for g in grads]
        self._updates.round(
            self._update(
                inner, variables, lambda used: self._apply_if_finite(optimizer, used, variables)
            ),
            unscaled,
        )
        if not self._updates.is_server:
            _with_finite(optimizer, grads, lambda finite, *_: adapt_loss_scale(optimizer, finite))

    def _apply_if_finite(self, optimizer: Any, grads: list[Any], variables: Sequence[Any]) -> None:
        """Server: applies the aggregate, unless it has an infinity or a NaN."""
        inner = optimizer.inner_optimizer

        def apply(strategy: Any = None, grads: Any = grads) -> None:
            if strategy is None:
                self._apply(inner, grads, variables)
            else:
                strategy.extended.call_for_each_replica(
                    lambda grads: self._apply(inner, grads, variables), args=(grads,)
                )

        def apply_if(finite: Any, *given: Any) -> None:
            keras.ops.cond(finite, lambda: apply(*given), lambda: None)
            adapt_loss_scale(optimizer, finite)

        _with_finite(optimizer, grads, apply_if)


def _with_finite(optimizer: Any, grads: list[Any], call: Callable[..., None]) -> None:
    """Calls ``call(finite)``; for replicas ``call(finite, strategy, grads)``, once for all of them.

    Replicas change variables together, and cannot do so in a branch.

    Args:
      optimizer: which knows what is finite.
      grads: those of this replica.
      call: takes whether all gradients are, a bool tensor.
    """
    replicas = tf.distribute.get_replica_context()
    if replicas is None or not tf.distribute.has_strategy():
        call(optimizer.check_finite(grads))
        return

    @tf.autograph.experimental.do_not_convert
    def in_all(strategy: Any, grads: Any) -> None:
        each = strategy.extended.call_for_each_replica(optimizer.check_finite, args=(grads,))
        finite = keras.ops.all(keras.ops.stack(strategy.experimental_local_results(each)))
        call(finite, strategy, grads)

    replicas.merge_call(in_all, args=(grads,))


def _variables(optimizer: Any, given: Any, grads: Sequence[Any]) -> list[Any]:
    """Returns the variables that ``apply`` is for; builds the optimizer if it is not built.

    Raises:
      UserError: there are more or fewer gradients.
    """
    if given is None:
        variables = built_variables(optimizer)
    else:
        variables = list(given)
        build_optimizer(optimizer, variables)
    if len(variables) != len(grads):
        raise UserError(f"{len(grads)} gradients for {len(variables)} variables.")
    return variables
