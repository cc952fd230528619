"""The counterpart of ``SimulatedArrivals`` under mpirun: a real server and real workers.

In which order gradients come depends on the machine. The server reports it, and a simulation that
follows it computes the same, bit for bit.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from aggregathor.cluster.job import Job
from aggregathor.errors import UserError
from aggregathor.gars import State
from aggregathor.protocols.aggregation import RuleError
from aggregathor.protocols.arrivals import ArrivalsServer
from aggregathor.protocols.rounds import TrainingStopped
from aggregathor.protocols.setting import Setting
from aggregathor.protocols.state import prefixed, under
from aggregathor.protocols.worker import WorkerHalf
from aggregathor.trainer.first_worker import FirstWorker, validate_of
from aggregathor.trainer.sampling import Batches
from aggregathor.trainer.seeds import Seeds
from aggregathor.trainer.training import (
    Loss,
    Parameters,
    StepReport,
    Workers,
    assign_values,
    values_of,
)


class ServerOfArrivals:
    """Rank 0: owns the model, which it trains with whatever comes.

    Attributes:
      setting: who takes part and how.
      model: the one that is trained.
      steps: how many arrivals there have been.
      is_whole: that ``state`` has all that the server knows, at any step. What workers were at is
        lost when the processes end; they go on with the newest model.
    """

    is_whole = True

    def __init__(
        self,
        job: Job,
        setting: Setting,
        model: keras.Model,
        loss: Loss,
        optimizer: keras.Optimizer,
        batches: Batches,
        validation: Any = None,
    ) -> None:
        """Takes what ``SimulatedArrivals`` takes, the same on all ranks; ``connect`` comes next."""
        if setting.worker_momentum:
            raise UserError(
                f"under mpirun --protocol={setting.protocol} keeps no momentum at workers, as no "
                "checkpoint would have it. Take --momentum_at=server."
            )
        self.setting = setting
        self.model = model
        self.steps = 0
        self._job = job
        self._optimizer = optimizer
        self._parameters = Parameters(model, optimizer)
        self._first = FirstWorker(model, loss, batches)
        self._validate = validate_of(setting, model, self._parameters, loss, validation)
        self._has_begun = False
        self._half: ArrivalsServer  # of `connect`

    def connect(self) -> None:
        """Connects to the workers; collective."""
        half = self._job.serve(
            self._parameters.dim,
            self._parameters.read,
            self._parameters.dtype,
            learning_rate=self._parameters.learning_rate,
            validate=self._validate,
        )
        assert isinstance(half, ArrivalsServer)
        self._half = half

    def state(self) -> State:
        """Returns everything that the server knows, as arrays for a checkpoint."""
        return {
            "step": np.array(self.steps, np.int64),
            "loss": np.array(self._first.loss),
            **values_of(self.model, self._optimizer),
            **prefixed("server", self._half.state()),
            **prefixed("held", self._half.state_of_workers()),
        }

    def restore(self, state: State) -> None:
        """Goes on from what ``state`` gave; the workers with the newest model."""
        assign_values(self.model, self._optimizer, state)
        self._half.restore(under("server", state))
        self._half.expect(state["held/tickets"].tolist())
        self.steps = int(state["step"])
        self._first.loss = float(state["loss"])

    def step(self) -> StepReport:
        """Makes one arrival.

        Raises:
          RuleError: there has been no update for too long, or BASGD's rule cannot be applied.
        """
        if not self._has_begun:
            self._begin()
        try:
            report = self._half.collect()
        except (TrainingStopped, RuleError) as error:
            raise RuleError(f"step {self.steps + 1}: {error}") from None
        if report.is_step:
            self._parameters.apply(tf.constant(report.grad_d))
            self._half.publish(self._parameters.read())
        if report.row == 0:
            self._first.see(report.ticket)
        self.steps += 1
        return StepReport(self.steps, self._first.loss, report)

    def _begin(self) -> None:
        """Gives the workers what was restored, or what all begin with."""
        self._job.ranks.send_state(
            {
                "step": np.array(self.steps),
                "tickets": np.array(self._half.rounds()),
                "params": self._parameters.read(),
            }
        )
        self._job.meeting.agree("step", self.steps)  # once they have it
        self._has_begun = True


class WorkerOfArrivals:
    """Any other rank: computes gradients at whatever model answers its last one."""

    def __init__(
        self, job: Job, setting: Setting, model: keras.Model, loss: Loss, batches: Batches
    ) -> None:
        """Takes the arguments of ``ServerOfArrivals``, traces and compiles; ``connect`` is next."""
        self._job = job
        self._setting = setting
        self._row = job.ranks.row
        self._parameters = Parameters(model)
        rows = range(self._row, self._row + 1)
        self._workers = Workers(setting, model, self._parameters, loss, batches, rows)
        self._seeds = Seeds.of_gradients(model, self._workers)
        self._half: WorkerHalf  # of `connect`

    def connect(self) -> None:
        """Connects to the server; collective."""
        parameters = self._parameters
        self._half = self._job.work(parameters.dim, parameters.read, parameters.dtype)

    def run(self, steps: int) -> None:
        """Takes part until the server ends the training, which has had so many arrivals of all.

        Raises:
          TrainingEnded: it has ended.
          LinkError: the server is lost.
        """
        state = self._job.ranks.receive_state()
        self._job.meeting.agree("step", int(state["step"]))
        self._parameters.assign(state["params"])
        self._half.round = int(state["tickets"][self._row])
        while True:
            ticket = self._half.round
            # Where a simulation has them, whose workers share a model.
            self._seeds.place(ticket * self._setting.num_workers + self._row)
            rows_nd, _ = self._workers.compute(ticket)
            # A copy: the link writes the next model where this one is, and tensors may share it.
            self._parameters.assign(np.array(self._half.exchange(rows_nd[0])))
