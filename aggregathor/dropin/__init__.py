"""What makes an existing TensorFlow script take part in a job, without a change to it."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from aggregathor.cluster.job import Job, check_initialised
from aggregathor.cluster.terminal import say
from aggregathor.dropin import strategies
from aggregathor.dropin.files import PrivateFiles
from aggregathor.dropin.fit import Fit
from aggregathor.dropin.optimizers import Optimizers
from aggregathor.dropin.resume import Checkpoints
from aggregathor.dropin.seeds import Seeds
from aggregathor.dropin.v1 import V1
from aggregathor.errors import UserError
from aggregathor.lock import Guard, NoKernelLock

_installed: list[Optimizers | V1] = []  # Keras's, then v1's


def install(job: Job) -> None:
    """Patches Keras and TensorFlow in this process, once."""
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"Keras runs on {keras.backend.backend()} and must run on TensorFlow. Unset "
            "KERAS_BACKEND, or set it to tensorflow."
        )
    checkpoints = Checkpoints(job)
    guard = _guard(job)
    optimizers = Optimizers(job, checkpoints, guard)
    Fit(job, optimizers, checkpoints)
    job.at_begin(Seeds(job.ranks.rank).begin)
    if not job.is_server:
        job.at_close(PrivateFiles(job.ranks.rank).remove)
    strategies.refuse()
    _installed.extend([optimizers, V1(job, guard)])


def _guard(job: Job) -> Guard | None:
    """Returns what locks a worker's variables, with the layers of the lock that it can have."""
    layers = job.config.locks
    if job.is_server or not layers:
        return None
    who = f"rank {job.ranks.rank}"
    guard = Guard(who, scans="scan" in layers)
    job.at_close(guard.close)
    if "kernel" in layers:
        try:
            guard.lock_kernels()
        except NoKernelLock as reason:
            say(f"{who} goes on without the lock of kernels, because {reason}")
    return guard


def distribute_all() -> None:
    """Lets every optimizer of the script take part."""
    for each in _installed:
        each.all = True


def DistributedOptimizer(optimizer: Any) -> Any:
    """Lets an optimizer take part in the job; returns the same object.

    On the server it applies the aggregate of what the workers send; on a worker it sends the
    gradients and takes over the server's variables. In a process that was started alone it stays
    as it is. Everything else about it, such as its class and its configuration, is unchanged, so a
    model that was compiled with it is saved and loaded as ever.

    Args:
      optimizer: any ``keras.optimizers.Optimizer``, or its name, such as "adam"; or one of
        ``tf.compat.v1.train``.
    Raises:
      UserError: it is something else, or ``agt.init`` was not called.
    """
    if isinstance(optimizer, (str, dict)):
        optimizer = keras.optimizers.get(optimizer)
    kinds = (keras.optimizers.Optimizer, tf.compat.v1.train.Optimizer)
    if not isinstance(optimizer, kinds):
        raise UserError(
            "agt.DistributedOptimizer takes an optimizer of Keras or of tf.compat.v1, got "
            f"{type(optimizer).__name__}."
        )
    if _installed:
        _installed[0 if isinstance(optimizer, kinds[0]) else 1].mark(optimizer)
    check_initialised("agt.DistributedOptimizer")
    return optimizer
