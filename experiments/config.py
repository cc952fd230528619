"""The configuration of a run, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from aggregathor import settings
from aggregathor.cluster.config import TRANSPORTS
from aggregathor.errors import UnknownNameError, UserError, near
from aggregathor.protocols.checks import check_simulated_loss, check_transport
from aggregathor.protocols.registry import PROTOCOLS
from aggregathor.protocols.setting import Setting
from aggregathor.trainer.delays import check_delays
from aggregathor.trainer.sampling import PARTITIONS
from experiments import tasks
from experiments.settings import Settings

OPTIMIZERS = ("sgd", "adam", "adamw", "adagrad", "adadelta", "adamax", "nadam", "rmsprop", "lion")

# What may change when a run is continued.
FREE = frozenset({"steps", "eval_every", "checkpoint_every", "data_dir"})


@settings.documented
@dataclass(frozen=True)
class Config(Settings):
    """A run. Each field is a flag of ``python -m experiments``.

    ``f`` may be None: as many as ``byzantine``. So may ``model``: the experiment's own.
    ``transport`` is how the ranks of an mpirun are linked; "" for a simulation.
    """

    def setting(self) -> Setting:
        """Returns the part of it that a training needs."""
        given = settings.shared(self, settings.Simulation)
        given["f"] = self.byzantine if self.f is None else self.f
        momentum = self.momentum if self.momentum_at == "worker" else 0.0
        return Setting(num_workers=self.workers, worker_momentum=momentum, **given)

    def check(self) -> None:
        """Raises ``UserError`` for what cannot work."""
        tasks.task(self.experiment)
        for name in ("workers", "batch_size", "eval_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}")
        for name in ("workers", "batch_size"):
            if getattr(self, name) >= 2**31:  # what NumPy takes without overflow
                raise UserError(f"--{name} must be below 2^31, got {getattr(self, name)}")
        for name in ("byzantine", "steps", "l1", "l2"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:  # what NumPy takes
            raise UserError(f"--seed must be in 0..2^32-1, got {self.seed}")
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"--learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise UserError(f"--momentum must be in [0, 1), got {self.momentum}")
        if self.partition not in PARTITIONS:
            hint = near(self.partition, PARTITIONS)
            raise UnknownNameError(f"no partition is called {self.partition!r}: {hint}")
        if not 0 < self.alpha < math.inf:
            raise UserError(f"--alpha must be positive, got {self.alpha}")
        if not 0 <= self.validation_share < 1:
            raise UserError(
                f"--validation_share is a share of the training set, 0 <= share < 1, got "
                f"{self.validation_share}"
            )
        if self.momentum_at not in ("worker", "server"):
            raise UserError(f"--momentum_at is worker or server, got {self.momentum_at!r}")
        if self.transport not in ("", *TRANSPORTS):
            hint = near(self.transport, TRANSPORTS)
            raise UnknownNameError(f"no transport is called {self.transport!r}: {hint}")
        if self.transport not in ("", "udp") and self.loss > 0:
            raise UserError(
                f"with --transport={self.transport} nothing is lost, and --loss is {self.loss}. "
                "Take --transport=udp, or leave --loss out."
            )
        setting = self.setting()
        setting.check()
        if setting.rule.needs_validation and not self.validation_share:
            raise UserError(
                f"{setting.rule.gar.name} judges gradients by the loss on data that the server "
                "alone has: hold out a part of the training set with --validation_share=0.1"
            )
        self._check_protocol(setting)
        self.make_optimizer()

    def _check_protocol(self, setting: Setting) -> None:
        protocol = PROTOCOLS[self.protocol]
        if protocol.needs_validation and not self.validation_share:
            raise UserError(
                f"--protocol={self.protocol} judges gradients by data that the server alone has: "
                "hold out a part of the training set with --validation_share=0.05"
            )
        if protocol.takes:
            check_transport(self, self.transport)
            if not self.transport:
                check_simulated_loss(setting)
            check_delays(self.delays, self.delay_args, setting.num_workers)
            if self.schedule and self.transport:
                raise UserError("a simulation follows a schedule, real ranks make their own")
        for name in ("delays", "delay_args", "schedule"):
            if not protocol.takes and getattr(self, name) != settings.defaults(Settings)[name]:
                raise UserError(
                    f"--{name} is for protocols without rounds, not for {self.protocol}: see "
                    "`aggregathor protocols`"
                )

    def make_optimizer(self) -> keras.Optimizer:
        """Returns the server's optimizer."""
        if self.optimizer not in OPTIMIZERS:
            hint = near(self.optimizer, OPTIMIZERS)
            raise UnknownNameError(f"no optimizer is called {self.optimizer!r}: {hint}")
        settings = {"learning_rate": self.learning_rate}
        if self.momentum and self.momentum_at == "server":
            if self.optimizer != "sgd":
                raise UserError(
                    f"--momentum at the server is for --optimizer=sgd, not {self.optimizer}, which "
                    "has its own. Drop --momentum or take --momentum_at=worker."
                )
            settings["momentum"] = self.momentum
        return keras.optimizers.get({"class_name": self.optimizer, "config": settings})

    def saves_at(self, step: int) -> bool:
        """Returns whether a checkpoint is made after that many steps."""
        return step % self.checkpoint_every == 0 or step == self.steps

    def label(self) -> str:
        """Returns a name for tables and legends, such as "krum, little"."""
        return f"{self._method()}, {self.attack or 'no attack'}"

    def to_json(self) -> str:
        """Returns the text of ``config.json``."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> Config:
        """Reads a ``config.json``."""
        try:
            return cls(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{path} is no configuration of this version: {error}. "
                "Name another --output, or --overwrite this one."
            ) from None

    def differences(self, other: Config) -> list[str]:
        """Returns what keeps a run of ``other`` from being continued as this one.

        It may go on for more steps and evaluate or save at other times.
        """
        before, now = other.effective(), self.effective()
        return [
            f"{name} was {before[name]!r} and is {value!r}"
            for name, value in now.items()
            if value != before[name]
        ]

    def effective(self) -> dict[str, Any]:
        """Returns what makes two runs differ: defaults filled in, ``FREE`` left out."""
        task = tasks.task(self.experiment)
        values = dataclasses.asdict(self)
        values["f"] = self.byzantine if self.f is None else self.f
        values["model"] = self.model or (None if hasattr(task, "model") else task.MODEL)
        return {name: value for name, value in values.items() if name not in FREE}

    def digest(self) -> str:
        """Returns a short name that configurations share only if they are ``effective``ly equal."""
        known, defaults = settings.fields(Settings), settings.defaults(Settings)
        values = {
            name: value
            for name, value in self.effective().items()
            if not (known[name].metadata["later"] and value == defaults[name])
        }
        text = json.dumps(values, sort_keys=True, default=repr)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def rule_slug(self) -> str:
        """Returns the rule's name for a folder, without the brackets that a shell would read."""
        return re.sub(r"[^\w.=+-]+", "-", self._method().replace(")", ""))

    def _method(self) -> str:
        """Returns what aggregates: the rule, or the protocol with its rule or its code."""
        if self.protocol == "sync":
            return self.gar
        protocol = PROTOCOLS[self.protocol]
        code = {**protocol.parameters, **self.protocol_args}.get("code", "")
        return f"{self.protocol} {self.gar if protocol.has_rule else code}".rstrip()
