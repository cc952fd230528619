"""The private names of Keras that AggregaThor uses; nobody else imports ``keras.src``.

``compatibility.py`` checks at ``agt.init`` that each of them is there, with these parameters: who
adds a name here adds it there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras.src.backend.common import global_state
from keras.src.backend.tensorflow import trainer as trainer_module
from keras.src.backend.tensorflow.trainer import TensorFlowTrainer, TFEpochIterator
from keras.src.optimizers.base_optimizer import BaseOptimizer
from keras.src.random import seed_generator
from keras.src.utils import file_utils

# Models.

# What every model inherits `fit`, `make_train_function` and `train_step` from.
Trainer = TensorFlowTrainer


def layers_of(model: Any) -> list[Any]:
    """Returns a model and all layers in it, however deep."""
    return list(model._flatten_layers())


def is_distributed(model: Any) -> bool:
    """Whether a model was made in the scope of a strategy of ``tf.distribute``."""
    return model._distribute_strategy is not None


def inference_loss(model: Any, batch: tuple[Any, ...]) -> Any:
    """Returns a model's compiled loss on a batch, computed as ``evaluate`` does.

    Args:
      model: a compiled one.
      batch: inputs, targets and weights of the examples, the last two if there are any.

    Raises:
      ValueError: it has no loss.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    return model._compute_loss(
        x=x,
        y=y,
        y_pred=model(x, training=False),
        sample_weight=sample_weight,
        training=False,
    )


def replace_build(build: Callable[..., None]) -> Callable[..., None]:
    """Replaces what ``fit`` calls to build a model by its first batch, if it is distributed.

    Args:
      build: ``build(model, iterator=None, data_batch=None)``.
    Returns:
      What was called before.
    """
    original = TensorFlowTrainer._maybe_symbolic_build

    def before(model: Any, iterator: Any = None, data_batch: Any = None) -> None:
        if isinstance(iterator, EpochSteps):
            iterator.reset()
            iterator = iterator._enumerate_own()  # of batches, as Keras's own are
        original(model, iterator=iterator, data_batch=data_batch)

    def maybe_symbolic_build(model: Any, *args: Any, **kwargs: Any) -> None:
        build(model, *args, **kwargs)

    TensorFlowTrainer._maybe_symbolic_build = maybe_symbolic_build
    return before


def build_by_batch(model: Any, iterator: Any = None, data_batch: Any = None) -> None:
    """Builds a model, its metrics and its loss by a batch, without computing anything.

    A model with a train step of its own leaves its optimizer unbuilt: that step may build, and
    train, more layers than ``call`` does.

    Args:
      model: it.
      iterator: of the epochs of ``fit``, whose first batch is taken; begin it anew afterwards.
      data_batch: a batch, if there is no iterator.
    Raises:
      NotImplementedError, RuntimeError, ValueError: it cannot be called on that batch.
    """
    if isinstance(iterator, EpochSteps):
        iterator.reset()
        iterator, data_batch = None, next(iterator.next_iterator())
    optimizer = model.optimizer
    if type(model).train_step is TensorFlowTrainer.train_step:
        model._symbolic_build(iterator=iterator, data_batch=data_batch)
        return
    was_built, optimizer.built = optimizer.built, True
    try:
        model._symbolic_build(iterator=iterator, data_batch=data_batch)
    finally:
        optimizer.built = was_built


@contextlib.contextmanager
def restricted_fit(
    model: Any, *, validates: Callable[[], bool], has_metrics: Callable[[], bool]
) -> Iterator[None]:
    """Within the context ``fit`` validates, and reads metrics after an epoch, only where it may.

    Args:
      model: the one that trains.
      validates: returns whether an epoch that ends now may be validated.
      has_metrics: returns whether the metrics of an epoch that ends now say anything; else its logs
        stand for them.
    """
    kind = type(model)
    model._should_eval = lambda epoch, validation_freq: (
        validates() and kind._should_eval(model, epoch, validation_freq)
    )
    model._get_metrics_result_or_logs = lambda logs: (
        kind._get_metrics_result_or_logs(model, logs) if logs and has_metrics() else logs or {}
    )
    try:
        yield
    finally:
        for name in ("_should_eval", "_get_metrics_result_or_logs"):
            vars(model).pop(name, None)


