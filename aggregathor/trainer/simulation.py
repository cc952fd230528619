"""n logical workers and a parameter server in one process, on the protocol that real ones use.

The workers compute on the server's own variables, one after the other in one ``tf.function``; what
they send crosses an in-memory link that may lose datagrams; the server's side of the round is
``protocols.sync.server_round``. All randomness is keyed by (seed, round), so a simulation restored
from a checkpoint continues bit for bit.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from aggregathor import gars
from aggregathor.attacks import ATTACKS, View
from aggregathor.attacks import apply as send_attack
from aggregathor.protocols.aggregation import Aggregator, RuleError
from aggregathor.protocols.rounds import server_round, worker_receives, worker_sends
from aggregathor.protocols.setting import Setting
from aggregathor.trainer.sampling import Batches
from aggregathor.trainer.training import Loss, Parameters, State, StepReport, Workers
from lossympi import Network, memory
from lossympi.rng import generator


class Simulation:
    """Trains a Keras model with n logical workers, of which some may be Byzantine.

    >>> simulation = Simulation(setting, model, loss, optimizer, batches)   # doctest: +SKIP
    >>> for _ in range(300):                                                # doctest: +SKIP
    ...     report = simulation.step()

    Attributes:
      is_whole: that ``checkpoint`` has all that the next steps depend on, at any step.
    """

    is_whole = True

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
        self.setting = setting
        self.model = model
        self.batches = batches
        self._optimizer = optimizer
        self._parameters = Parameters(model, optimizer)
        self._attack = ATTACKS[setting.attack] if setting.attack else None
        network = Network(loss=setting.loss, seed=setting.seed)
        self._server, self._links = memory.connect(setting.num_workers, self.dim, network)

        # All that a step changes, beside the model and the optimizer.
        rows = range(setting.num_workers)
        self._workers = Workers(setting, model, self._parameters, loss, batches, rows)
        self._aggregator = Aggregator(setting, self.dim)
        self._state = State()

    @property
    def dim(self) -> int:
        """d, the number of trainable parameters."""
        return self._parameters.dim

    @property
    def steps(self) -> int:
        """How many steps have been made."""
        return int(self._state.round.numpy())

    def checkpoint(self) -> tf.train.Checkpoint:
        """Everything that the next steps depend on: save it, or restore into it."""
        return self._state.checkpoint(
            self.model, self._optimizer, self._workers.momentum_nd, self._aggregator
        )

    def step(self) -> StepReport:
        """Makes one round: gradients, attack, link, fill, rule, optimizer."""
        round = self.steps
        rows_nd, loss_n = self._workers.compute(round)
        sent_nd = self._sent(round, rows_nd)
        for link, row_d in zip(self._links, sent_nd, strict=True):
            worker_sends(round, link, row_d)
        report = server_round(
            round,
            self._server,
            fill=self._aggregator.fill,
            explain=self._explain,
            apply=self._parameters.apply,
            read=self._parameters.read,
        )
        for link in self._links:  # they compute on the server's variables: nothing to assign
            worker_receives(round, link, assign=lambda params_d: None)
        self._state.round.assign_add(1)
        # A Byzantine worker may report any loss, so only the honest ones are asked.
        return StepReport(round + 1, float(np.mean(loss_n[: self._num_honest])), report)

    @property
    def _num_honest(self) -> int:
        return self.setting.num_workers - self.setting.num_byzantine

    def _sent(self, round: int, rows_nd: np.ndarray) -> np.ndarray:
        """What leaves the workers: the honest rows, and what the attack makes of the others."""
        if self._attack is None:
            return rows_nd
        state = self._state.attack.numpy()
        view = View(
            honest_hd=rows_nd[: self._num_honest],
            own_bd=rows_nd[self._num_honest :],
            f=self.setting.f,
            rng=generator("attack", self.setting.seed, round),
            explain=self._explain,
            state=state if state.size else None,
        )
        sent_nd = send_attack(self._attack, view, **self.setting.attack_parameters)
        if self._attack.update is not None:
            self._state.attack.assign(self._attack.update(view))
        return sent_nd

    def _explain(self, stack_nd: np.ndarray) -> gars.Explained:
        try:
            return self._aggregator.explain(stack_nd)
        except RuleError as error:
            raise RuleError(f"step {self.steps + 1}: {error}") from None
