"""Patches Keras and TensorFlow in a process of a job."""

from __future__ import annotations

import logging
import secrets
from typing import Any

import keras
import tensorflow as tf

from aggregathor.cluster.job import Job
from aggregathor.dropin import strategies
from aggregathor.dropin.keras.files import PrivateFiles, tell_of_models
from aggregathor.dropin.keras.fit import Fit
from aggregathor.dropin.keras.optimizers import Optimizers
from aggregathor.dropin.keras.resume import Checkpoints
from aggregathor.dropin.keras.seeds import Seeds
from aggregathor.dropin.server_files import ServerFiles
from aggregathor.dropin.v1 import V1
from aggregathor.errors import UserError
from aggregathor.locking import Guard, NoKernelLock

_logger = logging.getLogger(__name__)


class Dropin:
    """The patches of Keras and TensorFlow in this process; make it once.

    Attributes:
      guard: locks a worker's variables; None on the server and with ``lock="off"``.
    """

    def __init__(self, job: Job) -> None:
        """Patches Keras and TensorFlow, which ``internals.compatibility.check`` has passed."""
        checkpoints = Checkpoints(job)
        self.guard = _make_guard(job)
        self._optimizers = Optimizers(job, checkpoints, self.guard)
        Fit(job, self._optimizers, checkpoints)
        seeds = Seeds(
            job.ranks.rank,
            is_server=job.is_server,
            entropy=job.meeting.bcast(secrets.randbits(31), int),
            rounds=lambda: sum(half.round for half in job.halves),
            together=job.meeting,
        )
        job.at_begin(seeds.begin)
        files = ServerFiles(job.ranks, is_server=job.is_server)
        job.at_close(files.remove)
        if job.is_server:
            tell_of_models(files)
        else:
            job.at_close(PrivateFiles(job.ranks.rank, files).remove)
        strategies.refuse()
        self._v1 = V1(job, self.guard)

    def distribute_all(self) -> None:
        """Lets every optimizer of the script take part."""
        self._optimizers.all = self._v1.all = True

    def mark(self, optimizer: Any) -> None:
        """Lets one optimizer take part."""
        is_v1 = isinstance(optimizer, tf.compat.v1.train.Optimizer)
        (self._v1 if is_v1 else self._optimizers).mark(optimizer)


def checked_optimizer(optimizer: Any) -> Any:
    """Returns an optimizer of Keras or of v1; Keras makes it of a name or a configuration.

    Raises:
      UserError: it is something else.
    """
    if isinstance(optimizer, (str, dict)):
        optimizer = keras.optimizers.get(optimizer)
    if not isinstance(optimizer, (keras.optimizers.Optimizer, tf.compat.v1.train.Optimizer)):
        raise UserError(
            "agt.DistributedOptimizer takes an optimizer of Keras or of tf.compat.v1, got "
            f"{type(optimizer).__name__}."
        )
    return optimizer


def variables_to_lock(model_or_variables: Any) -> list[Any]:
    """Returns the variables that ``agt.lock`` shall lock, those of models among them.

    Raises:
      UserError: there are none, or something is neither a model nor a variable.
    """
    given = model_or_variables
    listed = given if isinstance(given, (list, tuple)) else [given]
    found = [getattr(each, "trainable_variables", [each]) for each in listed]
    variables = [variable for each in found for variable in each]
    kinds = (tf.Variable, keras.Variable, tf.distribute.DistributedValues)
    for each in variables:
        if not isinstance(each, kinds):
            raise UserError(f"agt.lock takes a model or variables, got {type(each).__name__}.")
    if not variables:
        raise UserError(
            "agt.lock has nothing to lock: a model in which nothing is trained, or that has "
            "not been built. Build it before, by an Input, model.build(shape), or a call."
        )
    return variables


def _make_guard(job: Job) -> Guard | None:
    """Returns the lock of a worker's variables, with the layers that it can have."""
    layers = job.config.locks
    if job.is_server or not layers:
        return None
    who = f"rank {job.ranks.rank}"
    patches = "patch" in layers
    guard = Guard(who, scans=patches or "scan" in layers, patches=patches)
    job.at_close(guard.close)
    if "digest" in layers:
        guard.digest(job.config.digest_every)
    if "kernel" in layers:
        try:
            guard.lock_kernels()
        except NoKernelLock as reason:
            _logger.warning("%s goes on without the lock of kernels, because %s", who, reason)
    return guard
