"""n logical workers and a parameter server in one process, on the protocol that real ones use.

The workers compute on the server's own variables, one after the other in one ``tf.function``; what
they send crosses an in-memory link that may lose datagrams. Both halves of a round are those of
``aggregathor.protocols``. All randomness is keyed by (seed, round), so a simulation that is
restored from a checkpoint continues bit for bit.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from aggregathor.attacks import ATTACKS, View
from aggregathor.attacks import apply as rows_sent
from aggregathor.gars import State
from aggregathor.protocols.aggregation import Aggregation, RuleError
from aggregathor.protocols.decoding import code_of
from aggregathor.protocols.rounds import RefusedError, RoundsServer
from aggregathor.protocols.setting import Setting
from aggregathor.protocols.state import prefixed, under
from aggregathor.protocols.wide import wide_server, wide_worker
from aggregathor.protocols.worker import WorkerHalf
from aggregathor.trainer.sampling import Batches
from aggregathor.trainer.seeds import seeds_of
from aggregathor.trainer.training import (
    Loss,
    Parameters,
    Refusals,
    StepReport,
    Workers,
    assign_values,
    validation_of,
    values_of,
)
from lossympi import Network, memory
from lossympi.rng import generator


class Simulation:
    """Trains a Keras model with n logical workers, some of which may be Byzantine.

    >>> simulation = Simulation(setting, model, loss, optimizer, batches)   # doctest: +SKIP
    >>> for _ in range(300):                                                # doctest: +SKIP
    ...     report = simulation.step()

    Attributes:
      setting: who takes part and how.
      model: the one that is trained.
      batches: what each worker draws.
      steps: how many steps have been made.
      is_whole: that ``state`` has all that the next steps depend on, at any step.
    """

    is_whole = True

    def __init__(
        self,
        setting: Setting,
        model: keras.Model,
        loss: Loss,
        optimizer: keras.Optimizer,
        batches: Batches,
        validation: Any = None,
    ) -> None:
        """Connects server and workers; changes nothing of the model yet.

        Args:
          setting: who takes part and how; it is checked here.
          model: a built Keras model.
          loss: ``loss(labels, outputs) -> scalar``, the mean over a batch.
          optimizer: the server's; it is built for the model's trainable variables here.
          batches: what each worker draws; of ``setting.num_workers`` parts.
          validation: images and labels, arrays that no worker draws of, for rules that need them.

        Raises:
          UserError: the setting cannot work, or its rule needs validation data.
        """
        setting.check()
        self.setting = setting
        self.model = model
        self.batches = batches
        self.steps = 0
        self._optimizer = optimizer
        self._parameters = Parameters(model, optimizer)
        self._attack = ATTACKS[setting.attack] if setting.attack else None
        self._memory: np.ndarray | None = None  # of a stateful attack
        rows = range(setting.num_workers)
        self._workers = Workers(setting, model, self._parameters, loss, batches, rows)
        self._code = code_of(setting, self._parameters.dtype)
        width = 1 if self._code is None else self._code.width
        network = Network(loss=setting.loss, seed=setting.seed)
        server, links = memory.connect(
            setting.num_workers, width * self.dim, network, dtype=self._parameters.dtype
        )
        aggregation = Aggregation(
            setting,
            server.dim,
            dtype=self._parameters.dtype,
            learning_rate=self._parameters.learning_rate,
            validation=validation_of(setting, model, loss, validation),
        )
        self._server = RoundsServer(wide_server(server, width), aggregation, self._parameters.read)
        self._halves = [WorkerHalf(wide_worker(link, width)) for link in links]
        self._refusals = Refusals()
        self._seeds = seeds_of(model)

    @property
    def dim(self) -> int:
        """d, the number of trainable parameters."""
        return self._parameters.dim

    def state(self) -> State:
        """Returns everything that the next steps depend on, as arrays for a checkpoint."""
        state = {
            "step": np.array(self.steps, np.int64),
            "refused": np.array(self._refusals.in_a_row, np.int64),
            **values_of(self.model, self._optimizer),
            **prefixed("workers", self._workers.state()),
            **prefixed("server", self._server.state()),
        }
        if self._memory is not None:
            state["attack"] = self._memory
        return state

    def restore(self, state: State) -> None:
        """Goes on from what ``state`` gave, here or on the server of real workers."""
        assign_values(self.model, self._optimizer, state)
        self._workers.restore(under("workers", state))
        self._server.restore(under("server", state))
        self._memory = state.get("attack")
        self.steps = int(state["step"])
        self._refusals.in_a_row = int(state["refused"])
        for half in self._halves:
            half.round = self.steps

    def step(self) -> StepReport:
        """Makes one round: gradients, attack, link, fill, rule, optimizer.

        Raises:
          RuleError: see ``Refusals``; or an attack asks the rule what it cannot be applied to.
        """
        rows_nd, loss_n = self._compute()
        for half, row_d in zip(self._halves, self._sent(rows_nd), strict=True):
            half.send(row_d)
        try:
            report = self._server.collect()
        except RefusedError as error:
            report = self._refusals.add(self.steps + 1, error)
        else:
            self._refusals.end()
            self._parameters.apply(tf.convert_to_tensor(report.grad_d))
        self._server.publish(self._parameters.read())
        for half in self._halves:  # they compute on the server's variables: nothing to assign
            half.receive()
        self.steps += 1
        return StepReport(self.steps, float(np.mean(loss_n)), report)

    def _compute(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns what each worker would send if nothing happened to it, and honest losses.

        Where workers encode, each batch is computed once for all of them. Those whose labels an
        attack changes compute it on these.
        """
        step, code = self.steps, self._code
        honest_n = ~np.isin(np.arange(self.setting.num_workers), self.setting.attackers(step))
        if code is None:
            rows_nd, loss_n = self._workers.compute(step)
            # A Byzantine worker may report any loss, so only the honest ones are asked.
            return rows_nd, loss_n[honest_n]
        batches = range(self.setting.num_workers)
        no, yes = np.zeros(len(batches), bool), np.ones(len(batches), bool)
        before = [np.array(v.numpy()) for v in self._seeds]
        right_jd, loss_j = self._workers.gradients(step, batches, no)
        wrong_jd = right_jd
        if self._attack is not None and self._attack.labels is not None:
            changed = self.model.non_trainable_variables
            after = [np.array(v.numpy()) for v in changed]
            for seed, value in zip(self._seeds, before, strict=True):
                seed.assign(value)
            wrong_jd, _ = self._workers.gradients(step, batches, yes)
            for variable, value in zip(changed, after, strict=True):
                variable.assign(value)
        sent = [
            code.encode([(right_jd if honest_n[k] else wrong_jd)[j] for j in code.batches_of(k)], k)
            for k in batches
        ]
        return np.stack(sent), loss_j

    def _sent(self, rows_nd: np.ndarray) -> np.ndarray:
        """What leaves the workers: the honest rows, and what the attack makes of the others."""
        if self._attack is None:
            return rows_nd
        aggregation = self._server.aggregation
        context = aggregation.context(self.steps, self._parameters.read)
        order = self.setting.honest_first(self.steps)  # as attacks take them
        num_honest = self.setting.num_workers - self.setting.byzantine
        view = View(
            honest_hd=rows_nd[order[:num_honest]],
            own_bd=rows_nd[order[num_honest:]],
            f=self.setting.f,
            rng=generator("attack", self.setting.seed, self.steps),
            # What the server alone knows they cannot ask for.
            aggregate=None
            if self.setting.rule.needs_validation
            else lambda stack_nd: aggregation.ask(stack_nd, context, order),
            state=self._memory,
        )
        try:
            sent_nd = rows_sent(self._attack, view, **self.setting.attack_args)
            sent_nd = sent_nd[np.argsort(order)]
        except RuleError as error:  # of an attack that asks
            raise RuleError(f"step {self.steps + 1}: {error}") from None
        if self._attack.update is not None:
            self._memory = self._attack.update(view)
        return sent_nd
