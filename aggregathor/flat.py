"""Gradients of a model <-> one vector: the only place that knows None, IndexedSlices and dtypes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from aggregathor.errors import UserError


class FlatLayout:
    """Where each variable lies in the vector [d] of all of them, in the order given.

    Attributes:
      shapes: the variables' shapes.
      sizes: their numbers of coordinates.
      dtypes: theirs.
      dim: d, the sum of the sizes.
    """

    def __init__(self, variables: Sequence[Any]) -> None:
        """Takes ``tf.Variable`` or Keras variables; their shapes must be known."""
        self._names = [v.name for v in variables]
        self.shapes = [tuple(int(size) for size in v.shape) for v in variables]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.dim = sum(self.sizes)
        self.dtypes = [tf.as_dtype(v.dtype).base_dtype for v in variables]

    def flatten(self, gradients: Sequence[Any]) -> tf.Tensor:
        """Concatenates gradients, or the variables themselves, to float32 [d].

        A None (the loss does not depend on the variable) is 0; an IndexedSlices is made dense.
        """
        parts = [
            tf.cast(tf.reshape(part, [size]), tf.float32)
            for part, size in zip(self.dense(gradients), self.sizes, strict=True)
        ]
        return tf.concat(parts, axis=0)

    def dense(self, gradients: Sequence[Any]) -> list[tf.Tensor]:
        """Returns a tensor of known shape for each gradient.

        Zeros for None; an IndexedSlices is made dense.

        Raises:
          UserError: a gradient has another shape than its variable.
        """
        tensors = [
            tf.zeros(shape, tf.float32) if gradient is None else tf.convert_to_tensor(gradient)
            for gradient, shape in zip(gradients, self.shapes, strict=True)
        ]
        for tensor, shape, name in zip(tensors, self.shapes, self._names, strict=True):
            if not tensor.shape.is_compatible_with(shape):
                raise UserError(
                    f"the gradient of {name} has the shape {list(tensor.shape)}, and the variable "
                    f"{list(shape)}. Pass gradients in the order of their variables."
                )
            tensor.set_shape(shape)
        return tensors

    def unflatten(self, vector_d: tf.Tensor) -> list[tf.Tensor]:
        """Cuts [d] into tensors of the variables' shapes and dtypes."""
        parts = tf.split(vector_d, self.sizes)
        return [
            tf.cast(tf.reshape(part, shape), dtype)
            for part, shape, dtype in zip(parts, self.shapes, self.dtypes, strict=True)
        ]
