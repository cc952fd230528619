"""The loss on validation data, by which rules such as Zeno judge gradients.

A server computes it at its parameters and after a step along each gradient, without changing
anything of the model: what computes the loss works on copies of all variables that it reads or
writes, such as weights, statistics of batch normalisation, metrics and states of random generators.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from aggregathor.errors import UserError
from aggregathor.flat import FlatLayout
from aggregathor.internals.tensorflow import spec_of_variable

# Values that are computed at a time: three blocks of them fit into a core's own cache.
_BLOCK = 32768


class Validation(Protocol):
    """What ``Context.losses`` is made of."""

    def __call__(
        self,
        params_d: np.ndarray,
        stack_nd: np.ndarray,
        rows: np.ndarray,
        gamma: float,
        n_r: int,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Returns the loss at x, and at x - gamma u for each row u that is named: float64.

        Args:
          params_d: x, [d].
          stack_nd: gradients, [n, d]; NaN counts as 0.
          rows: int64 [k], which of them.
          gamma: the step.
          n_r: how many examples the loss is of, the same in all rounds.
          rng: the round's generator, which draws them.
        """


# ``validate(params_d, number, count)``: the gradient [d] at these parameters of so many validation
# examples, the same ones for the same number.
Validate = Callable[[np.ndarray, int, int], np.ndarray]


class Examples:
    """Validation examples, of which each round draws some.

    Attributes:
      count: how many there are.
    """

    def __init__(self, arrays: Any) -> None:
        """Takes arrays in any structure, whose first axis are the examples.

        Raises:
          UserError: there are none, or the arrays differ in their number.
        """
        self._arrays = arrays
        counts = {len(each) for each in tf.nest.flatten(arrays)}
        if len(counts) != 1 or 0 in counts:
            found = ", ".join(map(str, sorted(counts))) or "none"
            raise UserError(f"validation data need examples, as many in each array: found {found}")
        (self.count,) = counts

    def draw(self, rng: np.random.Generator, n_r: int) -> Any:
        """Returns n_r different examples, in the structure of the arrays.

        Raises:
          UserError: there are fewer.
        """
        if n_r > self.count:
            raise UserError(
                f"n_r={n_r} examples are to be drawn of {self.count}: give more validation data, "
                "or a smaller n_r"
            )
        chosen = rng.choice(self.count, n_r, replace=False)
        return tf.nest.map_structure(lambda each: each[chosen], self._arrays)


