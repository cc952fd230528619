"""Which variables a Python function can reach: a graph that calls it can do whatever it does.

What belongs to AggregaThor, Keras or TensorFlow is not the function's: their own objects and
functions are left out, but for what they hold of the script's, such as a model's variables.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

_MOST_OBJECTS = 10_000  # that are visited
_OPAQUE = (str, bytes, int, float, complex, np.ndarray, tf.Tensor, types.ModuleType, type)
# Methods by which scripts change variables.
_WRITING = frozenset(
    {
        *("assign", "assign_add", "assign_sub", "scatter_update", "scatter_nd_update"),
        *("set_weights", "load_weights", "restore"),
        *("apply", "apply_gradients", "minimize", "fit", "train_on_batch", "train_step"),
    }
)
# Whose globals hold nothing of a script's, but for the list of all threads that `threading` keeps.
_LIBRARIES = ("keras", "tensorflow", "numpy", "threading")
_HOLDERS = (keras.layers.Layer, keras.optimizers.Optimizer, keras.metrics.Metric, tf.Module)


class Reached(NamedTuple):
    """What a function can reach.

    Attributes:
      variable: a wanted one.
      may_write: whether code that it can reach names a method that writes variables.
    """

    variable: tf.Variable
    may_write: bool


def reach(start: Any, is_wanted: Callable[[tf.Variable], bool]) -> Reached | None:
    """Returns a wanted variable that a function can reach; None if it finds none.

    It searches closures, defaults, the globals that the code names, the object that a method is
    bound to, containers, attributes, and objects of Keras and TensorFlow. It does not see what a
    function looks up while it runs (``gc``, ``sys.modules``, frames, the list of threads).
    """
    ahead, seen = deque([start]), {id(start): start}
    variable = None
    names: set[str] = set()
    while ahead and len(seen) < _MOST_OBJECTS:
        found = ahead.popleft()
        if isinstance(found, keras.Variable):
            found = found.value
        if isinstance(found, tf.Variable):
            if variable is None and is_wanted(found):
                variable = found
            continue
        if isinstance(found, types.FunctionType):
            names.update(_names(found.__code__))
        for each in _held_by(found):
            if id(each) not in seen and not isinstance(each, _OPAQUE) and not _is_ours(each):
                seen[id(each)] = each
                ahead.append(each)
    return None if variable is None else Reached(variable, not _WRITING.isdisjoint(names))


def _held_by(thing: Any) -> Iterable[Any]:
    if isinstance(thing, types.FunctionType):
        yield from (cell.cell_contents for cell in thing.__closure__ or () if _is_filled(cell))
        yield from thing.__defaults__ or ()
        yield from (thing.__kwdefaults__ or {}).values()
        if not _is_of_a_library(thing):
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
        if not _is_of_a_library(type(thing)):
            yield from (each for each in vars(type(thing)).values() if inspect.isfunction(each))


def _names(code: types.CodeType) -> Iterable[str]:
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from _names(each)


def _is_ours(thing: Any) -> bool:
    """Whether AggregaThor made a function or an object, as every function that it replaces."""
    kind = thing if isinstance(thing, types.FunctionType) else type(thing)
    return _package(kind) == "aggregathor"


def _is_of_a_library(thing: Any) -> bool:
    return _package(thing) in _LIBRARIES


def _package(thing: Any) -> str:
    return str(getattr(thing, "__module__", "")).partition(".")[0]


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