def start_at_epoch(model: Any, epoch: int | None = None) -> int:
    """Returns the epoch that callbacks have chosen for ``fit`` to begin with, 0 for none.

    Args:
      model: the one that trains.
      epoch: is chosen instead, if given.
    """
    before: int = model._initial_epoch or 0
    if epoch is not None:
        model._initial_epoch = epoch
    return before


class EpochSteps(TFEpochIterator):
    """The steps of ``fit``, as many an epoch as somebody else says; the data begin anew as needed.

    What ends an epoch of Keras, and is its business: the data's end.

    Attributes:
      goes_on: returns whether the epoch has another step.
      ends: what ends an epoch in the middle of a step.
    """

    goes_on: Callable[[], bool]
    ends: type[Exception]
    _num_batches: int | None

    def _begin_anew(self) -> None:
        """Begins the data anew: a step has found their end."""
        if self._num_batches is None and self._steps_seen > self.steps_per_execution:
            self._num_batches = self._steps_seen - self.steps_per_execution
        self._current_iterator = None
        self.data_adapter.on_epoch_end()
        self._own = self._enumerate_own()

    def tries(self) -> Iterator[Any]:
        """Yields what the next step shall take its batches of; where it finds their end, once more.

        Nothing without any data.
        """
        for _ in range(2):
            iterator = self.next_iterator()
            if iterator is None:
                return
            yield iterator
            self._begin_anew()

    def next_iterator(self) -> Any:
        """Returns the iterator that the next step shall take its batch of; None without any."""
        for _ in range(2):
            for _, _, iterator in self._own:
                return iterator
            self._own = self._enumerate_own()
        return None

    def _interrupted_warning(self) -> None:
        """Says nothing: that these data end is no end of the epoch."""

    def _enumerate_own(self) -> Iterator[Any]:
        return super()._enumerate_iterator()

    def reset(self) -> None:
        """Begins the data anew."""
        super().reset()
        self._own = self._enumerate_own()

    def _enumerate_iterator(self) -> Iterator[Any]:
        step = 0
        while self.goes_on():
            yield step, step + self.steps_per_execution - 1, self
            step += self.steps_per_execution

    @contextlib.contextmanager
    def catch_stop_iteration(self) -> Iterator[None]:
        """Ends an epoch."""
        try:
            yield
            self.tf_sync()
        except self.ends:
            pass


@contextlib.contextmanager
def steps_of_fit(goes_on: Callable[[], bool], ends: type[Exception]) -> Iterator[None]:
    """Within the context the next ``fit`` makes as many steps an epoch as ``goes_on`` lets it.

    The train function then gets the ``EpochSteps`` in place of an iterator of batches.
    """

    def first(*args: Any, **kwargs: Any) -> EpochSteps:
        trainer_module.TFEpochIterator = TFEpochIterator
        steps = EpochSteps(*args, **kwargs)
        steps.goes_on, steps.ends = goes_on, ends
        return steps

    trainer_module.TFEpochIterator = first
    try:
        yield
    finally:
        trainer_module.TFEpochIterator = TFEpochIterator


# Optimizers.


def built_variables(optimizer: Any) -> list[Any]:
    """Returns the variables that an optimizer was built for."""
    return list(getattr(optimizer, "inner_optimizer", optimizer)._trainable_variables)


def build_optimizer(optimizer: Any, variables: Sequence[Any]) -> None:
    """Builds an optimizer for variables, as its first ``apply`` does; does nothing if it is."""
    if not optimizer.built:
        with keras.name_scope(optimizer.name, caller=optimizer):
            optimizer.build(variables)
        optimizer.built = True


def step_counter(optimizer: Any) -> Any:
    """Returns the variable that counts calls of ``apply``.

    ``iterations`` is this variable too, or, where gradients are accumulated, a quotient of it.
    """
    return optimizer._iterations