class LossOnCopies:
    """A ``Validation`` by a loss that TensorFlow computes; its own copies of the variables change.

    Time: per row a forward pass, and one pass over x, u and x - gamma u. Memory: one more set of
    the variables that are trained; of the stack nothing is copied if it lies in aligned memory.
    """

    def __init__(
        self,
        loss_of: Callable[..., Any],
        variables: Sequence[Any],
        examples: Examples | None,
    ) -> None:
        """Computes nothing yet.

        Args:
          loss_of: ``loss_of(*batch)`` returns the loss, a scalar, with the variables as they are.
            It is traced once, on the first call, for all that follow.
          variables: those that the gradients are of, in this order; ``tf.Variable``, mirrored ones
            among them.
          examples: the structure that a batch is drawn of, a tuple; None for a loss that takes
            none.
        """
        self._loss_of = loss_of
        self._variables = [getattr(v, "values", [v])[0] for v in variables]  # the first replica
        self._examples = examples
        self._layout = FlatLayout(self._variables)
        # A candidate x - gamma u, by variable: tensors, and arrays on the same memory.
        with tf.device("/CPU:0"):
            self._tensors = [tf.zeros([size], self._layout.dtype) for size in self._layout.sizes]
        self._blocks = _blocks_of([_memory_of(tensor) for tensor in self._tensors])
        num_threads = min(len(os.sched_getaffinity(0)), len(self._blocks))
        self._threads = ThreadPoolExecutor(num_threads) if self._layout.dim > _BLOCK else None
        self._shares = [self._blocks[first::num_threads] for first in range(num_threads)]
        self._trained: list[tuple[int, tf.Variable]] = []  # the place of each, and its copy
        self._others: list[_Other] = []
        self._batch: Any = None  # variables that have the round's, in the structure of a batch
        self._traced: Any = None
        self._loss: Any = None  # of the candidate
        self._gradient: Any = None

    def __call__(
        self,
        params_d: np.ndarray,
        stack_nd: np.ndarray,
        rows: np.ndarray,
        gamma: float,
        n_r: int,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Returns float64 [k + 1]: see ``Validation``.

        Raises:
          UserError: the loss is no scalar, or does not depend on the variables, or there are fewer
            than n_r examples.
        """
        self._prepare(n_r, rng)
        losses = np.empty(len(rows) + 1)
        for place, row in enumerate([None, *rows]):
            self._step(params_d, None if row is None else stack_nd[row], gamma)
            losses[place] = self._loss()
        return losses

    def gradient(self, params_d: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """Returns the gradient [d] of the loss at x.

        Args:
          params_d: x, [d].
          count: of how many examples, the same in all calls; all, where there are no more.
          rng: draws them.
        Raises:
          UserError: the loss is no scalar, or does not depend on the variables.
        """
        most = count if self._examples is None else min(count, self._examples.count)
        self._prepare(most, rng)
        self._step(params_d, None, 0.0)
        return self._gradient().numpy()

    def _prepare(self, count: int, rng: np.random.Generator) -> None:
        """Draws so many examples, and reads the other variables."""
        drawn = () if self._examples is None else self._examples.draw(rng, count)
        batch = tf.nest.map_structure(tf.convert_to_tensor, drawn)
        if self._traced is None:
            self._trace(batch)
        tf.nest.map_structure(lambda variable, value: variable.assign(value), self._batch, batch)
        # Read once: another thread may write them meanwhile, and all losses shall be of the same.
        for other in self._others:
            other.start.assign(_read(other.handle, other.spec))

    def _step(self, params_d: np.ndarray, grad_d: np.ndarray | None, gamma: float) -> None:
        """Writes x - gamma u, or x, to the candidate."""

        def write(blocks: list[_Block]) -> None:
            with np.errstate(over="ignore", invalid="ignore"):
                for block, here in blocks:
                    if grad_d is None:
                        block[:] = params_d[here]
                        continue
                    np.multiply(grad_d[here], -gamma, out=block)
                    if np.isnan(block.min()):
                        block[np.isnan(block)] = 0
                    block += params_d[here]

        if self._threads is None:
            write(self._blocks)
        else:
            list(self._threads.map(write, self._shares))

    def _trace(self, batch: Any) -> None:
        """Traces the loss, and gives its graph the copies in place of all variables."""
        specs = tf.nest.map_structure(tf.TensorSpec.from_tensor, batch)
        traced = tf.function(self._loss_of).get_concrete_function(*specs)
        loss = traced.structured_outputs
        if not isinstance(loss, tf.Tensor) or loss.shape.num_elements() != 1:
            found = f"shape {loss.shape}" if isinstance(loss, tf.Tensor) else type(loss).__name__
            raise UserError(f"the loss on validation data must be a scalar, got {found}")
        places = {id(variable.handle): place for place, variable in enumerate(self._variables)}
        captures = []
        for captured in traced.captured_inputs:
            spec = spec_of_variable(captured)
            if spec is None:
                captures.append(captured)
                continue
            copy = _variable(_read(captured, spec), spec)
            if id(captured) in places:
                self._trained.append((places[id(captured)], copy))
            else:
                start = _variable(_read(captured, spec), spec)
                self._others.append(_Other(captured, spec, start, copy))
            captures.append(copy.handle)
        if not self._trained:
            raise UserError(
                "the loss on validation data depends on none of the variables that are trained: "
                "compute it by the model that is trained"
            )
        traced.set_external_captures(captures)
        self._batch = tf.nest.map_structure(
            lambda value, spec: _variable(value, spec), batch, specs
        )
        self._traced = traced
        # Called once a row: a loop within it would copy each row. It captures all that it needs, as
        # arguments, and looking for the trace that fits them, take longer than a small model.
        loss_of = tf.function(self._loss_of_candidate, autograph=False)
        self._loss = loss_of.get_concrete_function()
        self._gradient = tf.function(self._gradient_of_candidate, autograph=False)

    def _gradient_of_candidate(self) -> tf.Tensor:
        """Makes the graph: 0 for a variable on which the loss does not depend."""
        copies = {place: copy for place, copy in self._trained}
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(copies.values()))
            loss = self._loss_of_candidate()
        gradients = dict(zip(copies, tape.gradient(loss, list(copies.values())), strict=True))
        return self._layout.flatten([gradients.get(i) for i in range(len(self._variables))])

    def _loss_of_candidate(self) -> tf.Tensor:
        """Makes the graph."""
        parts = [
            tf.cast(tf.reshape(part, spec.shape), spec.dtype)
            for part, spec in zip(self._tensors, self._layout.specs, strict=True)
        ]
        values = self._layout.restore(parts)
        for place, copy in self._trained:
            copy.assign(values[place])
        for other in self._others:
            other.copy.assign(other.start.read_value())
        batch = tf.nest.map_structure(lambda variable: variable.read_value(), self._batch)
        return tf.cast(tf.reshape(self._traced(*batch), []), tf.float64)


class _Block(NamedTuple):
    """A piece of the candidate, and its place in the vector [d]."""

    values: np.ndarray
    place: slice


class _Other(NamedTuple):
    """A variable that is not trained: its handle, and where each loss of a round begins."""

    handle: tf.Tensor
    spec: tf.TensorSpec
    start: tf.Variable
    copy: tf.Variable


def _blocks_of(parts: list[np.ndarray]) -> list[_Block]:
    """Returns the parts of a vector in pieces, each with its place in the vector."""
    blocks, first = [], 0
    for part in parts:
        for at in range(0, len(part), _BLOCK):
            block = part[at : at + _BLOCK]
            blocks.append(_Block(block, slice(first + at, first + at + len(block))))
        first += len(part)
    return blocks


def _read(handle: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
    return tf.raw_ops.ReadVariableOp(resource=handle, dtype=spec.dtype)


def _variable(value: tf.Tensor, spec: tf.TensorSpec) -> tf.Variable:
    return tf.Variable(value, trainable=False, shape=spec.shape)


def _memory_of(tensor: tf.Tensor) -> np.ndarray:
    """Returns an array on a tensor's own memory, which may be written to.

    It is TensorFlow's: of an array's it might let go when Python has ended, which never ends then.
    """
    shared = np.asarray(tensor)
    memory: Any = (ctypes.c_char * shared.nbytes).from_address(shared.ctypes.data)
    return np.frombuffer(memory, shared.dtype)
