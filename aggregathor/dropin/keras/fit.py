"""Keras's ``fit``: on every rank it is Keras's own, and ends with what the server's ends with.

The server runs ``fit`` as the script says: its own batches give losses, metrics and the statistics
of batch normalisation, but it applies the aggregate only. A worker computes gradients. Its epochs
and callbacks follow the server's (``follow.py``): it returns the server's history, and its
variables, learning rate and counters are the server's.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from aggregathor import notes
from aggregathor.cluster import stopping
from aggregathor.cluster.job import Job
from aggregathor.cluster.ranks import TrainingEnded
from aggregathor.dropin import xla
from aggregathor.dropin.description import Group
from aggregathor.dropin.keras.follow import (
    EpochOver,
    FitLeft,
    Follower,
    Leader,
    News,
    counters,
    is_servers,
)
from aggregathor.dropin.keras.optimizers import Optimizers
from aggregathor.dropin.keras.resume import Checkpoints
from aggregathor.dropin.validation import Validations
from aggregathor.errors import UserError
from aggregathor.internals.keras import (
    EpochSteps,
    Trainer,
    build_by_batch,
    is_distributed,
    layers_of,
    replace_build,
    restricted_fit,
    steps_of_fit,
)
from aggregathor.locking import variable_of
from aggregathor.protocols.rounds import TrainingStopped

_logger = logging.getLogger(__name__)


class Fit:
    """Patches ``fit`` and the train function."""

    def __init__(
        self,
        job: Job,
        optimizers: Optimizers,
        checkpoints: Checkpoints,
        validations: Validations,
    ) -> None:
        """Patches Keras."""
        self._job = job
        self._validations = validations
        self._optimizers = optimizers
        self._checkpoints = checkpoints
        self._without_data: Any = None  # the model that the server trains without any data
        self._fits = 0
        self._news = News(job.ranks)
        self._leader: Leader | None = None  # of the `fit` that runs
        self._follower: Follower | None = None
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
        given["callbacks"] = _listed(given.get("callbacks"))
        if self._job.is_server and given.get("x") is None:
            given["x"] = _no_data(model, given)
            self._without_data = model
            model.train_function = None
        self._fits += 1
        for callback in filter(is_servers, given["callbacks"]):
            notes.add(notes.SERVERS, f"the callback {type(callback).__name__}")
        # Those of a callback that trains another model.
        outer, doing = (self._leader, self._follower), self._job.doing
        self._job.doing = f"fit {self._fits} of {model.name}"
        try:
            self._job.begin()
            self._checkpoints.begin_fit()
            run = self._run_on_server if self._job.is_server else self._run_on_worker
            with self._validations.of_fit(model, given):
                return run(model, given, self._fits)
        finally:
            self._leader, self._follower = outer
            self._job.doing = doing
            if self._without_data is not None:
                self._without_data = model.train_function = None
            self._checkpoints.end_fit()

    def _run_on_server(self, model: Any, given: dict[str, Any], fit: int) -> Any:
        callbacks = given["callbacks"]
        checkpoints = self._checkpoints
        returned = checkpoints.returned_by(fit)
        if checkpoints.skipped == math.inf and returned.get("epoch"):
            given["epochs"] = returned["epoch"][-1] + 1  # it may have stopped early
        self._leader = leader = Leader(
            self._job.ranks, fit, model, given, returned, lambda: bool(checkpoints.skipped)
        )
        try:
            before = self._synchronise(model)
            last = leader.last(
                lambda: self._has_changed(model, before), lambda: self._synchronise(model)
            )
            self._log_steps(given)
            # There are no metrics of an epoch that was skipped, or of one without data.
            history = self._call(model, given, [leader.first(), *callbacks, last], lambda: True)
        except BaseException as error:
            leader.left()
            if not isinstance(error, (TrainingStopped, tf.errors.OpError)):
                raise
            failure = self._job.failure or error
            if isinstance(failure, TrainingStopped):
                raise self._stopped(model, failure) from None
            raise failure from None
        leader.end(history, callbacks)
        self._end(model)
        return history

    def _log_steps(self, given: Mapping[str, Any]) -> None:
        """Logs when a ``fit`` ends whose steps are not those of all ranks."""
        what = self._job.loop.steps_of_fit()
        if what:
            epochs = given.get("epochs", 1) - given.get("initial_epoch", 0)
            steps = given.get("steps_per_epoch")
            many = f"{steps} steps" if steps else "as many steps as the server has batches"
            after = f"1 epoch of {many}" if epochs == 1 else f"{epochs} epochs, each of {many}"
            _logger.info("fit ends after %s: %s", after, what)

    def _run_on_worker(self, model: Any, given: dict[str, Any], fit: int) -> Any:
        callbacks = given["callbacks"]
        self._follower = follower = Follower(
            self._job.ranks,
            self._news,
            fit,
            model,
            self._job.loop.in_step,
            lambda: bool(self._checkpoints.skipped),
        )
        self._synchronise(model)
        # The server prints, and says when it is over.
        given.update(verbose=0, epochs=follower.arguments["epochs"], initial_epoch=0)
        own = [each for each in callbacks if not is_servers(each)]
        restoring = [each for each in own if getattr(each, "restore_best_weights", False)]
        for each in restoring:
            each.restore_best_weights = False  # the server's are restored, and come at the end
        ours = follower.first(), follower.last(lambda: self._synchronise(model))
        # A worker validates only for the user's callbacks: the results are the server's.
        validates = any(_looks_on_tests(each) for each in own)
        try:
            with steps_of_fit(follower.goes_on, EpochOver):
                history = self._call(model, given, [ours[0], *own, ours[1]], lambda: validates)
            end = follower.take_end(callbacks)
        except FitLeft:
            self._await_what_comes()
            return model.history
        vars(history).update(history=end["history"], epoch=end["epoch"], params=end["params"])
        self._end(model)
        for each in restoring:
            each.best_weights = model.get_weights()
        return history

    def _end(self, model: Any) -> None:
        """Gives all ranks the server's variables; of a ``fit`` that an earlier job has made, too.

        Collective.
        """
        if self._checkpoints.skipped and self._checkpoints.is_last:
            self._take_saved(model)
        self._synchronise(model, counters(model))
        self._checkpoints.ended(self._groups(model))

    def _call(
        self,
        model: Any,
        given: Mapping[str, Any],
        callbacks: list[Any],
        validates: Callable[[], bool],
    ) -> Any:
        """Calls Keras's own with these callbacks, the first and the last of which are ours."""
        skipping = self._checkpoints.skipped
        listed = _muted(model, given, callbacks, self._checkpoints) if skipping else callbacks
        restricted = restricted_fit(
            model,
            validates=lambda: validates() and not self._checkpoints.skipped,
            has_metrics=lambda: model is not self._without_data,
        )
        with restricted:
            return self._fit(model, **{**given, "callbacks": listed})

    def _await_what_comes(self) -> None:
        """Worker: waits until the server, whose ``fit`` was left by an error, goes on or ends.

        Raises:
          TrainingEnded: it ends, as its script does not handle the error; or it ends after a check,
            or after the user has asked for that.
        """
        try:
            self._job.ranks.wait(
                self._job.ranks.state_is_there, "the server, whose fit was left by an error"
            )
        except TrainingEnded as ended:
            if str(ended) or self._job.config.check_rounds or stopping.asked():
                raise

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

    def _synchronise(self, model: Any, more: Sequence[Any] = ()) -> list[np.ndarray]:
        """Gives every rank the server's variables of the model, and more; collective."""
        if model.built and (own := [v.path for v in model.variables if _is_own(v)]):
            notes.add(notes.PRIVATE, f"each rank's own: {notes.listed(own)}")
        return self._optimizers.synchronise([*_shared_of(model), *more])

    def _has_changed(self, model: Any, before: Sequence[np.ndarray]) -> bool:
        """Whether the model was built or changed since its variables had these values."""
        now = [_value(variable) for variable in _shared_of(model)]
        return len(now) != len(before) or not all(map(np.array_equal, now, before))

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
        elif self._job.is_server:
            self._make_of(model, force, _data_only(model.train_step))
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
                _skip_batches(iterator, steps)
                checkpoints.skip(steps)
                checkpoints.skipped -= steps
                self._skip(steps)
                if checkpoints.skipped <= 0:
                    if self._leader is not None:
                        self._leader.resumed()
                    self._take_saved(model)
                return {}
            if isinstance(iterator, EpochSteps):
                logs = self._step_on_worker(model, train_function, iterator)
            else:
                logs = train_function(iterator)
                if self._leader is not None:
                    self._leader.made += steps
            checkpoints.made(steps, self._groups(model))
            return logs

        return counted

    def _skip(self, steps: int) -> None:
        """Counts steps of an epoch that are not made again."""
        for side in (self._leader, self._follower):
            if side is not None:
                side.made += steps

    def _step_on_worker(self, model: Any, train_function: Callable[[Any], Any], data: Any) -> Any:
        """Makes a step with the worker's next batch, which is the first again after the last.

        Raises:
          EpochOver: the server's epoch has ended instead, or this worker has no batch at all.
        """
        number, before = len(self._job.halves), self._job.rounds
        for iterator in data.tries():
            try:
                logs = train_function(iterator)
            except (StopIteration, tf.errors.OutOfRangeError):
                continue
            except (TrainingEnded, tf.errors.OpError) as error:
                failure = error if isinstance(error, TrainingEnded) else self._job.failure
                if not isinstance(failure, TrainingEnded):
                    raise failure or error from None
                self._job.take_failure()
                raise EpochOver from None
            rounds = self._job.rounds - before
            if len(self._job.halves) > number:  # they may have begun with a checkpoint's round
                rounds = min(rounds, model.steps_per_execution)
            assert self._follower is not None
            self._follower.count(rounds, model.steps_per_execution, _has_own_train_step(model))
            return logs
        assert self._follower is not None
        self._follower.has_data = False
        _logger.warning(
            "rank %d has no more data to train on, so nothing comes from it until the server's "
            "fit ends",
            self._job.ranks.rank,
        )
        raise EpochOver

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


