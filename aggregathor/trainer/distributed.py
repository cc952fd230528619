"""A simulation's counterpart under mpirun: a real server and real workers, over a link.

Without losses it computes what a ``Simulation`` of the same seeds does, bit for bit, and makes the
same checkpoints. The server makes the first worker's forward pass itself: the loss that it reports
is of that batch alone, and so are the moving statistics of a model that keeps any.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from aggregathor.attacks import ATTACKS
from aggregathor.cluster.job import Job
from aggregathor.gars import State
from aggregathor.protocols.decoding import code_of
from aggregathor.protocols.rounds import RefusedError, RoundsServer
from aggregathor.protocols.setting import Setting
from aggregathor.protocols.state import prefixed, under
from aggregathor.protocols.worker import WorkerHalf
from aggregathor.trainer.sampling import Batches
from aggregathor.trainer.seeds import Seeds, seeds_of
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
from lossympi.messages import MOST_BYTES, printable

_log = logging.getLogger(__name__)
_STATE_WAIT_S = 60.0  # for what a worker keeps from step to step

Saves = Callable[[int], bool]


class Server:
    """Rank 0: owns the model, which it trains with what its workers send.

    Attributes:
      setting: who takes part and how.
      model: the one that is trained.
      steps: how many steps have been made.
    """

    def __init__(
        self,
        job: Job,
        setting: Setting,
        model: keras.Model,
        loss: Loss,
        optimizer: keras.Optimizer,
        batches: Batches,
        saves: Saves,
        validation: Any = None,
    ) -> None:
        """Takes what a ``Simulation`` takes, the same on all ranks; ``connect`` comes next.

        Args:
          job: of this process; its workers are as many as the setting's.
          setting: who takes part and how.
          model: a built Keras model.
          loss: ``loss(labels, outputs) -> scalar``, the mean over a batch.
          optimizer: is built for the model's trainable variables here.
          batches: what each worker draws.
          saves: ``saves(steps)`` says whether a checkpoint is made after so many steps. Workers
            then hand over what they keep from step to step.
          validation: images and labels, arrays that no worker draws of, for rules that need them.

        Raises:
          UserError: the rule needs validation data.
        """
        self.setting = setting
        self.model = model
        self.steps = 0
        self._job = job
        self._loss = loss
        self._optimizer = optimizer
        self._batches = batches
        self._saves = saves
        self._parameters = Parameters(model, optimizer)
        self._validation = validation_of(setting, model, loss, validation)
        code_of(setting, self._parameters.dtype)  # which may refuse the type
        self._seeds = seeds_of(model)
        self._forward = tf.function(self._loss_of, autograph=False)
        self._half: RoundsServer  # of `connect`
        # What the workers keep, as of the step at which they were asked last.
        self._momentum_nd: np.ndarray | None = None
        if setting.worker_momentum:
            shape = setting.num_workers, self.dim
            self._momentum_nd = np.zeros(shape, self._parameters.dtype)
        self._attack: State = {}
        self._refusals = Refusals()
        self._heard_at: int | None = None  # the step of what is known of the workers

    @property
    def dim(self) -> int:
        """d, the number of trainable parameters."""
        return self._parameters.dim

    @property
    def is_whole(self) -> bool:
        """Whether ``state`` has all that the next steps depend on.

        What workers keep is not known between two checkpoints.
        """
        return self._heard_at in (None, self.steps) or not _keep(self.setting)

    def connect(self) -> None:
        """Connects to the workers; collective."""
        half = self._job.serve(
            self.dim,
            self._parameters.read,
            self._parameters.dtype,
            learning_rate=self._parameters.learning_rate,
            validation=self._validation,
        )
        assert isinstance(half, RoundsServer)
        self._half = half

    def state(self) -> State:
        """Returns everything that the next steps depend on, as arrays for a checkpoint."""
        state = {
            "step": np.array(self.steps, np.int64),
            "refused": np.array(self._refusals.in_a_row, np.int64),
            **values_of(self.model, self._optimizer),
            **prefixed("server", self._half.state()),
        }
        if self._momentum_nd is not None:
            state["workers/momentum"] = self._momentum_nd
        if "memory" in self._attack:
            state["attack"] = self._attack["memory"]
        return state

    def restore(self, state: State) -> None:
        """Goes on from what ``state`` gave, here or in a simulation."""
        assign_values(self.model, self._optimizer, state)
        self._half.restore(under("server", state))
        if self._momentum_nd is not None:
            self._momentum_nd = np.array(state["workers/momentum"])
        # The attackers have the rule's state too: they follow what it does.
        self._attack = prefixed("rule", under("server/rule", state))
        if "attack" in state:
            self._attack = {**self._attack, "memory": state["attack"]}
        self.steps = int(state["step"])
        self._refusals.in_a_row = int(state["refused"])

    def step(self) -> StepReport:
        """Makes one round: collect, fill, rule, optimizer, broadcast.

        Raises:
          RuleError: see ``Refusals``.
        """
        step = self.steps
        if self._heard_at is None:
            self._begin()
        loss = self._loss_of_first_worker(step)  # while the workers compute
        try:
            report = self._half.collect()
        except RefusedError as error:
            report = self._refusals.add(step + 1, error)
        else:
            self._refusals.end()
            self._parameters.apply(tf.convert_to_tensor(report.grad_d))
        report = self._half.publish(self._parameters.read()) or report
        self.steps += 1
        if self._saves(self.steps) and _keep(self.setting):
            self._hear()
        return StepReport(self.steps, loss, report)

    def _begin(self) -> None:
        """Gives the workers what was restored, or what all begin with."""
        state = {
            "step": np.array(self.steps),
            "params": self._parameters.read(),
            **prefixed("attack", self._attack),
        }
        if self._momentum_nd is not None:
            state["momentum"] = self._momentum_nd
        self._job.ranks.send_state(state)
        self._job.meeting.agree("step", self.steps)  # once they have it
        self._heard_at = self.steps

    def _hear(self) -> None:
        """Takes what the workers keep."""
        momentum_nd = None if self._momentum_nd is None else self._momentum_nd.copy()
        for row in range(self.setting.num_workers):
            theirs = self._state_of(row)
            if theirs is None:
                _log.warning(
                    "%s keeps something that checkpoint %d lacks",
                    self.setting.topology.describe_rows([row]),
                    self.steps,
                )
                continue
            if momentum_nd is not None:
                momentum_nd[row] = theirs["workers/momentum"][0]
            # The attackers all have the same, and others none.
            self._attack = under("attack", theirs) or self._attack
        self._momentum_nd = momentum_nd
        self._heard_at = self.steps

    def _state_of(self, row: int) -> State | None:
        """Returns what a worker keeps as of this step; None if that does not come, or is wrong."""
        # Beside its momentum, the rule's state, and what an attack remembers: at most as much as a
        # stack of float64.
        most_bytes = MOST_BYTES + sum(array.nbytes for array in self._half.state().values())
        each = self._parameters.dtype.itemsize
        most_bytes += (each + 8 * self.setting.num_workers) * self.dim
        until_s = time.monotonic() + _STATE_WAIT_S
        while (left_s := until_s - time.monotonic()) > 0:
            theirs = self._job.ranks.receive_worker_state(row, left_s, most_bytes)
            if theirs is None:
                return None
            why_not = self._why_not_taken(row, theirs)
            if why_not:
                _log.warning(
                    "what %s keeps is not taken: %s",
                    self.setting.topology.describe_rows([row]),
                    why_not,
                )
                return None
            if theirs["step"] >= self.steps:  # else of a checkpoint before
                return theirs
        return None

    def _why_not_taken(self, row: int, theirs: State) -> str:
        """Returns what is wrong with a worker's state, "" if nothing is."""
        wanted = {"step": "int64 []", "round": "int64 []"}
        if self._momentum_nd is not None:
            wanted["workers/momentum"] = f"{self._parameters.dtype} [1, {self.dim}]"
        rest = theirs.keys() - wanted.keys()
        if row in self.setting.attackers(self.steps):
            rest = {name for name in rest if not name.startswith("attack/")}
        if rest or not wanted.keys() <= theirs.keys():
            names = ", ".join(printable(name, 80) for name in sorted(theirs)[:9])
            return f"it has {names}, and {', '.join(wanted)} are wanted"
        for name, form in wanted.items():
            got = f"{theirs[name].dtype} {list(theirs[name].shape)}"
            if got != form:
                return f"{name} is {got}, and {form} is wanted"
        return ""

    def _loss_of_first_worker(self, step: int) -> float:
        """Makes its forward pass, and moves the seeds of dropout by what all workers draw."""
        before = [np.array(v.numpy()) for v in self._seeds]
        images, labels = self._batches.at(step, [0])
        loss = float(self._forward(images[0], labels[0]))
        for seed, first in zip(self._seeds, before, strict=True):
            drawn = seed.numpy() - first
            seed.assign(first + drawn * np.array(self.setting.num_workers, first.dtype))
        return loss

    def _loss_of(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return self._loss(labels, self.model(images, training=True))


class Worker:
    """Any other rank: computes gradients where the server's parameters are."""

    def __init__(
        self,
        job: Job,
        setting: Setting,
        model: keras.Model,
        loss: Loss,
        batches: Batches,
        saves: Saves,
    ) -> None:
        """Takes the arguments of ``Server``, traces and compiles; ``connect`` comes next."""
        self._job = job
        self._setting = setting
        self._saves = saves
        self._row = job.ranks.row
        self._parameters = Parameters(model)
        rows = range(self._row, self._row + 1)
        self._workers = Workers(setting, model, self._parameters, loss, batches, rows)
        self._code = code_of(setting, self._parameters.dtype)
        # Now, as the server waits for the first round no longer than for any other.
        self._seeds = Seeds.of_gradients(model, self._workers)
        self._half: WorkerHalf  # of `connect`

    def connect(self) -> None:
        """Connects to the server; collective."""
        parameters = self._parameters
        self._half = self._job.work(parameters.dim, parameters.read, parameters.dtype)

    def run(self, steps: int) -> None:
        """Takes part until the given number of steps is made.

        Raises:
          TrainingEnded: the server has ended the training before.
          LinkError: the server is lost.
          UserError: the attack cannot work with what it sees.
        """
        state = self._job.ranks.receive_state()
        step = int(state["step"])
        self._job.meeting.agree("step", step)
        self._parameters.assign(state["params"])
        if "momentum" in state:
            self._workers.restore({"momentum": state["momentum"][self._row :][:1]})
        self._half.restore({**state, "round": state["step"]})
        while step < steps:
            sent = self._compute(step)
            # A copy: the link writes the next model where this one is, and tensors may share it.
            self._parameters.assign(np.array(self._half.exchange(sent)))
            # More than one step further where the server has left it behind.
            for made in range(step + 1, self._half.round + 1):
                if self._saves(made) and _keep(self._setting):
                    self._tell(made)
            step = self._half.round

    def _compute(self, step: int) -> np.ndarray:
        """Returns what the worker sends: its gradient, or an encoding of those of its batches."""
        if self._code is None:
            self._place_seeds(step, self._row)
            return self._workers.compute(step)[0][0]
        flips_n = np.isin([self._row], self._setting.attackers(step))
        rows = []
        for j in self._code.batches_of(self._row):
            self._place_seeds(step, j)
            rows.append(self._workers.gradients(step, [j], flips_n)[0][0])
        return self._code.encode(rows, self._row)

    def _place_seeds(self, step: int, batch: int) -> None:
        """Sets the seeds of dropout to where a simulation has them, whose workers share a model."""
        self._seeds.place(step * self._setting.num_workers + batch)

    def _tell(self, step: int) -> None:
        self._job.ranks.send_worker_state(
            {
                "step": np.array(step),
                **prefixed("workers", self._workers.state()),
                **self._half.state(),
            }
        )


def _keep(setting: Setting) -> bool:
    """Whether workers keep something from step to step."""
    remembers = setting.attack and ATTACKS[setting.attack].update is not None
    return bool(setting.worker_momentum or remembers)
