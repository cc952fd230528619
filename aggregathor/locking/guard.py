"""Looks at every graph that a process traces, before it can run, for writes of locked variables."""

from __future__ import annotations

import contextlib
import re
import secrets
import threading
import traceback
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2
from tensorflow.python.eager.polymorphic_function import transform
from tensorflow.python.eager.wrap_function import WrappedFunction
from tensorflow.python.framework import graph_util
from tensorflow.python.framework.func_graph import FuncGraph
from tensorflow.python.ops import script_ops
from tensorflow.python.util import deprecation

import aggregathor
from aggregathor.errors import UserError
from aggregathor.internals.patching import as_method
from aggregathor.locking import effects
from aggregathor.locking.digest import Digest
from aggregathor.locking.kernels import KernelLock
from aggregathor.locking.patch import Copies, Key, writes_of
from aggregathor.locking.reachability import reachable
from aggregathor.locking.scan import PythonCall, Scan, Write
from aggregathor.log import say

_RESOURCE = re.compile(r'ResourceHandle\(name="([^"]*)".*?container="([^"]*)"', re.S)
_MOST_NAMED = 3  # variables in an error
_NOT_THE_USERS = tuple(str(Path(str(each.__file__)).parent) for each in (tf, keras, aggregathor))


class LockError(UserError):
    """A graph would write a variable that only the server writes."""


