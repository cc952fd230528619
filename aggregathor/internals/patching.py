"""Replaces methods of TensorFlow and Keras classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def as_method(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a method of a function whose first argument is the object; AutoGraph skips it."""

    @tf.autograph.experimental.do_not_convert
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **kwargs)

    return method
