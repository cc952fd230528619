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
_guard: Guard | None = None  # of a worker whose graphs are looked at


def install(job: Job) -> None:
    """Patches Keras and TensorFlow in this process, once."""
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"Keras runs on {keras.backend.backend()} and must run on TensorFlow. Unset "
            "KERAS_BACKEND, or set it to tensorflow."
        )
    global _guard
    checkpoints = Checkpoints(job)
    _guard = _make_guard(job)
    optimizers = Optimizers(job, checkpoints, _guard)
    Fit(job, optimizers, checkpoints)
    job.at_begin(Seeds(job.ranks.rank).begin)
    if not job.is_server:
        job.at_close(PrivateFiles(job.ranks.rank).remove)
    strategies.refuse()
    _installed.extend([optimizers, V1(job, _guard)])


def _make_guard(job: Job) -> Guard | None:
    """Returns what locks a worker's variables, with the layers of the lock that it can have."""
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


def lock(model_or_variables: Any, *, on_violation: str | None = None) -> None:
    """Keeps the graphs that a worker traces from now on from writing variables.

    What an optimizer of the job trains is locked as its first step is traced: this locks it sooner,
    so that whatever is traced before is looked at too, or locks other variables. On the server,
    which may write, in a process that was started alone, and with ``lock="off"`` it does nothing.

    Args:
      model_or_variables: a variable of Keras or TensorFlow, what has ``trainable_variables``, or a
        list of such. Of a model only those are meant: the others, such as the statistics of batch
        normalisation, stay open.
      on_violation: "error" refuses a graph that could write; "patch" lets it write a copy of this
        worker's own instead, and says so, where the graph names the variable itself, and refuses it
        elsewhere. Unless it is given, as ``lock`` of ``agt.init`` says. Graphs of
        ``tf.compat.v1`` are always refused.
    Raises:
      UserError: there is nothing to lock, or ``agt.init`` was not called.
      LockError: a graph that was traced before could write one.
    """
    check_initialised("agt.lock")
    if on_violation not in (None, "error", "patch"):
        raise UserError(f"on_violation must be 'error' or 'patch', got {on_violation!r}.")
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
            "agt.lock was given nothing to lock: a model in which nothing is trained, or that has "
            "not been built. Build it before, by an Input, model.build(shape), or a call."
        )
    if _guard is not None:
        _guard.lock(variables, patch=None if on_violation is None else on_violation == "patch")
