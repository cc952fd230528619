"""Gradients of a model <-> one vector: the only place that knows None, IndexedSlices and dtypes.

The vector is float32; or float64, where one of the variables is float64 or complex128. So nothing
of a variable's value is lost on the way: half types fit into float32, and a complex number is two
coordinates, its real and its imaginary part. Only a gradient that is wider than all the variables
is rounded, as the optimizer would do before it uses it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aggregathor.errors import UserError

_PART = {tf.complex64: tf.float32, tf.complex128: tf.float64}  # of complex types
_CANNOT_BE_TRAINED = (
    "is {}, and optimizers train real and complex numbers. Leave it out of what the optimizer is "
    "given, or make it a float."
)


class FlatLayout:
    """Where each variable lies in the vector [d] of all of them, in the order given.

    Attributes:
      shapes: the variables' shapes.
      dtypes: theirs.
      sizes: their numbers of coordinates: those of complex ones are two each.
      specs: what travels of each: itself, or a real tensor of shape [..., 2].
      dim: d, the sum of the sizes.
      dtype: of the vector, float32 or float64.
    """

    def __init__(self, variables: Sequence[Any]) -> None:
        """Takes ``tf.Variable`` or Keras variables; their shapes must be known.

        Raises:
          UserError: a variable is no number that can be trained.
        """
        self._names = [v.name for v in variables]
        self.shapes = [tuple(int(size) for size in v.shape) for v in variables]
        self.dtypes = [tf.as_dtype(v.dtype).base_dtype for v in variables]
        for name, dtype in zip(self._names, self.dtypes, strict=True):
            if not _is_trainable(dtype):
                raise UserError(f"{name} {_CANNOT_BE_TRAINED.format(dtype.name)}")
        self.specs = [_spec(*of) for of in zip(self.shapes, self.dtypes, strict=True)]
        self.sizes = [math.prod(map(int, spec.shape)) for spec in self.specs]
        self.dim = sum(self.sizes)
        is_wide = any(spec.dtype == tf.float64 for spec in self.specs)
        self.dtype = tf.float64 if is_wide else tf.float32

    def flatten(self, gradients: Sequence[Any]) -> tf.Tensor:
        """Concatenates gradients, or the variables themselves, to a vector [d] of ``dtype``.

        A None (the loss does not depend on the variable) is 0; an IndexedSlices is made dense.
        """
        parts = [
            tf.cast(tf.reshape(part, [size]), self.dtype)
            for part, size in zip(self.dense(gradients), self.sizes, strict=True)
        ]
        return tf.concat(parts, axis=0)

    def dense(self, gradients: Sequence[Any]) -> list[tf.Tensor]:
        """Returns what travels of each gradient: a real tensor of known shape.

        Zeros for None; an IndexedSlices is made dense.

        Raises:
          UserError: a gradient has another shape than its variable, or is complex where that is
            real.
        """
        tensors = [
            tf.zeros(shape, dtype) if gradient is None else tf.convert_to_tensor(gradient)
            for gradient, shape, dtype in zip(gradients, self.shapes, self.dtypes, strict=True)
        ]
        parts: list[tf.Tensor] = []
        for tensor, shape, dtype, name in zip(
            tensors, self.shapes, self.dtypes, self._names, strict=True
        ):
            if not tensor.shape.is_compatible_with(shape):
                raise UserError(
                    f"the gradient of {name} has the shape {list(tensor.shape)}, and the variable "
                    f"{list(shape)}. Pass gradients in the order of their variables."
                )
            tensor.set_shape(shape)
            if dtype.is_complex:
                tensor = tf.bitcast(tf.cast(tensor, dtype), _PART[dtype])
            elif tensor.dtype.is_complex:
                raise UserError(
                    f"the gradient of {name} is {tensor.dtype.name}, and the variable {dtype.name}:"
                    " its imaginary part would be lost. Pass its real part, tf.math.real(...)."
                )
            parts.append(tensor)
        return parts

    def flatten_arrays(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Concatenates the variables' values as ``flatten`` does, without TensorFlow."""
        parts: list[np.ndarray] = [
            np.ascontiguousarray(value, dtype.as_numpy_dtype).reshape(-1).view(_part(dtype))
            for value, dtype in zip(values, self.dtypes, strict=True)
        ]
        return np.concatenate(parts, dtype=self.dtype.as_numpy_dtype)

    def restore(self, parts: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Returns what has travelled, of ``specs``, in the variables' shapes and dtypes."""
        return [
            tf.bitcast(part, dtype) if dtype.is_complex else part
            for part, dtype in zip(parts, self.dtypes, strict=True)
        ]

    def unflatten(self, vector_d: tf.Tensor) -> list[tf.Tensor]:
        """Cuts [d] into tensors of the variables' shapes and dtypes."""
        parts = tf.split(vector_d, self.sizes)
        return self.restore(
            [
                tf.cast(tf.reshape(part, spec.shape), spec.dtype)
                for part, spec in zip(parts, self.specs, strict=True)
            ]
        )


def places_of_trained(gradients: Sequence[Any], variables: Sequence[Any]) -> list[int]:
    """Returns the places in a list of the variables that an optimizer can train.

    An integer, a truth value or a text has no gradient: its None, which scripts pass along with the
    others, keeps it out of the round, and its rank keeps its value.

    Raises:
      UserError: one of these has a gradient.
    """
    places = []
    for place, (gradient, variable) in enumerate(zip(gradients, variables, strict=True)):
        dtype = tf.as_dtype(variable.dtype).base_dtype
        if _is_trainable(dtype):
            places.append(place)
        elif gradient is not None:
            raise UserError(f"{variable.name} {_CANNOT_BE_TRAINED.format(dtype.name)}")
    return places


def is_number(variable: Any) -> bool:
    """Whether a variable's value is an array of numbers, and not text or a table."""
    return tf.as_dtype(variable.dtype).base_dtype not in (tf.string, tf.resource, tf.variant)


def _is_trainable(dtype: tf.DType) -> bool:
    return dtype.is_floating or dtype.is_complex


def _part(dtype: tf.DType) -> type:
    return _PART.get(dtype, dtype).as_numpy_dtype


def _spec(shape: tuple[int, ...], dtype: tf.DType) -> tf.TensorSpec:
    if dtype.is_complex:
        return tf.TensorSpec((*shape, 2), _PART[dtype])
    return tf.TensorSpec(shape, dtype)
