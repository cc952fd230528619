"""What the server of a training without rounds computes itself, simulated or real."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from aggregathor.errors import UserError
from aggregathor.protocols.registry import PROTOCOLS
from aggregathor.protocols.setting import Setting
from aggregathor.trainer.sampling import Batches
from aggregathor.trainer.seeds import Seeds
from aggregathor.trainer.training import Loss, Parameters, penalised
from lossympi.rng import generator


class FirstWorker:
    """The forward pass of the first worker's batches at the server's model.

    It gives the loss that is reported, and the moving statistics of a model that keeps any.

    Attributes:
      loss: of the batch that was seen last; NaN before the first.
    """

    def __init__(self, model: keras.Model, loss: Loss, batches: Batches) -> None:
        """Traces the pass; changes nothing of the model."""
        self.loss = float("nan")
        self._model = model
        self._loss = loss
        self._batches = batches
        self._workers = len(batches.parts)
        self._forward = tf.function(self._loss_of, autograph=False)
        self._seeds = Seeds(model, lambda: self._compute(0))

    def see(self, ticket: int) -> None:
        """Makes the pass of the batch of its gradient with this number."""
        self._seeds.place(ticket * self._workers)
        self.loss = self._compute(ticket)

    def _compute(self, ticket: int) -> float:
        images, labels = self._batches.at(ticket, [0])
        return float(self._forward(images[0], labels[0]))

    def _loss_of(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return self._loss(labels, self._model(images, training=True))


class ValidationGradient:
    """The gradient of validation data, that no worker draws of, at the server's model."""

    def __init__(
        self,
        setting: Setting,
        model: keras.Model,
        parameters: Parameters,
        loss: Loss,
        images: np.ndarray,
        labels: np.ndarray,
    ) -> None:
        """Takes what a ``Simulation`` takes, and the examples."""
        self._setting = setting
        self._model = model
        self._parameters = parameters
        self._loss = loss
        self._images, self._labels = images, labels
        self._gradient = tf.function(self._gradient_of, autograph=False)

    def __call__(self, params_d: np.ndarray, number: int, count: int) -> np.ndarray:
        """Returns the gradient [d] of that many examples, as for inference: see ``Validate``.

        Args:
          params_d: the parameters of the model as they are.
          number: of the batch: equal numbers draw equal examples.
          count: how many examples; all, where there are no more.
        """
        most = len(self._labels)
        rng = generator("validation gradient", self._setting.seed, number)
        chosen = rng.choice(most, min(count, most), replace=False)
        return self._gradient(self._images[chosen], self._labels[chosen]).numpy()

    def _gradient_of(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        variables = self._parameters.variables
        with tf.GradientTape() as tape:
            loss = self._loss(labels, self._model(images, training=False))
            objective = penalised(loss, self._setting, variables)
        return self._parameters.layout.flatten(tape.gradient(objective, variables))


def validate_of(
    setting: Setting, model: keras.Model, parameters: Parameters, loss: Loss, arrays: Any
) -> ValidationGradient | None:
    """Returns what gives the gradient of validation data, or None where there are none.

    Args:
      setting: names the protocol.
      model: the server's.
      parameters: its.
      loss: ``loss(labels, outputs) -> scalar``.
      arrays: validation images and labels; None where there are none.

    Raises:
      UserError: the protocol needs them.
    """
    if arrays is not None:
        return ValidationGradient(setting, model, parameters, loss, *arrays)
    if PROTOCOLS[setting.protocol].needs_validation:
        raise UserError(
            f"{setting.protocol} judges gradients by data that the server alone has, which no "
            "worker draws of, and there are none: give images and labels as validation="
        )
    return None
