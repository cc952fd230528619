"""Keras's ``fit``: all ranks begin and end it with the server's variables; only the server writes.

The server runs ``fit`` as the script says: its own batches give it losses, metrics and the
statistics of batch normalisation; of gradients it uses the aggregate only. A worker computes
gradients. It leaves out what would write files or decide when to stop, and follows the server: when
the server's ``fit`` ends, early or not, so does the worker's.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.tensorflow.trainer import TensorFlowTrainer

from aggregathor.cluster.job import Job
from aggregathor.cluster.ranks import TrainingEnded, say
from aggregathor.dropin import xla
from aggregathor.dropin.optimizers import Optimizers, synchronise, variable_of

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


class Fit:
    """Patches ``fit``, the train function, and what writes a model to files."""

    def __init__(self, job: Job, optimizers: Optimizers) -> None:
        """Patches Keras."""
        self._job = job
        self._optimizers = optimizers
        self._fit = TensorFlowTrainer.fit
        self._make_train_function = TensorFlowTrainer.make_train_function
        outer = self

        def fit(model: Any, *args: Any, **kwargs: Any) -> Any:
            return outer._run_fit(model, *args, **kwargs)

        def make_train_function(model: Any, force: bool = False) -> None:
            outer._make(model, force)

        fit.__signature__ = inspect.signature(self._fit)  # type: ignore[attr-defined]
        TensorFlowTrainer.fit = fit
        TensorFlowTrainer.make_train_function = make_train_function
        if not job.is_server:
            for name in ("save", "save_weights", "export"):
                setattr(keras.Model, name, _nothing_written)

    def _takes_part(self, model: Any) -> bool:
        optimizer = getattr(model, "optimizer", None)
        return optimizer is not None and (
            self._optimizers.takes_part(optimizer) or _has_own_train_step(model)
        )

    def _run_fit(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._takes_part(model):
            return self._fit(model, *args, **kwargs)
        self._synchronise(model)
        if self._job.is_server:
            return self._run_on_server(model, args, kwargs)
        history = self._run_on_worker(model, args, kwargs)
        self._synchronise(model)
        return history

    def _run_on_server(self, model: Any, args: Any, kwargs: Any) -> Any:
        try:
            history = self._fit(model, *args, **kwargs)
        except tf.errors.OpError:
            if self._job.failure is not None:
                raise self._job.failure from None
            raise
        self._synchronise(model)
        return history

    def _run_on_worker(self, model: Any, args: Any, kwargs: Any) -> Any:
        given = inspect.signature(self._fit).bind(model, *args, **kwargs).arguments
        given.pop("self")
        own = [c for c in _listed(given.get("callbacks")) if not _is_servers(c)]
        if not own:  # whose logs nobody reads
            given.update(validation_data=None)
        given.update(callbacks=own, verbose=0)
        try:
            return self._fit(model, **given)
        except (TrainingEnded, tf.errors.OpError) as error:
            failure = error if isinstance(error, TrainingEnded) else self._job.failure
            if not isinstance(failure, TrainingEnded):
                raise failure or error from None
            self._job.failure = None
            return model.history

    def _synchronise(self, model: Any) -> None:
        """Gives every rank the server's variables of the model; collective."""
        shared = [v for v in model.variables if not _is_own(v)] if model.built else []
        synchronise(self._job, shared)

    def _make(self, model: Any, force: bool) -> None:
        """Makes the train function; what XLA shall compile is split first."""
        new = model.train_function is None or force
        if new and model.jit_compile and not model.run_eagerly and self._takes_part(model):
            step = model.train_step
            model.train_step = types.MethodType(_data_only(xla.split(step, model.name)), model)
            model._jit_compile = False  # of what is around the compiled step
            try:
                self._make_train_function(model, force)
            finally:
                model._jit_compile = True
                del model.train_step
            return
        self._make_train_function(model, force)


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


def _nothing_written(model: Any, *args: Any, **kwargs: Any) -> None:
    """What stands for ``save`` on a worker: the server writes the same variables."""
    say(f"{model.name} is written by rank 0 only")


__all__ = ["SERVERS_CALLBACKS", "Fit"]
