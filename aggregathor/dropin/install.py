"""Patches Keras and TensorFlow in a process of a job."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from aggregathor.cluster.job import Job
from aggregathor.dropin import keras2, strategies
from aggregathor.dropin.deferred_variables import keep_initial_values
from aggregathor.dropin.functions import patch_calls
from aggregathor.dropin.keras.downloads import Downloads
from aggregathor.dropin.keras.files import PrivateFiles, tell_of_models
from aggregathor.dropin.keras.fit import Fit
from aggregathor.dropin.keras.optimizers import Optimizers
from aggregathor.dropin.keras.resume import Checkpoints
from aggregathor.dropin.keras.seeds import Seeds
from aggregathor.dropin.server_files import ServerFiles
from aggregathor.dropin.updates import Update, Updates
from aggregathor.dropin.v1 import V1, is_graph_of_sessions
from aggregathor.dropin.validation import Validations
from aggregathor.errors import UserError
from aggregathor.internals.tensorflow import converted_as_here
from aggregathor.locking import Guard, NoKernelLock

_logger = logging.getLogger(__name__)


class Dropin:
    """The patches of Keras and TensorFlow in this process; make it once.

    Attributes:
      guard: locks a worker's variables; None on the server and with ``lock="off"``.
      validations: what the server judges gradients by, for rules that need that.
    """

    def __init__(self, job: Job) -> None:
        """Patches Keras and TensorFlow, which ``internals.compatibility.check`` has passed."""
        checkpoints = Checkpoints(job)
        self.guard = _make_guard(job)
        keep_initial_values(self.guard)
        patch_calls()
        self.validations = Validations(job)
        self._updates = Updates(job, checkpoints, self.guard, self.validations)
        self._optimizers = Optimizers(self._updates)
        Fit(job, self._optimizers, checkpoints, self.validations)
        # Workers whose gradients shall be copies draw the same.
        group = job.setting.group
        seeds = Seeds(
            0 if job.is_server else 1 + job.ranks.row // group,
            is_server=job.is_server,
            entropy=job.meeting.bcast(secrets.randbits(31), int),
            rounds=lambda: sum(half.round for half in job.halves),
            together=job.meeting,
            loop_is_alike=lambda: job.config.draws == "alike",
        )
        job.at_begin(seeds.begin)
        Downloads(job.meeting.bcast(time.time(), float))
        files = ServerFiles(job.ranks, is_server=job.is_server)
        job.at_close(files.remove)
        if job.is_server:
            tell_of_models(files)
        else:
            job.at_close(PrivateFiles(job.ranks.rank, files).remove)
        strategies.refuse()
        keras2.refuse(lambda: self._optimizers.all and not self._updates.is_applying)
        job.at_begin(keras2.check_environment)
        self._v1 = V1(job, self._updates, self.guard, files)

    def distribute_all(self) -> None:
        """Lets every optimizer of the script take part."""
        self._optimizers.all = self._v1.all = True

    def mark(self, optimizer: Any) -> None:
        """Lets one optimizer take part."""
        is_v1 = isinstance(optimizer, tf.compat.v1.train.Optimizer)
        (self._v1 if is_v1 else self._optimizers).mark(optimizer)

    def apply(self, pairs: Sequence[tuple[Any, Any]], update: Callable[..., Any]) -> Any:
        """Lets an update rule of the script's own take part: see ``agt.apply``."""
        if self._updates.is_applying:
            return update(pairs)
        update = converted_as_here(update)
        if is_graph_of_sessions():
            return self._v1.train_op(pairs, update)
        variables = [variable for _, variable in pairs]
        self._updates.round(
            Update(
                owner=None,
                variables=variables,
                apply=lambda used: update(list(zip(used, variables, strict=True))),
            ),
            [gradient for gradient, _ in pairs],
        )
        return None


def checked_pairs(grads_and_vars: Iterable[Any]) -> list[tuple[Any, Any]]:
    """Returns what ``agt.apply`` is given as a list of gradients and their variables.

    Raises:
      UserError: it is something else, or has no gradient.
    """
    kinds = (tf.Variable, keras.Variable, tf.distribute.DistributedValues)
    pairs = list(grads_and_vars)
    for each in pairs:
        if not isinstance(each, (tuple, list)) or len(each) != 2 or not isinstance(each[1], kinds):
            raise UserError(
                "agt.apply takes pairs of a gradient and its variable, such as zip(gradients, "
                f"variables), got {type(each).__name__}."
            )
    if all(gradient is None for gradient, _ in pairs):
        raise UserError("agt.apply was given no gradient.")
    return [(gradient, variable) for gradient, variable in pairs]


def checked_optimizer(optimizer: Any) -> Any:
    """Returns an optimizer of Keras or of v1; Keras makes it of a name or a configuration.

    Raises:
      UserError: it is something else.
    """
    if isinstance(optimizer, (str, dict)):
        optimizer = keras.optimizers.get(optimizer)
    if not isinstance(optimizer, (keras.optimizers.Optimizer, tf.compat.v1.train.Optimizer)):
        kind = type(optimizer)
        raise UserError(
            "agt.DistributedOptimizer takes an optimizer of Keras 3 or of tf.compat.v1, got "
            f"{kind.__module__.partition('.')[0]}'s {kind.__name__}. For any other update rule: "
            "agt.apply(zip(gradients, variables), update)."
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
    is_strict = patches or "scan" in layers
    guard = Guard(who, scans=is_strict or "drift" in layers, patches=patches, is_strict=is_strict)
    job.at_close(guard.close)
    if "digest" in layers:
        guard.digest(job.config.digest_every)
    if "kernel" in layers:
        try:
            guard.lock_kernels()
        except NoKernelLock as reason:
            _logger.warning("%s goes on without the lock of kernels, because %s", who, reason)
    return guard
