"""The loss by which rules such as Zeno judge gradients, in a script of the user's.

It is what ``agt.validation`` is given. Without that it is, within ``fit``, the compiled loss on
``validation_data``, or else on those that ``agt.init`` is given.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from aggregathor import ops
from aggregathor.cluster.job import Job
from aggregathor.errors import UserError
from aggregathor.internals.keras import inference_loss
from aggregathor.ops.exchange import num_op_threads
from aggregathor.protocols.validation import Examples, LossOnCopies, Validate, Validation
from lossympi.rng import generator

_logger = logging.getLogger(__name__)
# Of a data set's examples are held in memory: each round draws among all of them, and a job that is
# started again draws what it would have drawn.
_MOST_BYTES = 256 << 20


class _Source(NamedTuple):
    """A loss of the script's: see ``LossOnCopies``."""

    loss_of: Callable[..., Any]
    examples: Examples | None


class Validations:
    """What the server of this job judges gradients by, if its rule needs that."""

    def __init__(self, job: Job) -> None:
        """Begins without any."""
        self._job = job
        self._held_out: Any = None
        self._given: _Source | None = None
        self._of_fit: _Source | None = None

    @property
    def _rule(self) -> str:
        setting = self._job.setting
        return setting.rule.gar.name if setting.rule.needs_validation else setting.protocol

    @property
    def _is_needed(self) -> bool:
        return self._job.is_server and self._job.setting.needs_validation

    def hold_out(self, data: Any) -> None:
        """Takes what ``agt.init`` is given, for ``fit``."""
        self._held_out = data

    def give(self, loss_fn: Callable[..., Any], data: Any) -> None:
        """Takes what ``agt.validation`` is given.

        Raises:
          UserError: the data cannot be drawn of.
        """
        if self._is_needed:
            self._check_threads()
            self._given = _Source(loss_fn, None if data is None else examples_of(data))

    @contextlib.contextmanager
    def of_fit(self, model: Any, given: Mapping[str, Any]) -> Iterator[None]:
        """A context in which ``fit`` runs, with these arguments.

        Raises:
          UserError: nothing is given that gradients could be judged by.
        """
        before, self._of_fit = self._of_fit, None
        if self._is_needed and self._given is None:
            data, steps = given.get("validation_data"), given.get("validation_steps")
            if data is None:
                data, steps = self._held_out, None
            if data is not None:
                self._of_fit = _Source(_compiled_loss(model), examples_of(data, steps))
            self._check_threads()
            self.check()
        try:
            yield
        finally:
            self._of_fit = before

    def check(self) -> None:
        """Raises ``UserError`` where gradients are to be judged, and nothing is given to do so."""
        if self._is_needed and self._source is None:
            raise UserError(
                f"{self._rule} judges gradients by the loss on validation data: give fit "
                "validation_data=(x, y), or agt.init the same, or call agt.validation(loss_fn) "
                "before the first step of a loop of your own."
            )

    def of(self, variables: Sequence[Any]) -> Validation | None:
        """Returns what judges gradients of variables by the loss that is given when it is asked."""
        if not self._is_needed:
            return None
        losses_of = self._losses_of(variables)

        def judge(
            params_d: np.ndarray,
            stack_nd: np.ndarray,
            rows: np.ndarray,
            gamma: float,
            n_r: int,
            rng: np.random.Generator,
        ) -> np.ndarray:
            return losses_of()(params_d, stack_nd, rows, gamma, n_r, rng)

        return judge

    def gradient_of(self, variables: Sequence[Any]) -> Validate | None:
        """Returns what gives the gradient of that loss, for Zeno++."""
        if not self._is_needed:
            return None
        losses_of = self._losses_of(variables)

        def validate(params_d: np.ndarray, number: int, count: int) -> np.ndarray:
            rng = generator("validation gradient", self._job.secret, number)
            return losses_of().gradient(params_d, count, rng)

        return validate

    def _losses_of(self, variables: Sequence[Any]) -> Callable[[], LossOnCopies]:
        """Returns what gives the losses of variables, as they are given when it is asked."""
        made: list[tuple[_Source, LossOnCopies]] = []  # of the loss that was asked last

        def losses() -> LossOnCopies:
            self.check()
            source = self._source
            assert source is not None
            if not made or made[0][0] is not source:
                made[:] = [(source, LossOnCopies(source.loss_of, variables, source.examples))]
            return made[0][1]

        return losses

    def _check_threads(self) -> None:
        """Raises ``UserError`` where the losses would wait for the step that waits for them."""
        if ops.state().in_use == "tensorflow" and num_op_threads() < 2:
            raise UserError(
                f"{self._rule} computes losses while a step waits for them, and without the native "
                "library that takes a second thread of TensorFlow's: set TF_NUM_INTEROP_THREADS=2, "
                f"or {ops.REBUILD}"
            )

    @property
    def _source(self) -> _Source | None:
        return self._given or self._of_fit


def _compiled_loss(model: Any) -> Callable[..., Any]:
    @tf.autograph.experimental.do_not_convert
    def loss_of(*batch: Any) -> Any:
        return inference_loss(model, batch)

    return loss_of


def examples_of(data: Any, steps: int | None = None) -> Examples:
    """Returns the examples of validation data, which each round draws some of.

    Args:
      data: arrays, or a tuple or dict of them, whose first axis are the examples; or a
        ``tf.data.Dataset`` or ``keras.utils.PyDataset`` of batches, whose first 256 MiB are held.
      steps: how many batches of a data set; by default all.

    Raises:
      UserError: it is something else, or has no examples.
    """
    if isinstance(data, (tf.data.Dataset, keras.utils.PyDataset)):
        data = _joined(_batches(data, steps))
    data = tuple(data) if isinstance(data, (tuple, list)) else (data,)
    arrays = tf.nest.map_structure(_as_array, tuple(each for each in data if each is not None))
    return Examples(arrays)


def _batches(data: Any, steps: int | None) -> Iterator[Any]:
    is_dataset = isinstance(data, tf.data.Dataset)
    batches = iter(data) if is_dataset else map(data.__getitem__, range(data.num_batches))
    for number, batch in enumerate(batches):
        if steps is not None and number >= steps:
            return
        yield batch


def _joined(batches: Iterator[Any]) -> Any:
    """Returns the batches joined along their first axis, as far as they are held."""
    held: list[Any] = []
    num_bytes = 0
    for batch in batches:
        if num_bytes >= _MOST_BYTES:
            _logger.warning(
                "gradients are judged by the first %d batches of the validation data, which fill "
                "%d MiB; give fewer, or arrays",
                *(len(held), _MOST_BYTES >> 20),
            )
            break
        held.append(tf.nest.map_structure(_as_array, batch))
        num_bytes += sum(each.nbytes for each in tf.nest.flatten(held[-1]))
    if not held:
        raise UserError("the validation data have no batch, and gradients are judged by them")
    return tf.nest.map_structure(lambda *parts: np.concatenate(parts), *held)


def _as_array(values: Any) -> np.ndarray:
    if isinstance(values, (tf.RaggedTensor, tf.SparseTensor)):
        raise UserError(
            f"validation data that gradients are judged by are dense, got a "
            f"{type(values).__name__}: make it dense, or call agt.validation(loss_fn)"
        )
    array = np.asarray(values)
    if array.ndim == 0:
        raise UserError(
            "validation data that gradients are judged by are arrays, a tf.data.Dataset or a "
            f"PyDataset, got {type(values).__name__}"
        )
    return array
