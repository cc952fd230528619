"""The private names of TensorFlow that AggregaThor uses; nobody else imports ``tensorflow.python``.

``compatibility.py`` checks at ``agt.init`` that each of them is there, with these parameters: who
adds a name here adds it there.
"""

from __future__ import annotations

import contextlib
import functools
import numbers
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2
from tensorflow.python.autograph.core import ag_ctx
from tensorflow.python.autograph.impl import api as autograph
from tensorflow.python.checkpoint import checkpoint_management
from tensorflow.python.checkpoint.functional_saver import MultiDeviceSaver
from tensorflow.python.client import pywrap_tf_session
from tensorflow.python.client.session import BaseSession
from tensorflow.python.data.util import random_seed as dataset_seeds
from tensorflow.python.eager import context
from tensorflow.python.eager import lift_to_graph as lifting
from tensorflow.python.eager.lift_to_graph import UnliftableError
from tensorflow.python.eager.polymorphic_function import (
    autograph_util,
    polymorphic_function,
    transform,
)
from tensorflow.python.eager.wrap_function import WrappedFunction
from tensorflow.python.framework import graph_util, kernels, op_def_registry
from tensorflow.python.framework.func_graph import FuncGraph
from tensorflow.python.ops import handle_data_util, script_ops
from tensorflow.python.profiler import profiler_v2 as profiler
from tensorflow.python.summary.writer import writer as summaries
from tensorflow.python.training import py_checkpoint_reader as readers
from tensorflow.python.util import deprecation, tf_decorator

from aggregathor.internals.patching import as_method

# What `tf.function` makes.
PolymorphicFunction = polymorphic_function.Function
# A variable that a `tf.function` makes in its first trace.
FirstTraceVariable = polymorphic_function.UnliftedInitializerVariable

_RESOURCE = re.compile(r'ResourceHandle\(name="([^"]*)".*?container="([^"]*)"', re.S)


# Execution.


def eager_mode() -> contextlib.AbstractContextManager[None]:
    """Returns a context in which this thread runs eagerly, also in a script of ``tf.compat.v1``."""
    return context.eager_mode()


def synchronous_execution() -> contextlib.AbstractContextManager[None]:
    """Returns a context in which eager ops of this thread run on this thread."""
    return context.execution_mode(context.SYNC if context.is_async() else None)


# Functions of graphs.


def watch_traces(look: Callable[[FuncGraph], None]) -> Callable[[], None]:
    """Calls ``look`` with the graph of each function that is traced from now on, before it can run.

    These are ``tf.function``, each branch and loop body in it, what a dataset calls, and what
    ``tf.compat.v1.wrap_function`` makes.

    Returns:
      What ends this.
    """

    def look_and_wrap(function: Any, graph: FuncGraph, *args: Any, **kwargs: Any) -> None:
        look(graph)  # TensorFlow's transforms do not see it
        wrap(function, graph, *args, **kwargs)

    wrap = WrappedFunction.__init__
    WrappedFunction.__init__ = as_method(look_and_wrap)
    transform.FUNC_GRAPH_TRANSFORMS.append(look)

    def stop() -> None:
        transform.FUNC_GRAPH_TRANSFORMS.remove(look)
        WrappedFunction.__init__ = wrap

    return stop


