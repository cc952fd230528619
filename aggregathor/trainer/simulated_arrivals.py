"""A simulation without rounds: n logical workers and a server in one process, on a virtual clock.

One event is one arrival: the worker's gradient is computed when it comes, at the model that the
worker had been given. Both halves are those of ``aggregathor.protocols``. All randomness is keyed,
so a simulation that is restored from a checkpoint continues bit for bit, and one that follows the
schedule of a real training computes what that did.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from aggregathor.errors import UserError
from aggregathor.gars import State
from aggregathor.protocols.aggregation import RuleError
from aggregathor.protocols.arrival_rules import arrival_rule
from aggregathor.protocols.arrivals import ArrivalReport, ArrivalsServer
from aggregathor.protocols.checks import check_simulated_loss
from aggregathor.protocols.local_attacker import local_attacker_of
from aggregathor.protocols.setting import Setting
from aggregathor.protocols.state import prefixed, under
from aggregathor.protocols.worker import WorkerHalf
from aggregathor.trainer.delays import Coming, Delays
from aggregathor.trainer.first_worker import FirstWorker, validate_of
from aggregathor.trainer.sampling import Batches
from aggregathor.trainer.schedule import Line
from aggregathor.trainer.seeds import Seeds, unchanged
from aggregathor.trainer.training import (
    Loss,
    Parameters,
    StepReport,
    Workers,
    assign_values,
    values_of,
)
from lossympi import memory


class SimulatedArrivals:
    """Trains a Keras model with n logical workers, none of which waits for another.

    Attributes:
      setting: who takes part and how.
      model: the one that is trained.
      batches: what each worker draws.
      steps: how many arrivals there have been.
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
        schedule: Sequence[Line] = (),
    ) -> None:
        """Connects server and workers; changes nothing of the model yet.

        Args:
          setting: who takes part and how; it is checked here.
          model: a built Keras model.
          loss: ``loss(labels, outputs) -> scalar``, the mean over a batch.
          optimizer: the server's; it is built for the model's trainable variables here.
          batches: what each worker draws; of ``setting.num_workers`` parts.
          validation: images and labels, arrays that no worker draws of, for Zeno++.
          schedule: the arrivals of another training, to be followed in place of the setting's
            delays.

        Raises:
          UserError: the setting cannot work, or its protocol needs validation data.
        """
        setting.check()
        check_simulated_loss(setting)
        self.setting = setting
        self.model = model
        self.batches = batches
        self.steps = 0
        self._now_s = 0.0
        self._optimizer = optimizer
        self._parameters = Parameters(model, optimizer)
        dtype, n = self._parameters.dtype, setting.num_workers
        self._workers = Workers(setting, model, self._parameters, loss, batches, range(1))
        self._seeds = Seeds.of_gradients(model, self._workers)
        has_momentum = bool(self._workers.state())
        self._momentum_nd = np.zeros((n, self.dim), dtype) if has_momentum else None
        self._first = FirstWorker(model, loss, batches)
        server, links = memory.connect(n, self.dim, dtype=dtype, arrivals=True)
        rule = arrival_rule(
            setting,
            self.dim,
            dtype=dtype,
            learning_rate=self._parameters.learning_rate,
            validate=validate_of(setting, model, self._parameters, loss, validation),
        )
        self._server = ArrivalsServer(server, rule, self._parameters.read, now=lambda: self._now_s)
        self._halves = [
            WorkerHalf(link, attack=local_attacker_of(setting, row))
            for row, link in enumerate(links)
        ]
        self._delays = Delays(setting.delays, setting.delay_args, n, setting.seed)
        self._schedule = tuple(schedule)
        # Until which arrival a version is needed, where that is known.
        self._last_use = {line.version: step for step, line in enumerate(self._schedule)}
        self._past = dict([self._server.newest()])

    @property
    def dim(self) -> int:
        """d, the number of trainable parameters."""
        return self._parameters.dim

    def state(self) -> State:
        """Returns everything that the next steps depend on, as arrays for a checkpoint."""
        versions = sorted(self._past)
        state = {
            "step": np.array(self.steps, np.int64),
            "loss": np.array(self._first.loss),
            "past/versions": np.array(versions, np.int64),
            "past/models": np.stack([self._past[version] for version in versions]),
            **values_of(self.model, self._optimizer),
            **prefixed("server", self._server.state()),
            **prefixed("held", self._server.state_of_workers()),
            **prefixed("delays", self._delays.state()),
        }
        if self._momentum_nd is not None:
            state["workers/momentum"] = self._momentum_nd
        return state

    def restore(self, state: State) -> None:
        """Goes on from what ``state`` gave."""
        assign_values(self.model, self._optimizer, state)
        self._server.restore(under("server", state))
        self._server.restore_workers(under("held", state))
        self._delays.restore(under("delays", state))
        self._now_s = float(state["server/now_s"])
        models = np.array(state["past/models"])
        models.setflags(write=False)
        self._past = dict(zip(state["past/versions"].tolist(), models, strict=True))
        if self._momentum_nd is not None:
            self._momentum_nd = np.array(state["workers/momentum"])
        self.steps = int(state["step"])
        self._first.loss = float(state["loss"])
        for half, ticket in zip(self._halves, self._server.rounds(), strict=True):
            half.round = ticket

    def step(self) -> StepReport:
        """Makes one arrival: gradient, attack, link, arrival rule, optimizer, answer.

        Raises:
          RuleError: BASGD's rule cannot be applied to the buffers, or a schedule has come to its
            end, or is of another training; or no worker is left.
        """
        try:
            coming = self._coming()
            row, self._now_s = coming.row, coming.now_s
            if coming.version is not None:
                self._server.hand(row, coming.version, self._past_of(coming.version))
            half = self._halves[row]
            half.send(self._gradient(row, half.round))
            report = self._server.collect()
            if report.is_step:
                self._parameters.apply(tf.constant(report.grad_d))
                self._server.publish(self._parameters.read())
            half.receive()
        except (RuleError, UserError) as error:
            raise RuleError(f"step {self.steps + 1}: {error}") from None
        if row == 0:
            self._first.see(report.ticket)
        self._keep_past()
        self._check_schedule(report)
        self.steps += 1
        return StepReport(self.steps, self._first.loss, report)

    def _coming(self) -> Coming:
        """Returns who comes next: of the schedule, if there is one."""
        if not self._schedule:
            return self._delays.next(self._server.version)
        if self.steps >= len(self._schedule):
            raise UserError(f"the schedule has {len(self._schedule)} arrivals, and no more")
        line = self._schedule[self.steps]
        n = self.setting.num_workers
        if not 0 <= line.row < n or line.ticket != self._halves[line.row].round:
            raise UserError(
                f"the schedule is of another training: gradient {line.ticket} of row {line.row} "
                f"cannot come now, of {n} workers"
            )
        return Coming(line.row, line.time_s, line.version)

    def _past_of(self, version: int) -> np.ndarray:
        if version not in self._past:
            raise UserError(f"the schedule is of another training: there is no version {version}")
        return self._past[version]

    def _check_schedule(self, report: ArrivalReport) -> None:
        if not self._schedule:
            return
        expected = self._schedule[self.steps].verdict
        if report.verdict != expected:
            raise RuleError(
                f"step {self.steps + 1}: the schedule says {expected!r} and this simulation "
                f"{report.verdict!r}: it is of another training, or of one on another machine"
            )

    def _keep_past(self) -> None:
        """Keeps the versions that are still needed."""
        newest, params_d = self._server.newest()
        self._past[newest] = params_d
        if self._schedule:
            needed = {v for v in self._past if self._last_use.get(v, -1) > self.steps}
        else:
            needed = {v for v in self._past if newest - v <= self._delays.most_stale}
        self._past = {version: self._past[version] for version in needed | {newest}}

    def _gradient(self, row: int, ticket: int) -> np.ndarray:
        """Returns a worker's gradient, or momentum, at the model that it holds."""
        workers, parameters = self._workers, self._parameters
        version, params_d = self._server.held(row)
        newest, newest_d = self._server.newest()
        workers.turn_to(row)
        if self._momentum_nd is not None:
            workers.restore({"momentum": self._momentum_nd[row : row + 1]})
        if version != newest:
            parameters.assign(params_d)
        with unchanged(self.model):
            self._seeds.place(ticket * self.setting.num_workers + row)
            [grad_d], _ = workers.compute(ticket)
        if version != newest:
            parameters.assign(newest_d)
        if self._momentum_nd is not None:
            self._momentum_nd[row] = grad_d
        return grad_d
