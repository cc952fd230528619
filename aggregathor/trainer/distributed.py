"""A simulation's counterpart under mpirun: a real server and real workers, over a link.

Without losses it computes what a ``Simulation`` of the same seeds does, bit for bit, and makes the
same checkpoints. The server makes the first worker's forward pass itself: the loss that it reports
is of that batch alone, and so are the moving statistics of a model that keeps any.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from aggregathor.attacks import ATTACKS
from aggregathor.cluster.job import Job
from aggregathor.cluster.server import ServerChannel
from aggregathor.cluster.worker import WorkerChannel
from aggregathor.log import say
from aggregathor.protocols.aggregation import RuleError
from aggregathor.protocols.setting import Setting
from aggregathor.trainer.sampling import Batches
from aggregathor.trainer.training import Loss, Parameters, State, StepReport, Workers, momenta

_KEPT_WAIT_S = 60.0  # for what a worker keeps
_MOST_REFUSED = 20  # rounds, one after the other, of which too little may arrive

Saves = Callable[[int], bool]


class Server:
    """Rank 0: owns the model, which it trains with what its workers send.

    Attributes:
      setting: who takes part and how.
      model: the one that is trained.
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
    ) -> None:
        """Takes what a ``Simulation`` takes, the same on all ranks; ``connect`` comes next.

        Args:
          job: of this process; its workers are as many as the setting's.
          setting: who takes part and how.
          model: a built Keras model with float32 weights.
          loss: ``loss(labels, outputs) -> scalar``, the mean over a batch.
          optimizer: is built for the model's trainable variables here.
          batches: what each worker draws.
          saves: tells, for a number of steps made, whether a checkpoint is made then: that is when
            workers hand over what they keep from round to round.
        """
        self.setting = setting
        self.model = model
        self._job = job
        self._loss = loss
        self._optimizer = optimizer
        self._batches = batches
        self._saves = saves
        self._parameters = Parameters(model, optimizer)
        self._seeds = _seeds(model)
        self._forward = tf.function(self._loss_of, autograph=False)
        self._channel: ServerChannel  # of `connect`
        rows = (setting.num_workers, self.dim)
        self._momentum_nd = momenta(rows if setting.worker_momentum else (0, 0))
        self._state = State()
        self._refused = 0  # rounds, up to now, that the rule could not be applied to
        self._heard_at: int | None = None  # the step of what is known of the workers

    @property
    def dim(self) -> int:
        """d, the number of trainable parameters."""
        return self._parameters.dim

    @property
    def steps(self) -> int:
        """How many steps have been made."""
        return int(self._state.round.numpy())

    @property
    def is_whole(self) -> bool:
        """Whether ``checkpoint`` has all that the next steps depend on.

        What workers keep is not known between two checkpoints.
        """
        return self._heard_at in (None, self.steps) or not _keep(self.setting)

    def connect(self) -> None:
        """Connects to the workers; collective."""
        channel = self._job.connect(self._parameters.read())
        assert isinstance(channel, ServerChannel)
        self._channel = channel

    def checkpoint(self) -> tf.train.Checkpoint:
        """Everything that the next steps depend on: save it, or restore into it before a step."""
        return self._state.checkpoint(
            self.model, self._optimizer, self._momentum_nd, self._channel.aggregator
        )

    def step(self) -> StepReport:
        """Makes one round: collect, fill, rule, optimizer, broadcast.

        One of which too little arrived for the rule counts, and changes nothing.

        Raises:
          RuleError: the rule cannot be applied though all has come, or not for many rounds.
        """
        step = self.steps
        if self._heard_at is None:
            self._begin(step)
        loss = self._loss_of_first_worker(step)  # while the workers compute
        report, refusal = self._channel.aggregate_once()
        if refusal is None:
            self._refused = 0
            self._parameters.apply(tf.convert_to_tensor(report.grad_d))
        else:
            self._refused += 1
            if self._refused > _MOST_REFUSED or np.all(report.delivered_n == 1):
                raise RuleError(f"step {step + 1}: {refusal}")
        report = self._channel.publish(self._parameters.read()) or report
        self._state.round.assign_add(1)
        if self._saves(step + 1) and _keep(self.setting):
            self._hear(step + 1)
        return StepReport(step + 1, loss, report)

    def _begin(self, step: int) -> None:
        """Gives the workers what was restored, or what all begin with."""
        state = {
            "params": self._parameters.read(),
            "momentum": self._momentum_nd.numpy(),
            "attack": self._state.attack.numpy(),
            "step": np.array(step),
        }
        self._job.ranks.send_state(state)
        self._job.meeting.agree("step", step)  # once they have it
        self._channel.round = step
        self._heard_at = step

    def _hear(self, step: int) -> None:
        """Takes what the workers keep."""
        momentum_nd = self._momentum_nd.numpy()
        for row in range(self.setting.num_workers):
            kept = self._job.ranks.receive_kept(row + 1, _KEPT_WAIT_S)
            while kept is not None and kept["step"] < step:  # of a checkpoint that it came late for
                kept = self._job.ranks.receive_kept(row + 1, _KEPT_WAIT_S)
            if kept is None:
                say(f"worker {row} (rank {row + 1}) keeps something that checkpoint {step} lacks")
                continue
            if self.setting.worker_momentum:
                momentum_nd[row] = kept["momentum"]
            if kept["attack"].size:  # the attackers all have the same
                self._state.attack.assign(kept["attack"])
        self._momentum_nd.assign(momentum_nd)
        self._heard_at = step

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
        self._row = job.ranks.rank - 1
        self._parameters = Parameters(model)
        rows = range(self._row, self._row + 1)
        self._workers = Workers(setting, model, self._parameters, loss, batches, rows)
        self._seeds = _seeds(model)
        self._first_seeds = [np.array(v.numpy()) for v in self._seeds]
        self._draws = self._warm_up(model)
        self._channel: WorkerChannel  # of `connect`

    def connect(self) -> None:
        """Connects to the server; collective."""
        channel = self._job.connect(self._parameters.read())
        assert isinstance(channel, WorkerChannel)
        self._channel = channel

    def run(self, steps: int) -> None:
        """Takes part until so many steps are made.

        Raises:
          TrainingEnded: the server has ended the training before.
          LinkError: the server is lost.
          UserError: the attack cannot work with what it sees.
        """
        state = self._job.ranks.receive_state()
        step = int(state["step"])
        self._job.meeting.agree("step", step)
        self._parameters.assign(state["params"])
        if self._setting.worker_momentum:
            self._workers.momentum_nd.assign(state["momentum"][self._row :][:1])
        attacker = self._channel.attacker
        if attacker is not None and attacker.attacks and state["attack"].size:
            attacker.state = state["attack"]
        self._channel.round = step
        while step < steps:
            self._place_seeds(step)
            rows_nd, _ = self._workers.compute(step)
            # A copy: the channel writes the next model where this one is, and tensors may share it.
            self._parameters.assign(np.array(self._channel.exchange(rows_nd[0])))
            # More than one step further where the server has left it behind.
            for made in range(step + 1, self._channel.round + 1):
                if self._saves(made) and _keep(self._setting):
                    self._tell(made)
            step = self._channel.round

    def _tell(self, step: int) -> None:
        attacker = self._channel.attacker
        remembered = None if attacker is None else attacker.state
        kept = {
            "step": np.array(step),
            "momentum": self._workers.momentum_nd.numpy().ravel(),
            "attack": np.zeros(0) if remembered is None else remembered,
        }
        self._job.ranks.send_kept(kept)

    def _warm_up(self, model: keras.Model) -> list[np.ndarray]:
        """Traces and compiles; returns how far a gradient moves each seed.

        The server waits for the first round no longer than for any other.
        """
        changed = [*model.non_trainable_variables, self._workers.momentum_nd]
        before = [np.array(v.numpy()) for v in changed]
        self._workers.compute(0)
        draws = [v.numpy() - first for v, first in zip(self._seeds, self._first_seeds, strict=True)]
        for variable, value in zip(changed, before, strict=True):
            variable.assign(value)
        return draws

    def _place_seeds(self, step: int) -> None:
        """Sets the seeds of dropout to where a simulation has them, whose workers share a model."""
        gradients = step * self._setting.num_workers + self._row
        for seed, first, draw in zip(self._seeds, self._first_seeds, self._draws, strict=True):
            seed.assign(first + draw * np.array(gradients).astype(first.dtype))  # modulo 2^32


def _keep(setting: Setting) -> bool:
    """Whether workers keep something from round to round."""
    remembers = setting.attack and ATTACKS[setting.attack].update is not None
    return bool(setting.worker_momentum or remembers)


def _seeds(model: keras.Model) -> list[keras.Variable]:
    """Returns the states of its random number generators."""
    return [v for v in model.non_trainable_variables if "seed_generator_state" in v.path]