def initialise_variables_within(
    make_context: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    """Enters a context whenever a ``tf.function`` initialises the variables of its first trace."""
    initialise = polymorphic_function.Function._initialize_uninitialized_variables

    def within(self: Any, initializers: Any) -> None:
        with make_context():
            initialise(self, initializers)

    polymorphic_function.Function._initialize_uninitialized_variables = within


def is_for_xla(function: Any) -> bool:
    """Whether a ``tf.function`` was made with ``jit_compile=True``."""
    return bool(function._jit_compile)


def without_xla(function: Any) -> Any:
    """Returns a ``tf.function`` like another, but for ``jit_compile``."""
    clone = function._clone(None)
    clone._jit_compile = False
    return clone


def wrapped(function: Any, around: Callable[[Callable[..., Any], Any, Any], Any]) -> Any:
    """Returns a ``tf.function`` like another, with other outputs.

    Args:
      function: the other.
      around: called while it is traced, with the function of Python and its arguments, positional
        and by name; what it returns is the output. AutoGraph has converted that function if it
        would have, and leaves ``around`` alone.
    """
    python = function.python_function
    inner = python
    if function._autograph:
        inner = autograph_util.py_func_from_autograph(python)
        # Tracing `outer`, which is not to be converted, would keep `inner` from being it.
        inner = autograph.call_with_unspecified_conversion_status(inner)

    def outer(*args: Any, **kwargs: Any) -> Any:
        return around(inner, args, kwargs)

    clone = function._clone(tf_decorator.make_decorator(python, outer))  # of the same signature
    clone._autograph = False
    return clone


def functions_called_by(graph: tf.Graph) -> Iterator[tuple[str, Any]]:
    """Yields name and graph of each function in a graph's library, where it has a graph."""
    for name, function in getattr(graph, "_functions", {}).items():
        inner = getattr(function, "cached_graph", None) or getattr(function, "graph", None)
        if inner is not None:
            yield name, inner


def python_function(token: str) -> Callable[..., Any] | None:
    """Returns the function that an op ``PyFunc`` knows by a token; None if there is none."""
    return script_ops._py_funcs.get(token)


def lift_to_graph(tensors: Sequence[tf.Tensor], graph: tf.Graph) -> list[tf.Tensor]:
    """Copies tensors, with all that they are made from, to another graph; returns the copies.

    Raises:
      UnliftableError: they are made from an argument of their function.
    """
    lifted = lifting.lift_to_graph(tensors, graph)
    return [lifted[tensor] for tensor in tensors]


def not_converted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps AutoGraph from converting a function; unlike ``do_not_convert`` it costs no call."""
    return autograph.autograph_artifact(function)


def converted_as_here(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that AutoGraph converts, wherever it is called, if it would here."""
    return autograph.tf_convert(function, ag_ctx.control_status_ctx())


def watch_python_calls(
    within: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    """Lets each call of Python by a graph, such as of ``tf.py_function``, run in a context."""
    call = script_ops.FuncRegistry.__call__

    def call_within(self: Any, token: Any, device: Any, args: Any) -> Any:
        with within():
            return call(self, token, device, args)

    script_ops.FuncRegistry.__call__ = call_within


# Seeds.


def change_function_seeds(change: Callable[[int | None], int | None]) -> None:
    """Lets a function have ``change(s)`` in place of the global seed s, from its next trace on."""
    original = FuncGraph.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        is_outermost = tf.executing_eagerly()
        original(self, *args, **kwargs)
        if is_outermost:  # else it has the seed of the graph around it
            self.seed = change(self.seed)

    FuncGraph.__init__ = init


def change_dataset_seeds(change: Callable[[Any], Any]) -> None:
    """Lets datasets that draw have ``change(s)`` in place of the first of their two seeds s."""
    get_seed = dataset_seeds.get_seed

    def changed(seed: Any) -> tuple[Any, Any]:
        pair = get_seed(seed)
        if all(tf.get_static_value(each) == 0 for each in pair):
            return pair  # drawn when the dataset is made
        return change(pair[0]), pair[1]

    dataset_seeds.get_seed = changed


# Checkpoints.


def watch_checkpoints(
    writing: Callable[[Any], bool], reading: Callable[..., None], *, deletes: bool
) -> None:
    """Calls something for each checkpoint of ``tf.train.Checkpoint`` and of its manager.

    Args:
      writing: returns whether the one of a path is written; asked before.
      reading: called before one is read, and with ``is_written=True`` after one was written or
        left out. The file that lists a folder's checkpoints counts as one.
      deletes: whether a manager deletes old ones.
    """
    save, make_reader = MultiDeviceSaver.save, readers.NewCheckpointReader
    update, state_of = (
        checkpoint_management.update_checkpoint_state_internal,
        checkpoint_management.get_checkpoint_state,
    )

    def save_or_not(self: Any, file_prefix: Any, options: Any = None) -> Any:
        result = save(self, file_prefix, options) if writing(file_prefix) else None
        if context.executing_eagerly():
            reading(file_prefix, is_written=True)
            return result
        return tf.no_op() if result is None else result

    def update_or_not(save_dir: Any, *args: Any, **kwargs: Any) -> None:
        if writing(save_dir):
            update(save_dir, *args, **kwargs)
        name = kwargs.get("latest_filename") or "checkpoint"
        reading(os.path.join(save_dir, name), is_written=True)

    def read_state(checkpoint_dir: Any, latest_filename: Any = None) -> Any:
        reading(os.path.join(checkpoint_dir, latest_filename or "checkpoint"))
        return state_of(checkpoint_dir, latest_filename)

    def read(filepattern: Any) -> Any:
        reading(filepattern)
        return make_reader(filepattern)

    MultiDeviceSaver.save = save_or_not
    checkpoint_management.update_checkpoint_state_internal = update_or_not
    readers.NewCheckpointReader = read
    for module in (checkpoint_management, tf.train, tf.compat.v1.train):
        module.get_checkpoint_state = read_state
    if not deletes:
        checkpoint_management._delete_file_if_exists = lambda filespec: None


def checkpoint_name(saver: Any, session: Any, save_path: Any, global_step: Any = None) -> str:
    """Returns what ``save`` of v1's ``Saver`` returns, without writing."""
    path = os.fsdecode(save_path)
    if global_step is None:
        return path
    if not isinstance(global_step, numbers.Integral):
        global_step = tf.compat.v1.train.global_step(session, global_step)
    return f"{path}-{global_step:08d}" if saver._pad_step_number else f"{path}-{global_step}"


class _NoEvents:
    """Writes no events, in place of the file that a ``FileWriter`` of v1 writes them to."""

    def __init__(self, logdir: Any, *_: Any, **__: Any) -> None:
        self._logdir = logdir

    def get_logdir(self) -> Any:
        return self._logdir

    def add_event(self, event: Any) -> None:
        """Does nothing."""

    def flush(self) -> None:
        """Does nothing."""

    reopen = close = flush


def leave_events_out() -> None:
    """Lets v1's ``FileWriter`` write nothing."""
    summaries.EventFileWriter = _NoEvents
    summaries.EventFileWriterV2 = lambda session, logdir, *_, **__: _NoEvents(logdir)


def leave_profiles_out() -> None:
    """Lets a profile be taken, and not be written."""
    stop = profiler.stop

    @functools.wraps(stop)
    def without_saving(save: bool = True) -> None:
        stop(save=False)

    profiler.stop = tf.profiler.experimental.stop = without_saving


# Graphs.


def subgraph(graph: tf.Graph, names: Iterable[str]) -> Any:
    """Returns the ``GraphDef`` of the named operations and of all that they need."""
    with deprecation.silence():
        return graph_util.extract_sub_graph(graph.as_graph_def(), list(names))


def op_definition(op: str) -> Any:
    """Returns the ``OpDef`` of an op, such as "MatMul"; None if there is no such op."""
    return op_def_registry.get(op)


def set_attribute(operation: tf.Operation, name: str, value: bytes) -> None:
    """Sets an attribute of an operation whose graph has not run yet."""
    operation._set_attr(name, attr_value_pb2.AttrValue(s=value))


def replace_input(operation: tf.Operation, index: int, tensor: tf.Tensor) -> None:
    """Replaces an operand of an operation whose graph has not run yet."""
    operation._update_input(index, tensor)


def resource_of(handle: Any) -> tuple[str, str] | None:
    """Returns the container and the name of the resource that an eager handle refers to."""
    found = _RESOURCE.search(repr(handle))
    return (found[2], found[1]) if found else None


def spec_of_variable(tensor: Any) -> tf.TensorSpec | None:
    """Returns shape and dtype of the variable that a tensor is the handle of; None if of none."""
    if tensor.dtype != tf.resource:
        return None
    data = handle_data_util.get_handle_data(tensor)
    if data is None or not data.is_set or len(data.shape_and_type) != 1:
        return None
    (of,) = data.shape_and_type
    return tf.TensorSpec(of.shape, of.dtype)


def reference_of(variable: Any) -> tf.Tensor:
    """Returns the reference to a variable of v1 that has no handle."""
    return variable._ref()


def wrapped_optimizer(optimizer: Any) -> Any:
    """Returns the optimizer that a ``SyncReplicasOptimizer`` of v1 wraps; any other as it is."""
    return getattr(optimizer, "_opt", optimizer)


# Kernels.


def registered_kernels() -> Sequence[Any]:
    """Returns a ``KernelDef`` of each kernel that this process has registered."""
    return kernels.get_all_registered_kernels().kernel


def clear_kernel_cache() -> None:
    """Lets ops that run eagerly have new kernels."""
    context.context().clear_kernel_cache()


def after_loading_a_library(call: Callable[[], None]) -> Callable[[], None]:
    """Calls ``call`` after each ``tf.load_op_library`` from now on; returns what ends this."""
    load = pywrap_tf_session.TF_LoadLibrary

    def load_and_call(*args: Any, **kwargs: Any) -> Any:
        library = load(*args, **kwargs)
        call()
        return library

    pywrap_tf_session.TF_LoadLibrary = load_and_call

    def stop() -> None:
        pywrap_tf_session.TF_LoadLibrary = load

    return stop


__all__ = [
    "BaseSession",
    "FirstTraceVariable",
    "FuncGraph",
    "PolymorphicFunction",
    "UnliftableError",
    "after_loading_a_library",
    "change_dataset_seeds",
    "change_function_seeds",
    "clear_kernel_cache",
    "converted_as_here",
    "eager_mode",
    "functions_called_by",
    "initialise_variables_within",
    "is_for_xla",
    "lift_to_graph",
    "not_converted",
    "op_definition",
    "python_function",
    "reference_of",
    "registered_kernels",
    "replace_input",
    "resource_of",
    "set_attribute",
    "spec_of_variable",
    "subgraph",
    "synchronous_execution",
    "watch_checkpoints",
    "watch_python_calls",
    "watch_traces",
    "without_xla",
    "wrapped",
    "wrapped_optimizer",
]
