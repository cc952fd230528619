"""Keras's ``fit``: all ranks begin and end it with the server's variables; only the server writes.

The server runs ``fit`` as the script says: its own batches give it losses, metrics and the
statistics of batch normalisation; of gradients it uses the aggregate only. A worker computes
gradients. It leaves out what would write files or decide when to stop, and follows the server: when
the server's ``fit`` ends, early or not, so does the worker's, and not before.
"""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.tensorflow.trainer import TensorFlowTrainer

from aggregathor.cluster.job import Job
from aggregathor.cluster.ranks import TrainingEnded
from aggregathor.dropin.keras import xla
from aggregathor.dropin.keras.optimizers import Optimizers
from aggregathor.dropin.keras.resume import Checkpoints
from aggregathor.errors import UserError
from aggregathor.locking import variable_of
from aggregathor.log import say
from aggregathor.protocols.rounds import TrainingStopped

# What a worker's `fit` leaves out: they write files, or decide for all ranks.
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
    """Patches ``fit``, the train function, and what writes a model to files."""

    def __init__(self, job: Job, optimizers: Optimizers, checkpoints: Checkpoints) -> None:
        """Patches Keras."""
        self._job = job
        self._optimizers = optimizers
        self._checkpoints = checkpoints
        self._without_data: Any = None  # the model that the server trains without any of its own
        self._fit = TensorFlowTrainer.fit
        self._make_train_function = TensorFlowTrainer.make_train_function
        self._maybe_build = TensorFlowTrainer._maybe_symbolic_build
        outer = self

        def fit(model: Any, *args: Any, **kwargs: Any) -> Any:
            return outer._run_fit(model, *args, **kwargs)

        def make_train_function(model: Any, force: bool = False) -> None:
            outer._make(model, force)

        def maybe_symbolic_build(model: Any, *args: Any, **kwargs: Any) -> None:
            outer._build(model, *args, **kwargs)

        fit.__signature__ = inspect.signature(self._fit)  # type: ignore[attr-defined]
        TensorFlowTrainer.fit = fit
        TensorFlowTrainer.make_train_function = make_train_function
        TensorFlowTrainer._maybe_symbolic_build = maybe_symbolic_build

    def _takes_part(self, model: Any) -> bool:
        optimizer = getattr(model, "optimizer", None)
        return optimizer is not None and (
            self._optimizers.takes_part(optimizer) or _has_own_train_step(model)
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
        # A worker validates only for callbacks of the user's own, which may read the result.
        validates = self._job.is_server or bool(given["callbacks"])
        model._should_eval = lambda epoch, every: (
            validates
            and not self._checkpoints.skipped
            and type(model)._should_eval(model, epoch, every)
        )
        # Metrics know nothing of an epoch that was skipped, nor of one without data.
        model._get_metrics_result_or_logs = lambda logs: (
            type(model)._get_metrics_result_or_logs(model, logs)
            if logs and model is not self._without_data
            else logs or {}
        )
        run = self._run_on_server if self._job.is_server else self._run_on_worker
        try:
            history = run(model, given)
        finally:
            if self._without_data is not None:
                self._without_data = model.train_function = None
            self._checkpoints.end_fit()
            for name in ("_should_eval", "_get_metrics_result_or_logs"):
                vars(model).pop(name, None)
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
        """Builds a model by its first batch, as Keras does where it knows of distribution.

        Else its variables would be made while the step is traced, and have no values then.
        """
        is_built = all(layer.built for layer in model._flatten_layers())
        if is_built or not self._takes_part(model) or model._distribute_strategy is not None:
            self._maybe_build(model, *args, **kwargs)
            return
        # A model that has only a train step of its own cannot be called; it has built parts. What
        # else is wrong the step tells.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            model._symbolic_build(*args, **kwargs)

    def _make(self, model: Any, force: bool) -> None:
        """Makes the train function; what XLA shall compile is split first."""
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
        """Makes the train function of another step than the model's, which XLA does not compile."""
        jit_compile, model._jit_compile = model._jit_compile, False
        model.train_step = types.MethodType(step, model)
        try:
            self._make_train_function(model, force)
        finally:
            model._jit_compile = jit_compile
            del model.train_step

    def _counted(self, model: Any, train_function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Returns a train function that counts steps, saves, and skips those made before."""
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

    def _groups(self, model: Any) -> dict[str, list[Any]]:
        """Returns what is saved on this rank, by name."""
        if self._job.is_server:
            return {**self._optimizers.groups(), "model": model.variables}
        return {"own": model.non_trainable_variables}

    def _take_saved(self, model: Any) -> None:
        """Takes over what was saved; collective."""
        if self._job.is_server:
            self._checkpoints.take("model", model.variables)
        self._synchronise(model)  # the next gradient is one of these variables
        if not self._job.is_server:
            self._checkpoints.take("own", model.non_trainable_variables)
        self._checkpoints.restore()


def _leave_to_server(given: dict[str, Any]) -> None:
    """Takes out of a worker's arguments of ``fit`` what the server does for all."""
    own = [c for c in _listed(given.get("callbacks")) if not _is_servers(c)]
    # It goes on until the server has made all steps: a round in which too little arrived is one
    # that the server has to make again.
    given.update(callbacks=own, verbose=0, epochs=_FOR_EVER)


class _MutedCallbacks(keras.callbacks.CallbackList):
    """Callbacks that are not told of steps that are skipped."""

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
    """Returns what ``fit`` may count steps by, on a server that has nothing to train on.

    Raises:
      UserError: without data it lacks what they would have told.
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
    if any(isinstance(layer, keras.layers.BatchNormalization) for layer in model._flatten_layers()):
        say("the server has no data, so its statistics of batch normalisation stay as they are")
    return tf.data.Dataset.from_tensors(0).repeat()


def _apply_aggregate(model: Any, data: Any) -> dict[str, Any]:
    """Is the server's train step without data: all that its optimizer applies is the aggregate."""
    variables = model.trainable_variables
    model.optimizer.apply([keras.ops.zeros_like(v) for v in variables], variables)
    return {"rounds": tf.identity(variable_of(model.optimizer.iterations))}


def _data_only(step: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    def train_step(model: Any, data: Any) -> Any:
        return step(data)

    return train_step


def _has_own_train_step(model: Any) -> bool:
    """Whether its step may apply other optimizers than the one it was compiled with."""
    return type(model).train_step is not TensorFlowTrainer.train_step


def _is_own(variable: Any) -> bool:
    """Whether each rank shall have its own, such as the state of a random number generator."""
    return not variable_of(variable).dtype.is_floating and "seed" in getattr(variable, "path", "")


def _listed(callbacks: Any) -> list[Any]:
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return list(callbacks.callbacks)
    return list(tf.nest.flatten(callbacks)) if callbacks else []


def _is_servers(callback: Any) -> bool:
    classes = tuple(getattr(keras.callbacks, name, ()) for name in SERVERS_CALLBACKS)
    return isinstance(callback, tuple(c for c in classes if c))


__all__ = ["SERVERS_CALLBACKS", "Fit"]