class Guard:
    """Variables that this process may not write, the graphs that it traces, and its kernels.

    A ``tf.function``, each branch and each loop body in it, and what a dataset calls are looked at
    when they have been traced; what was traced before a variable was locked is looked at then.
    """

    def __init__(self, who: str, *, scans: bool = True, patches: bool = False) -> None:
        """Begins to look at graphs, if it scans.

        Args:
          who: may not write, such as "rank 2".
          scans: whether graphs are looked at.
          patches: what ``lock`` does with them unless it is told.
        """
        self._who = who
        self._scans = scans
        self._patches = patches
        self._kernels: KernelLock | None = None
        self._digest: Digest | None = None
        self._allowed = ("_aggregathor_writes", secrets.token_bytes(16))
        self._names: dict[Key, str] = {}  # of locked variables
        self._patched: dict[Key, tf.Variable] = {}  # those of which a copy is written instead
        self._copies = Copies()
        self._traced: weakref.WeakSet[FuncGraph] = weakref.WeakSet()
        self._thread = threading.local()  # whose TensorFlow may be making a variable
        if scans:
            transform.FUNC_GRAPH_TRANSFORMS.append(self._look)
            self._wrap = WrappedFunction.__init__
            WrappedFunction.__init__ = as_method(self._look_and_wrap)

    def lock_kernels(self) -> KernelLock:
        """Lets kernels refuse too to write what is locked from now on.

        Raises:
          NoKernelLock: they cannot, and everything is as it was.
        """
        self._kernels = KernelLock(self._who, self._allowed)
        return self._kernels

    def digest(self, every: int) -> Digest:
        """Compares what the server sends with what is there when the next gradient is made."""
        self._digest = Digest(self._who, every)
        return self._digest

    def close(self, wait_s: float = 0.0) -> None:
        """Looks no more; nothing is waited for."""
        if self._digest is not None:
            self._digest.close()
        if self._scans:
            transform.FUNC_GRAPH_TRANSFORMS.remove(self._look)
            WrappedFunction.__init__ = self._wrap
        if self._kernels is not None:
            self._kernels.close()

    def lock(
        self, variables: Iterable[tf.Variable | keras.Variable], *, patch: bool | None = None
    ) -> None:
        """Locks more variables, of TensorFlow or Keras.

        Args:
          variables: of TensorFlow or Keras.
          patch: lets graphs that are traced from now on write a copy of this process's own instead,
            where they name the variable itself; else, and elsewhere, they are refused.
        Raises:
          LockError: what was traced before would write one.
        """
        for variable in variables:
            name = name_of(variable)
            for each in _parts_of(variable):
                self._names[_key_of(each)] = name
                if self._patches if patch is None else patch:
                    self._patched[_key_of(each)] = each
                if self._kernels is not None and _is_eager(each):
                    self._kernels.lock(each, name)
        for graph in list(self._traced):
            self._check(graph)

    def lock_ops(self, variables: Iterable[tf.Variable]) -> list[tf.Operation]:
        """Makes ops of v1 that let the kernels of a session refuse to write variables."""
        if self._kernels is None:
            return []
        made = [self._kernels.lock(each, name_of(each)) for each in variables]
        return [each for each in made if each is not None]

    def overwrite(self, variable: tf.Variable, value: Any) -> None:
        """Writes a locked variable: what the server has published. Nothing else does."""
        with self._kernels.writing() if self._kernels else contextlib.nullcontext():
            written = variable.assign(value, read_value=False)
        if isinstance(written, tf.Operation):  # in a graph
            self.allow(written)

    def note(self, variables: Sequence[Any], values: Sequence[Any]) -> Any:
        """Notes what the server sent; gives, in a graph, something to wait for.

        Variables that no optimizer of the job trains are left out.
        """
        if self._digest is None:
            return None
        keys, held = [], []
        for variable, value in zip(variables, values, strict=True):
            key = _key_of_all(variable)
            if self._digest.knows(key):
                keys.append(key)
                held.append(tf.cast(value, variable_of(variable).dtype.base_dtype))
        return self._digest.note(keys, held) if keys else None

    def compare(self, variables: Sequence[Any]) -> Any:
        """Compares variables with what was noted of them; gives what there is to wait for."""
        if self._digest is None:
            return None
        keys = [_key_of_all(v) for v in variables]
        return self._digest.compare(keys, [variable_of(v) for v in variables])

    def train(self, variables: Sequence[Any]) -> None:
        """Is told of variables that an optimizer of the job trains."""
        if self._digest is not None:
            for variable in variables:
                self._digest.add(_key_of_all(variable), name_of(variable))

    def forget(self) -> None:
        """Is told that somebody who may is about to write in another way."""
        if self._digest is not None:
            self._digest.forget()

    def allow(self, operation: tf.Operation) -> None:
        """Lets an operation write, of a graph that is not finished."""
        name, value = self._allowed
        operation._set_attr(name, attr_value_pb2.AttrValue(s=value))

    @contextlib.contextmanager
    def making_a_variable(self) -> Iterator[None]:
        """Lets TensorFlow build the branch that gives a variable its initial value."""
        self._thread.makes = True
        try:
            yield
        finally:
            self._thread.makes = False

    def check(self, graph: tf.Graph, wanted: Iterable[tf.Operation]) -> None:
        """Looks at what a session is about to run of a graph of v1.

        Raises:
          LockError: it would write a locked variable.
        """
        if not self._scans:
            return
        names = [operation.name for operation in wanted]
        with deprecation.silence():
            graph_def = graph_util.extract_sub_graph(graph.as_graph_def(), names)
        self._refuse(graph, graph_def, {})

    def _look(self, graph: FuncGraph) -> None:
        if getattr(self._thread, "makes", False):
            for operation in graph.get_operations():
                if operation.type == "AssignVariableOp":
                    self.allow(operation)
        self._traced.add(graph)
        if self._patched:
            self._patch(graph)
        if self._names:
            self._check(graph)

    def _look_and_wrap(self, function: Any, graph: FuncGraph, *args: Any, **kwargs: Any) -> None:
        """Looks at what ``tf.compat.v1.wrap_function`` makes, which is not told of."""
        self._look(graph)
        self._wrap(function, graph, *args, **kwargs)

    def _patch(self, graph: FuncGraph) -> None:
        """Turns the writes of a graph to copies, as far as they name the variable itself."""
        for operation, at, key in list(writes_of(graph, self._key_of_handle)):
            if self._is_allowed(operation):
                continue
            operation._update_input(at, self._copies.handle_in(graph, key, self._patched[key]))
            say(
                f"{self._who}: {operation.type} {operation.name!r}{_made_at(operation)} writes a "
                f"copy of {self._names[key]}, which only the server writes"
            )

    def _key_of_handle(self, tensor: Any) -> Key | None:
        """Returns which variable, of those to patch, a handle is of."""
        if tensor.dtype != tf.resource:
            return None
        if hasattr(tensor, "numpy"):
            key = _resource_of(tensor)
        elif tensor.op.type in effects.SOURCES:
            key = _key_of_maker(tensor.op)
        else:
            return None
        return key if key in self._patched else None

    def _is_allowed(self, operation: tf.Operation) -> bool:
        name, value = self._allowed
        return operation.node_def.attr[name].s == value

    def _check(self, graph: FuncGraph) -> None:
        self._refuse(graph, graph.as_graph_def(), self._handles(graph))

    def _refuse(self, graph: tf.Graph, graph_def: Any, handles: dict[str, str]) -> None:
        scan = Scan(graph_def, aliases=self._names, allowed=self._allowed).run(handles)
        writes = scan.writes or [w for w in map(self._by_python, scan.python) if w is not None]
        if writes:
            raise LockError(self._words(graph, writes[0], len(writes) - 1))

    def _by_python(self, call: PythonCall) -> Write | None:
        """Returns what a call of Python could write: what it can reach."""
        function = script_ops._py_funcs.get(call.token)
        if function is None or _is_ours(function):
            return None
        variable = reachable(function, lambda each: _key_of(each) in self._names)
        if variable is None:
            return None
        named = self._names[_key_of(variable)]
        return Write((named,), call.op, call.node, call.function)

    def _handles(self, graph: FuncGraph) -> dict[str, str]:
        """Returns which locked variable each captured placeholder holds."""
        held = {}
        for outer, inner in graph.captures:
            if outer.dtype == tf.resource and hasattr(outer, "numpy"):
                name = self._names.get(_resource_of(outer))
                if name is not None:
                    held[inner.op.name] = name
        return held

    def _words(self, graph: tf.Graph, write: Write, others: int) -> str:
        named = ", ".join(write.variables[:_MOST_NAMED])
        more = f" (and {others} more)" if others else ""
        where = _line_of(graph, write)
        return (
            f"{self._who} would write {named}, which only the server writes: {write.op} "
            f"{write.node!r}{where}{more}. Let the server do it, where agt.is_server(), or write "
            "to a variable of your own."
        )


