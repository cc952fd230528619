"""What a simulated training and a real one share: the workers' gradients, the server's model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from aggregathor.attacks import ATTACKS
from aggregathor.errors import UserError
from aggregathor.flat import FlatLayout
from aggregathor.gars import State
from aggregathor.internals.keras import learning_rate_of
from aggregathor.protocols.aggregation import RuleError
from aggregathor.protocols.arrivals import ArrivalReport
from aggregathor.protocols.report import RoundReport
from aggregathor.protocols.rounds import RefusedError
from aggregathor.protocols.setting import Setting
from aggregathor.protocols.validation import Examples, LossOnCopies, Validation
from aggregathor.trainer.sampling import Batches

Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


@dataclass(frozen=True, eq=False)
class StepReport:
    """What happened in a step.

    Attributes:
      step: how many steps have been made, this one included; without rounds a step is an arrival.
      loss: mean loss of the honest workers on their batches, before the step; in a real training,
        whose server does not ask for it, that of the first worker's batch. Without rounds that of
        the first worker's latest batch, at the model after its arrival; NaN before.
      round: what the server saw.
    """

    step: int
    loss: float
    round: RoundReport | ArrivalReport


class Training(Protocol):
    """What a run needs of a training, simulated or real.

    Attributes:
      setting: who takes part and how.
      model: the server's.
      steps: how many steps have been made.
    """

    setting: Setting
    model: keras.Model
    steps: int

    @property
    def is_whole(self) -> bool:
        """Whether ``state`` has, at this step, all that the next ones depend on."""

    def state(self) -> State:
        """Returns everything that the next steps depend on, as arrays for a checkpoint."""

    def restore(self, state: State) -> None:
        """Goes on from what ``state`` gave.

        Raises:
          UserError: it is of another model, optimizer or number of workers.
        """

    def step(self) -> StepReport:
        """Makes one round."""


class Parameters:
    """A model's trainable variables as one vector, and an optimizer's step on it.

    Attributes:
      variables: the model's trainable ones.
      dim: d, the number of trainable parameters.
      dtype: of their vector, float32 or float64.
    """

    def __init__(self, model: keras.Model, optimizer: keras.Optimizer | None = None) -> None:
        """Builds the optimizer, if there is one, for the variables."""
        self.variables = model.trainable_variables
        self.layout = FlatLayout(self.variables)
        self.dim = self.layout.dim
        self.dtype = np.dtype(self.layout.dtype.as_numpy_dtype)
        self._optimizer = optimizer
        if optimizer is not None:
            optimizer.build(self.variables)
        self._read = tf.function(lambda: self.layout.flatten(self.variables), autograph=False)
        self._assign = tf.function(self._assign_all, autograph=False)
        self.apply = tf.function(self._apply_aggregate, autograph=False)

    def read(self) -> np.ndarray:
        """Returns the values, [d]."""
        return self._read().numpy()

    def assign(self, params_d: np.ndarray) -> None:
        """Replaces the values by these, [d]."""
        self._assign(tf.convert_to_tensor(params_d))

    def learning_rate(self) -> float:
        """Returns the optimizer's, as it is in the next step."""
        assert self._optimizer is not None
        return learning_rate_of(self._optimizer)

    def _assign_all(self, params_d: tf.Tensor) -> None:
        for variable, value in zip(self.variables, self.layout.unflatten(params_d), strict=True):
            variable.assign(value)

    def _apply_aggregate(self, grad_d: tf.Tensor) -> None:
        assert self._optimizer is not None
        self._optimizer.apply(self.layout.unflatten(grad_d), self.variables)


