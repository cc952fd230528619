"""Which variables a Python function can reach: a graph that calls it can do whatever it does."""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

_MOST_OBJECTS = 10_000  # that are visited
_OPAQUE = (str, bytes, int, float, complex, np.ndarray, tf.Tensor, types.ModuleType, type)
_HOLDERS = (keras.layers.Layer, keras.optimizers.Optimizer, keras.metrics.Metric, tf.Module)


def reachable(start: Any, is_wanted: Callable[[tf.Variable], bool]) -> tf.Variable | None:
    """Returns a wanted variable that a function can reach; None if it finds none.

    It searches closures, defaults, the globals that the code names, the object that a method is
    bound to, containers, attributes, and objects of Keras and TensorFlow. It does not see what a
    function looks up while it runs (``gc``, ``sys.modules``, frames).
    """
    ahead, seen = deque([start]), {id(start)}
    while ahead and len(seen) < _MOST_OBJECTS:
        found = ahead.popleft()
        if isinstance(found, keras.Variable):
            found = found.value
        if isinstance(found, tf.Variable):
            if is_wanted(found):
                return found
            continue
        for each in _held_by(found):
            if id(each) not in seen and not isinstance(each, _OPAQUE):
                seen.add(id(each))
                ahead.append(each)
    return None


def _held_by(thing: Any) -> Iterable[Any]:
    if isinstance(thing, types.FunctionType):
        yield from (cell.cell_contents for cell in thing.__closure__ or () if _is_filled(cell))
        yield from thing.__defaults__ or ()
        yield from (thing.__kwdefaults__ or {}).values()
        yield from (thing.__globals__.get(name) for name in _names(thing.__code__))
        yield from vars(thing).values()  # what it wraps
    elif isinstance(thing, types.MethodType):
        yield from (thing.__self__, thing.__func__)
    elif isinstance(thing, functools.partial):
        yield from (thing.func, *thing.args, *thing.keywords.values())
    elif isinstance(thing, _HOLDERS):
        yield from thing.variables
    elif isinstance(thing, Mapping):
        yield from thing.values()
    elif isinstance(thing, (list, tuple, set, frozenset, deque)):
        yield from thing
    else:
        yield from getattr(thing, "__dict__", {}).values()
        yield vars(type(thing)).get("__call__")


def _names(code: types.CodeType) -> Iterable[str]:
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from _names(each)


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