def variable_of(variable: Any) -> tf.Variable:
    """Returns the ``tf.Variable`` of a Keras variable."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def name_of(variable: Any) -> str:
    """Returns what a user knows a variable by: of Keras its path."""
    if isinstance(variable, keras.Variable):
        return variable.path
    return variable.name.removesuffix(":0")


def _parts_of(variable: tf.Variable | keras.Variable) -> Iterable[tf.Variable]:
    """Gives the variable of TensorFlow, or the replicas of one."""
    shared = variable_of(variable)
    return getattr(shared, "values", [shared])


def _is_eager(variable: Any) -> bool:
    return hasattr(variable, "handle") and hasattr(variable.handle, "numpy")


def _is_ours(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith("aggregathor.")


def _key_of(variable: Any) -> Key:
    """Returns the container and the name of a variable, by which graphs know it too."""
    if hasattr(variable, "handle"):
        if hasattr(variable.handle, "numpy"):
            return _resource_of(variable.handle)
        return _key_of_maker(variable.handle.op)
    return _key_of_maker(variable.op)  # a reference of v1


def _key_of_all(variable: Any) -> Key:
    """Returns the key of a variable, or of the first replica of one."""
    return _key_of(next(iter(_parts_of(variable))))


def _key_of_maker(maker: tf.Operation) -> Key:
    container, name = maker.get_attr("container"), maker.get_attr("shared_name")
    return container.decode(), name.decode() or maker.name


def _resource_of(handle: Any) -> Key:
    """Returns the container and the name of a resource, the same for all its handles."""
    found = _RESOURCE.search(repr(handle))
    return (found[2], found[1]) if found else ("", f"handle {id(handle)}")  # as nobody else


def _line_of(graph: tf.Graph, write: Write) -> str:
    """Returns where in the user's script a node was made, as far as that is known."""
    home = next((g for g in _graphs(graph) if g[0] == write.function), None)
    if home is None:
        return ""
    return _made_at(home[1].get_operation_by_name(write.node))


def _made_at(operation: tf.Operation) -> str:
    made = operation.traceback or []  # none of what was imported
    frames = [f for f in made if not f.filename.startswith(_NOT_THE_USERS)]
    return f" made at {_place(frames[-1])}" if frames else ""


def _place(frame: traceback.FrameSummary) -> str:
    return f"{frame.filename}:{frame.lineno}, in {frame.name}"


def _graphs(graph: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Gives a graph and those of the functions that it calls, with their names."""
    yield name, graph
    for function, atomic in getattr(graph, "_functions", {}).items():
        inner = getattr(atomic, "cached_graph", None) or getattr(atomic, "graph", None)
        if inner is not None:
            yield from _graphs(inner, function)