class Workers:
    """Some of the workers, one after the other on one model: what they draw and make of it."""

    def __init__(
        self,
        setting: Setting,
        model: keras.Model,
        parameters: Parameters,
        loss: Loss,
        batches: Batches,
        rows: range,
    ) -> None:
        """Takes the rows of the workers, 0..n-1, and the batches of all n."""
        if len(batches.parts) != setting.num_workers:
            raise ValueError(f"batches are for {len(batches.parts)} workers, not {setting}")
        self._setting = setting
        self._model = model
        self._parameters = parameters
        self._loss = loss
        self._batches = batches
        self._rows = rows
        self._num_classes = int(batches.labels.max()) + 1
        self._attack = ATTACKS[setting.attack] if setting.attack else None
        shape = (len(rows), parameters.dim) if setting.worker_momentum else (0, 0)
        self._momentum_nd = tf.Variable(tf.zeros(shape, parameters.dtype), trainable=False)
        self._gradients = tf.function(self._gradients_of_all, autograph=False)

    def compute(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns each worker's gradient, or momentum, on its batch: [rows, d]; losses [rows]."""
        flips_n = np.isin(self._rows, self._setting.attackers(step))
        return self.gradients(step, self._rows, flips_n)

    def gradients(
        self, step: int, batches: Sequence[int], flips_n: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns gradients on some of the step's batches, one after the other.

        Args:
          step: 0, 1, ...
          batches: their numbers, 0..n-1; with momentum those of the workers.
          flips_n: bool, which are computed on the labels of an attack, if it has any.
        """
        images, labels = self._batches.at(step, batches)
        rows_nd, loss_n = self._gradients(images, self._labels_as_sent(labels, flips_n))
        return rows_nd.numpy(), loss_n.numpy()

    def turn_to(self, row: int) -> None:
        """Lets the next calls be those of another single worker; its momentum is restored by them.

        For a simulation without rounds, whose workers compute one by one.
        """
        self._rows = range(row, row + 1)

    def state(self) -> dict[str, np.ndarray]:
        """Returns what the workers keep from step to step: their momentum, if they have any."""
        if not self._setting.worker_momentum:
            return {}
        return {"momentum": self._momentum_nd.numpy()}

    def restore(self, state: State) -> None:
        """Goes on from what ``state`` gave."""
        if self._setting.worker_momentum:
            self._momentum_nd.assign(state["momentum"])

    def _gradients_of_all(self, images: tf.Tensor, labels: tf.Tensor) -> tuple:
        rows_nd, loss_n = tf.map_fn(
            lambda batch: self._gradient(*batch),
            (images, labels),
            fn_output_signature=(
                tf.TensorSpec([self._parameters.dim], self._parameters.dtype),
                tf.TensorSpec([], tf.float32),
            ),
            parallel_iterations=1,  # dropout's random state goes from one worker to the next
        )
        if self._setting.worker_momentum:
            rows_nd = self._momentum_nd.assign(
                self._setting.worker_momentum * self._momentum_nd + rows_nd
            )
        return rows_nd, loss_n

    def _gradient(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        variables = self._parameters.variables
        with tf.GradientTape() as tape:
            loss = self._loss(labels, self._model(images, training=True))
            objective = penalised(loss, self._setting, variables)
        grad_d = self._parameters.layout.flatten(tape.gradient(objective, variables))
        return grad_d, tf.cast(loss, tf.float32)  # of a model in float64 too

    def _labels_as_sent(self, labels: np.ndarray, flips_n: np.ndarray) -> np.ndarray:
        if self._attack is None or self._attack.labels is None or not flips_n.any():
            return labels
        labels = labels.copy()
        labels[flips_n] = self._attack.labels(labels[flips_n], self._num_classes)
        return labels


def penalised(loss: tf.Tensor, setting: Setting, variables: list[keras.Variable]) -> tf.Tensor:
    """Returns a loss with the penalties on the weights."""
    if setting.l1:
        loss += setting.l1 * tf.add_n([tf.reduce_sum(tf.abs(v)) for v in variables])
    if setting.l2:
        loss += setting.l2 * tf.add_n([tf.reduce_sum(tf.square(v)) for v in variables])
    return loss


class Refusals:
    """Rounds to which the rule cannot be applied: they count as steps and change nothing.

    Not for ever: what the network loses may come again, what all workers have sent does not change.

    Attributes:
      in_a_row: how many there have been since the rule could be applied last.
    """

    _MOST = 20  # one after the other

    def __init__(self) -> None:
        """Begins with none."""
        self.in_a_row = 0

    def add(self, step: int, error: RefusedError) -> RoundReport:
        """Takes in one more; returns its report.

        Raises:
          RuleError: it came whole, or there have been too many.
        """
        self.in_a_row += 1
        if self.in_a_row > self._MOST or np.all(error.report.delivered_n == 1):
            raise RuleError(f"step {step}: {error}") from None
        return error.report

    def end(self) -> None:
        """Begins anew: the rule could be applied."""
        self.in_a_row = 0


def validation_of(
    setting: Setting, model: keras.Model, loss: Loss, arrays: Any
) -> Validation | None:
    """Returns what the rule judges gradients by, or None if it judges them by themselves.

    Args:
      setting: names the rule.
      model: the server's; it is called as for inference.
      loss: ``loss(labels, outputs) -> scalar``.
      arrays: validation images and labels; None where there are none.

    Raises:
      UserError: the rule needs them.
    """
    if not setting.rule.needs_validation:
        return None
    if arrays is None:
        raise UserError(
            f"{setting.rule.gar.name} judges gradients by the loss on validation data, which no "
            "worker draws of, and there are none: give images and labels as validation="
        )
    variables = [variable.value for variable in model.trainable_variables]

    def loss_of(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return loss(labels, model(images, training=False))

    return LossOnCopies(loss_of, variables, Examples(tuple(arrays)))


def values_of(model: keras.Model, optimizer: keras.Optimizer) -> dict[str, np.ndarray]:
    """Returns the variables of a model and an optimizer as arrays, by kind and number."""
    # Seeds of dropout and moving statistics are among the model's variables.
    return {
        f"{kind}/{number}": np.array(variable.numpy())
        for kind, owner in (("model", model), ("optimizer", optimizer))
        for number, variable in enumerate(owner.variables)
    }


def assign_values(model: keras.Model, optimizer: keras.Optimizer, state: Mapping) -> None:
    """Gives a model and an optimizer what ``values_of`` returned.

    Raises:
      KeyError, ValueError: it is of others; what was assigned before stays.
    """
    for kind, owner in (("model", model), ("optimizer", optimizer)):
        for number, variable in enumerate(owner.variables):
            variable.assign(state[f"{kind}/{number}"])
