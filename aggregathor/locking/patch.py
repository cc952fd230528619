"""Redirects writes of locked variables to copies of this process's own, while a graph is traced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from aggregathor.internals.tensorflow import FuncGraph
from aggregathor.locking import effects

# A variable by the container and the name of its resource.
Key = tuple[str, str]
_CONTAINER = "aggregathor_copies"


class Copies:
    """Copies of locked variables; each starts with the value of when it is first needed."""

    def __init__(self) -> None:
        """Begins without any."""
        self._made: dict[Key, Any] = {}

    def handle_in(self, graph: FuncGraph, key: Key, variable: tf.Variable) -> tf.Tensor:
        """Returns, in a graph, the handle of a variable's copy.

        The handle refers to it by name: a branch that has been traced can capture nothing more.
        """
        name = "/".join(key)
        if key not in self._made:
            with tf.init_scope():
                self._made[key] = _handle(name, variable)
                tf.raw_ops.AssignVariableOp(resource=self._made[key], value=variable.read_value())
        with graph.as_default():
            return _handle(name, variable)


def writes_of(
    graph: FuncGraph, key_of: Callable[[tf.Tensor], Key | None]
) -> Iterator[tuple[tf.Operation, int, Key]]:
    """Yields the operations of a graph that may write a variable, and which operand its handle is.

    Args:
      graph: one that is being traced, or has just been.
      key_of: called with a tensor of another graph, or one that an op makes which names a variable;
        returns the variable whose handle it is, if any.
    """
    outer = {inner.op.name: outer for outer, inner in graph.captures}
    for operation in graph.get_operations():
        if not _may_write(operation):
            continue
        for at, tensor in enumerate(operation.inputs):
            key = key_of(_source(tensor, outer))
            if key is not None:
                yield operation, at, key


def _may_write(operation: tf.Operation) -> bool:
    op = operation.type
    if op in effects.READS | effects.PASSES | effects.PYTHON or effects.is_dataset(op):
        return False
    attributes = operation.node_def.attr.values()
    return not any(each.HasField("func") or each.list.func for each in attributes)


def _source(tensor: Any, outer: dict[str, Any]) -> Any:
    """Returns the tensor that a handle was captured or passed on from."""
    while True:
        while not hasattr(tensor, "numpy") and tensor.op.type == "Identity":
            tensor = tensor.op.inputs[0]
        if hasattr(tensor, "numpy") or tensor.op.name not in outer:
            return tensor
        tensor = outer[tensor.op.name]
        if hasattr(tensor, "numpy") or not isinstance(tensor.graph, FuncGraph):
            return tensor
        outer = {inner.op.name: captured for captured, inner in tensor.graph.captures}


def _handle(name: str, variable: tf.Variable) -> tf.Tensor:
    with tf.device(variable.device):
        return tf.raw_ops.VarHandleOp(
            container=_CONTAINER, shared_name=name, dtype=variable.dtype, shape=variable.shape
        )