def learning_rate_of(optimizer: Any) -> float:
    """Returns the learning rate of an optimizer's next step, of its schedule if it has one."""
    rate = optimizer.learning_rate
    return float(rate.numpy() if hasattr(rate, "numpy") else rate)


def count_step(optimizer: Any) -> None:
    """Does what ``apply`` does beside changing the variables: counts, and averages the variables.

    Call it once the variables have the values after the step. The averages of ``use_ema`` are then
    those that ``apply`` makes, unless a variable has a constraint, which follows the average there.
    """
    if optimizer.use_ema:
        trained = optimizer._trainable_variables
        optimizer._update_model_variables_moving_average(trained)
        if every := optimizer.ema_overwrite_frequency:
            # The variables are the averages then.
            are_averages = keras.ops.equal((optimizer.iterations + 1) % every, 0)
            for variable, average in zip(
                trained, optimizer._model_variables_moving_average, strict=True
            ):
                if average is not None:
                    average.assign(keras.ops.where(are_averages, variable, average))
    optimizer._iterations.assign_add(1)


def adapt_loss_scale(optimizer: keras.optimizers.LossScaleOptimizer, finite: Any) -> None:
    """Changes the scale as ``LossScaleOptimizer`` does after finite, or other, gradients.

    Args:
      optimizer: whose scale it is.
      finite: a bool tensor.
    """

    def double() -> None:
        optimizer.step_counter.assign(0)
        optimizer.dynamic_scale.assign(optimizer.dynamic_scale * 2.0)

    def count() -> None:
        optimizer.step_counter.assign_add(1)

    def grow() -> None:
        due = keras.ops.equal(optimizer.step_counter, optimizer.dynamic_growth_steps - 1)
        keras.ops.cond(due, double, count)

    keras.ops.cond(finite, grow, optimizer._stateful_handle_non_finite_grads)


# Seeds.


def change_default_seeds(change: Callable[[int], int], *, for_all: Callable[[int], int]) -> None:
    """Lets each layer without a seed have ``change(s)`` instead of s, what Keras draws for it.

    Args:
      change: of the seeds of layers.
      for_all: the same of the generator that ``keras.random`` uses where no seed is given.
    """
    make_default_seed = seed_generator.make_default_seed
    global_seed_generator = seed_generator.global_seed_generator
    current = change

    def make_global() -> Any:
        nonlocal current
        if global_state.get_global_attribute(seed_generator.GLOBAL_SEED_GENERATOR) is None:
            current = for_all
        try:
            return global_seed_generator()
        finally:
            current = change

    seed_generator.make_default_seed = lambda: current(make_default_seed())
    seed_generator.global_seed_generator = make_global


def reseed_global_generator(change: Callable[[int], int]) -> None:
    """Changes the seed of the generator of ``keras.random``, if there is one already."""
    generator = global_state.get_global_attribute(seed_generator.GLOBAL_SEED_GENERATOR)
    if generator is not None:
        seed, drawn = generator.state.value.numpy().tolist()
        generator.state.assign([change(seed), drawn])


# Files.


def change_downloads(
    retrieve: Callable[[Callable[..., Any]], Callable[..., Any]],
    extract: Callable[[Callable[..., bool]], Callable[..., bool]],
) -> None:
    """Changes how ``get_file`` fetches a file and extracts an archive.

    Args:
      retrieve: takes ``urlretrieve(url, filename, ...)``, and returns what is called instead.
      extract: takes ``extract_archive(file_path, path, archive_format)``, likewise.
    """
    file_utils.urlretrieve = retrieve(file_utils.urlretrieve)
    file_utils.extract_archive = extract(file_utils.extract_archive)


__all__ = [
    "BaseOptimizer",
    "EpochSteps",
    "Trainer",
    "adapt_loss_scale",
    "build_by_batch",
    "build_optimizer",
    "built_variables",
    "change_default_seeds",
    "change_downloads",
    "count_step",
    "inference_loss",
    "is_distributed",
    "layers_of",
    "learning_rate_of",
    "replace_build",
    "reseed_global_generator",
    "restricted_fit",
    "start_at_epoch",
    "step_counter",
    "steps_of_fit",
]
