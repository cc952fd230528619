"""n logical workers and a parameter server in one process, on the protocol that real ones use.

The workers compute on the server's own variables, one after the other in one ``tf.function``; what
they send crosses an in-memory link that may lose datagrams; the server's side of the round is
``protocols.sync.server_round``. All randomness is keyed by (seed, round), so a simulation restored
from a checkpoint continues bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from aggregathor import gars
from aggregathor.aggregator import Aggregator, RuleError
from aggregathor.attacks import ATTACKS, View
from aggregathor.attacks import apply as send_attack
from aggregathor.flat import FlatLayout
from aggregathor.protocols.sync import RoundReport, server_round, worker_receives, worker_sends
from aggregathor.sampling import Batches
from aggregathor.setting import Setting
from lossympi import Network, memory
from lossympi.rng import generator

Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


@dataclass(frozen=True, eq=False)
class StepReport:
    """What happened in a step.

    Attributes:
      step: how many steps have been made, this one included.
      loss: mean loss of the honest workers on their batches, before the step.
      round: what the server saw.
    """

    step: int
    loss: float
    round: RoundReport


class Simulation:
    """Trains a Keras model with n logical workers, of which some may be Byzantine.

    >>> simulation = Simulation(setting, model, loss, optimizer, batches)   # doctest: +SKIP
    >>> for _ in range(300):                                                # doctest: +SKIP
    ...     report = simulation.step()
    """

    def __init__(
        self,
        setting: Setting,
        model: keras.Model,
        loss: Loss,
        optimizer: keras.Optimizer,
        batches: Batches,
    ) -> None:
        """Connects server and workers; changes nothing of the model yet.

        Args:
          setting: who takes part and how; it is checked here.
          model: a built Keras model with float32 weights.
          loss: ``loss(labels, outputs) -> scalar``, the mean over a batch.
          optimizer: the server's; it is built for the model's trainable variables here.
          batches: what each worker draws; of ``setting.num_workers`` parts.
        """
        setting.check()
        if len(batches.parts) != setting.num_workers:
            raise ValueError(f"batches are for {len(batches.parts)} workers, not {setting}")
        self.setting = setting
        self.model = model
        self.batches = batches
        self._num_classes = int(batches.labels.max()) + 1
        self._variables = model.trainable_variables
        self._layout = FlatLayout(self._variables)
        self._optimizer = optimizer
        optimizer.build(self._variables)
        self._loss = loss
        self._attack = ATTACKS[setting.attack] if setting.attack else None
        network = Network(loss=setting.loss, seed=setting.seed)
        self._server, self._workers = memory.connect(setting.num_workers, self.dim, network)

        # All that a step changes, beside the model and the optimizer.
        rows = (setting.num_workers, self.dim)
        self._round = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._momentum_nd = _state(rows if setting.worker_momentum else (0, 0))
        self._aggregator = Aggregator(setting, self.dim)
        self._attack_state = tf.Variable(
            np.zeros(0), shape=tf.TensorShape(None), dtype=tf.float64, trainable=False
        )
        self._gradients = tf.function(self._gradients_of_all, autograph=False)
        self._apply = tf.function(self._apply_aggregate, autograph=False)
        self._read = tf.function(lambda: self._layout.flatten(self._variables), autograph=False)

    @property
    def dim(self) -> int:
        """d, the number of trainable parameters."""
        return self._layout.dim

    @property
    def steps(self) -> int:
        """How many steps have been made."""
        return int(self._round.numpy())

    def checkpoint(self) -> tf.train.Checkpoint:
        """Everything that the next steps depend on: save it, or restore into it."""
        return tf.train.Checkpoint(
            # Seeds of dropout and moving statistics are among the model's variables.
            model=[v.value for v in self.model.variables],
            optimizer=[v.value for v in self._optimizer.variables],
            round=self._round,
            momentum=self._momentum_nd,
            previous=self._aggregator.previous_nd,
            attack=self._attack_state,
        )

    def step(self) -> StepReport:
        """Makes one round: gradients, attack, link, fill, rule, optimizer."""
        round = self.steps
        images, labels = self.batches.at(round)
        rows_nd, loss_n = self._gradients(images, self._labels_as_sent(labels))
        sent_nd = self._sent(round, rows_nd.numpy())
        for link, row_d in zip(self._workers, sent_nd, strict=True):
            worker_sends(round, link, row_d)
        report = server_round(
            round,
            self._server,
            fill=self._aggregator.fill,
            explain=self._explain,
            apply=self._apply,
            read=lambda: self._read().numpy(),
        )
        for link in self._workers:  # they compute on the server's variables: nothing to assign
            worker_receives(round, link, assign=lambda params_d: None)
        self._round.assign_add(1)
        # A Byzantine worker may report any loss, so only the honest ones are asked.
        return StepReport(round + 1, float(np.mean(loss_n[: self._num_honest])), report)

    @property
    def _num_honest(self) -> int:
        return self.setting.num_workers - self.setting.num_byzantine

    def _gradients_of_all(self, images: tf.Tensor, labels: tf.Tensor) -> tuple:
        """Each worker's gradient, or momentum, on its batch: [n, d] and losses [n]."""
        rows_nd, loss_n = tf.map_fn(
            lambda batch: self._gradient(*batch),
            (images, labels),
            fn_output_signature=(
                tf.TensorSpec([self.dim], tf.float32),
                tf.TensorSpec([], tf.float32),
            ),
            parallel_iterations=1,  # dropout's random state goes from one worker to the next
        )
        if self.setting.worker_momentum:
            rows_nd = self._momentum_nd.assign(
                self.setting.worker_momentum * self._momentum_nd + rows_nd
            )
        return rows_nd, loss_n

    def _gradient(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = self._loss(labels, self.model(images, training=True))
            objective = loss
            if self.setting.l1:
                objective += self.setting.l1 * tf.add_n(
                    [tf.reduce_sum(tf.abs(v)) for v in self._variables]
                )
            if self.setting.l2:
                objective += self.setting.l2 * tf.add_n(
                    [tf.reduce_sum(tf.square(v)) for v in self._variables]
                )
        return self._layout.flatten(tape.gradient(objective, self._variables)), loss

    def _labels_as_sent(self, labels: np.ndarray) -> np.ndarray:
        if self._attack is None or self._attack.labels is None:
            return labels
        flipped = self._attack.labels(labels[self._num_honest :], self._num_classes)
        return np.concatenate([labels[: self._num_honest], flipped.astype(labels.dtype)])

    def _sent(self, round: int, rows_nd: np.ndarray) -> np.ndarray:
        """What leaves the workers: the honest rows, and what the attack makes of the others."""
        if self._attack is None:
            return rows_nd
        state = self._attack_state.numpy()
        view = View(
            honest_hd=rows_nd[: self._num_honest],
            own_bd=rows_nd[self._num_honest :],
            f=self.setting.f,
            rng=generator("attack", self.setting.seed, round),
            explain=lambda stack_nd: tuple(part.numpy() for part in self._explain(stack_nd)),
            state=state if state.size else None,
        )
        sent_nd = send_attack(self._attack, view, **self.setting.attack_parameters)
        if self._attack.update is not None:
            self._attack_state.assign(self._attack.update(view))
        return sent_nd

    def _explain(self, stack_nd: np.ndarray) -> gars.Explained:
        try:
            return self._aggregator.explain(stack_nd)
        except RuleError as error:
            raise RuleError(f"step {self.steps + 1}: {error}") from None

    def _apply_aggregate(self, grad_d: tf.Tensor) -> None:
        self._optimizer.apply(self._layout.unflatten(grad_d), self._variables)


def _state(shape: tuple[int, int]) -> tf.Variable:
    return tf.Variable(tf.zeros(shape, tf.float32), trainable=False)