def _skip_batches(data: Any, steps: int) -> None:
    """Takes the batches of a call of the train function; on a worker as ``_step_on_worker`` does.

    Raises:
      StopIteration: the server's data have ended.
    """
    if not isinstance(data, EpochSteps):
        for _ in range(steps):
            next(data)
        return
    for iterator in data.tries():
        try:
            for _ in range(steps):
                next(iterator)
        except (StopIteration, tf.errors.OutOfRangeError):
            continue
        return


class _MutedCallbacks(keras.callbacks.CallbackList):
    """Callbacks of which only ours, the first and the last, are called for steps that are skipped.

    Attributes:
      ours: these two.
    """

    callbacks: list[Any]
    checkpoints: Checkpoints
    ours: list[Any]

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        with self._fewer():
            super().on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        with self._fewer():
            super().on_epoch_end(epoch, logs)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        with self._fewer():
            super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if logs:
            super().on_train_batch_end(batch, logs)

    @contextlib.contextmanager
    def _fewer(self) -> Iterator[None]:
        all_of_them = self.callbacks
        if self.checkpoints.skipped:
            self.callbacks = self.ours
        try:
            yield
        finally:
            self.callbacks = all_of_them


def _muted(
    model: Any, given: Mapping[str, Any], callbacks: list[Any], checkpoints: Checkpoints
) -> _MutedCallbacks:
    muted = _MutedCallbacks(
        callbacks,
        add_history=True,
        add_progbar=given.get("verbose", "auto") != 0,
        verbose=given.get("verbose", "auto"),
        epochs=given.get("epochs", 1),
        steps=given.get("steps_per_epoch"),
        model=model,
    )
    muted.checkpoints = checkpoints
    muted.ours = [callbacks[0], callbacks[-1]]
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
    """Returns a step as a method, which does nothing where the data have ended.

    The server's round needs nothing of its data: without more it would be made all the same.
    """

    def train_step(model: Any, data: Any) -> Any:
        tensors = tf.nest.flatten(data, expand_composites=True)
        with tf.control_dependencies([t for t in tensors if isinstance(t, tf.Tensor)]):
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


def _shared_of(model: Any) -> list[Any]:
    """Returns the variables of a model that are the server's on all ranks."""
    return [v for v in model.variables if not _is_own(v)] if model.built else []


def _value(variable: Any) -> np.ndarray:
    mirrored = variable_of(variable)
    return getattr(mirrored, "values", [mirrored])[0].numpy()  # all its replicas are equal


def _looks_on_tests(callback: Any) -> bool:
    """Whether a callback does something when a model is validated."""
    base = keras.callbacks.Callback
    names = ("on_test_begin", "on_test_end", "on_test_batch_begin", "on_test_batch_end")
    return isinstance(callback, keras.callbacks.LambdaCallback) or any(
        getattr(type(callback), name, None) is not getattr(base, name) for name in names
    )


__all__ = ["Fit"]
