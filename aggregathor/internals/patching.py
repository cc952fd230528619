"""How a method of a TensorFlow or Keras class is replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def as_method(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a method of what takes the object as its first argument; AutoGraph leaves it be."""

    @tf.autograph.experimental.do_not_convert
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **kwargs)

    return method
