"""Keras's ``fit``: all ranks begin and end it with the server's variables; only the server writes.

The server runs ``fit`` as the script says: its own batches give losses, metrics and the statistics
of batch normalisation, but it applies the aggregate only. A worker computes gradients. It skips
callbacks that would write files or decide when to stop, and follows the server: its ``fit`` ends
when the server's does, early or not, and not before.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import types
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from aggregathor.cluster.job import Job
from aggregathor.cluster.ranks import TrainingEnded
from aggregathor.dropin import xla
from aggregathor.dropin.description import Group
from aggregathor.dropin.keras.optimizers import Optimizers
from aggregathor.dropin.keras.resume import Checkpoints
from aggregathor.errors import UserError
from aggregathor.internals.keras import (
    Trainer,
    build_by_batch,
    is_distributed,
    layers_of,
    replace_build,
    restricted_fit,
)
from aggregathor.locking import variable_of
from aggregathor.protocols.rounds import TrainingStopped

_logger = logging.getLogger(__name__)

# A worker's `fit` skips them: they write files, or decide for all ranks.
SERVERS_CALLBACKS = (
    "BackupAndRestore",
    "CSVLogger",
    "EarlyStopping",
    "LearningRateScheduler",
    "ModelCheckpoint",
    "OrbaxCheckpoint",
    "ProgbarLogger",
    "ReduceLROnPlateau",
    "RemoteMonitor",
    "SwapEMAWeights",
    "TensorBoard",
    "TerminateOnNaN",
)


_FOR_EVER = 2**31  # epochs


class Fit:
    """Patches ``fit`` and the train function."""

    def __init__(self, job: Job, optimizers: Optimizers, checkpoints: Checkpoints) -> None:
        """Patches Keras."""
        self._job = job
        self._optimizers = optimizers
        self._checkpoints = checkpoints
        self._without_data: Any = None  # the model that the server trains without any data
        self._fit = Trainer.fit
        self._make_train_function = Trainer.make_train_function
        self._maybe_build = replace_build(self._build)
        outer = self

        def fit(model: Any, *args: Any, **kwargs: Any) -> Any:
            return outer._run_fit(model, *args, **kwargs)

        def make_train_function(model: Any, force: bool = False) -> None:
            outer._make(model, force)

        fit.__signature__ = inspect.signature(self._fit)  # type: ignore[attr-defined]
        Trainer.fit = fit
        Trainer.make_train_function = make_train_function

    def _takes_part(self, model: Any) -> bool:
        optimizer = getattr(model, "optimizer", None)
        return (
            optimizer is not None
            and self._job.is_here
            and (self._optimizers.takes_part(optimizer) or _has_own_train_step(model))
        )

    def _run_fit(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._takes_part(model):
            return self._fit(model, *args, **kwargs)
        given = inspect.signature(self._fit).bind(model, *args, **kwargs).arguments
        given.pop("self")
        given.setdefault("callbacks", None)
        if self._job.is_server and given.get("x") is None:
            given["x"] = _no_data(model, given)
            self._without_data = model
            model.train_function = None
        self._job.begin()
        self._checkpoints.begin_fit()
        self._synchronise(model)
        if not self._job.is_server:
            _leave_to_server(given)
        if self._checkpoints.skipped:
            given.update(callbacks=_muted(model, given, self._checkpoints))
        # A worker validates only for the user's own callbacks, which may read the result.
        validates = self._job.is_server or bool(given["callbacks"])
        # There are no metrics of an epoch that was skipped, or of one without data.
        restricted = restricted_fit(
            model,
            validates=lambda: validates and not self._checkpoints.skipped,
            has_metrics=lambda: model is not self._without_data,
        )
        run = self._run_on_server if self._job.is_server else self._run_on_worker
        try:
            with restricted:
                history = run(model, given)
        finally:
            if self._without_data is not None:
                self._without_data = model.train_function = None
            self._checkpoints.end_fit()
        self._synchronise(model)
        return history

    def _run_on_server(self, model: Any, given: dict[str, Any]) -> Any:
        try:
            return self._fit(model, **given)
        except (TrainingStopped, tf.errors.OpError) as error:
            failure = self._job.failure or error
            if isinstance(failure, TrainingStopped):
                raise self._stopped(model, failure) from None
            raise failure from None

    def _stopped(self, model: Any, failure: TrainingStopped) -> TrainingStopped:
        path = self._checkpoints.save(self._groups(model))
        where = (
            f"Saved in {path}: the same command goes on from there."
            if path
            else "No --checkpoint is named, so nothing was saved."
        )
        stopped = TrainingStopped(f"{failure} {where}")
        self._job.fail(stopped)
        return stopped

    def _run_on_worker(self, model: Any, given: dict[str, Any]) -> Any:
        try:
            return self._fit(model, **given)
        except (TrainingEnded, tf.errors.OpError) as error:
            failure = error if isinstance(error, TrainingEnded) else self._job.failure
            if not isinstance(failure, TrainingEnded):
                raise failure or error from None
            self._job.take_failure()
            return model.history

    def _synchronise(self, model: Any) -> None:
        """Gives every rank the server's variables of the model; collective."""
        shared = [v for v in model.variables if not _is_own(v)] if model.built else []
        self._optimizers.synchronise(shared)

    def _build(self, model: Any, *args: Any, **kwargs: Any) -> None:
        """Builds a model by its first batch, as Keras does for a distributed one.

        Otherwise its variables would be made while the step is traced, without values.
        """
        is_built = all(layer.built for layer in layers_of(model))
        if is_built or not self._takes_part(model) or is_distributed(model):
            self._maybe_build(model, *args, **kwargs)
            return
        # A model that has only a train step of its own cannot be called; it has built its parts.
        # The step raises any other error.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            build_by_batch(model, *args, **kwargs)

    def _make(self, model: Any, force: bool) -> None:
        """Makes the train function; a step for XLA is split first."""
        if (model.train_function is not None and not force) or not self._takes_part(model):
            self._make_train_function(model, force)
            return
        if model is self._without_data:
            self._make_of(model, force, _apply_aggregate)
        elif model.jit_compile and not model.run_eagerly:
            self._make_of(model, force, _data_only(xla.split(model.train_step, model.name)))
        else:
            self._make_train_function(model, force)
        model.train_function = self._counted(model, model.train_function)

    def _make_of(self, model: Any, force: bool, step: Callable[[Any, Any], Any]) -> None:
        """Makes the train function of another step than the model's; XLA does not compile it."""
        jit_compile, model.jit_compile = model.jit_compile, False
        model.train_step = types.MethodType(step, model)
        try:
            self._make_train_function(model, force)
        finally:
            model.jit_compile = jit_compile
            del model.train_step

    def _counted(self, model: Any, train_function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Returns a train function that counts steps, saves, and skips steps of an earlier job."""
        checkpoints = self._checkpoints
        steps = model.steps_per_execution

        def counted(iterator: Any) -> Any:
            if checkpoints.skipped > 0:
                for _ in range(steps):
                    next(iterator)
                checkpoints.skip(steps)
                checkpoints.skipped -= steps
                if checkpoints.skipped <= 0:
                    self._take_saved(model)
                return {}
            logs = train_function(iterator)
            checkpoints.made(steps, self._groups(model))
            return logs

        return counted

    def _groups(self, model: Any) -> dict[str, Group | list[Any]]:
        """Returns the variables to save on this rank, by name."""
        if self._job.is_server:
            return {**self._optimizers.groups(), "model": model.variables}
        return {"own": model.non_trainable_variables}

    def _take_saved(self, model: Any) -> None:
        """Restores what was saved; collective."""
        if self._job.is_server:
            self._checkpoints.take("model", model.variables)
        self._synchronise(model)  # the next gradient is one of these variables
        if not self._job.is_server:
            self._checkpoints.take("own", model.non_trainable_variables)
        self._checkpoints.restore()


def _leave_to_server(given: dict[str, Any]) -> None:
    """Changes a worker's arguments of ``fit``: the server writes, prints and stops for all."""
    own = [c for c in _listed(given.get("callbacks")) if not _is_servers(c)]
    # It goes on until the server ends: a round in which too little arrived must be repeated.
    given.update(callbacks=own, verbose=0, epochs=_FOR_EVER)


class _MutedCallbacks(keras.callbacks.CallbackList):
    """Callbacks that are not called for steps that are skipped."""

    checkpoints: Checkpoints

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if not self.checkpoints.skipped:
            super().on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if not self.checkpoints.skipped:
            super().on_epoch_end(epoch, logs)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if not self.checkpoints.skipped:
            super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if logs:
            super().on_train_batch_end(batch, logs)


def _muted(model: Any, given: dict[str, Any], checkpoints: Checkpoints) -> _MutedCallbacks:
    muted = _MutedCallbacks(
        _listed(given.get("callbacks")),
        add_history=True,
        add_progbar=given.get("verbose", "auto") != 0,
        verbose=given.get("verbose", "auto"),
        epochs=given.get("epochs", 1),
        steps=None,
        model=model,
    )
    muted.checkpoints = checkpoints
    return muted


def _no_data(model: Any, given: Mapping[str, Any]) -> tf.data.Dataset:
    """Returns empty data by which ``fit`` counts steps, on a server that has none to train on.

    Raises:
      UserError: ``fit`` needs something that the data would have determined.
    """
    lacks = []
    if not model.built:
        lacks.append("the model's variables: give it an Input, or call model.build(...)")
    if not given.get("steps_per_epoch"):
        lacks.append("steps_per_epoch, how many rounds an epoch has")
    if _has_own_train_step(model):
        lacks.append("to know what the model's own train_step applies: give it data")
    if lacks:
        raise UserError(f"fit(None) on the server needs {'; and '.join(lacks)}.")
    if any(isinstance(layer, keras.layers.BatchNormalization) for layer in layers_of(model)):
        _logger.warning(
            "the server has no data, so its statistics of batch normalisation stay as they are"
        )
    return tf.data.Dataset.from_tensors(0).repeat()


def _apply_aggregate(model: Any, data: Any) -> dict[str, Any]:
    """The server's train step without data: its optimizer applies the aggregate and no more."""
    variables = model.trainable_variables
    model.optimizer.apply([keras.ops.zeros_like(v) for v in variables], variables)
    return {"rounds": tf.identity(variable_of(model.optimizer.iterations))}


def _data_only(step: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    def train_step(model: Any, data: Any) -> Any:
        return step(data)

    return train_step


def _has_own_train_step(model: Any) -> bool:
    """Whether a model has a step of its own, which may apply any optimizer."""
    return type(model).train_step is not Trainer.train_step


def _is_own(variable: Any) -> bool:
    """Whether each rank has its own, such as the state of a random number generator."""
    return not variable_of(variable).dtype.is_floating and "seed" in getattr(variable, "path", "")


def _listed(callbacks: Any) -> list[Any]:
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return list(callbacks.callbacks)
    return list(tf.nest.flatten(callbacks)) if callbacks else []


def _is_servers(callback: Any) -> bool:
    classes = tuple(getattr(keras.callbacks, name, ()) for name in SERVERS_CALLBACKS)
    return isinstance(callback, tuple(c for c in classes if c))


__all__ = ["SERVERS_CALLBACKS", "Fit"]
