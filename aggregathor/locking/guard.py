"""Checks every graph that a process traces, before it can run, for writes of locked variables."""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import traceback
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

import aggregathor
from aggregathor.errors import UserError
from aggregathor.internals.tensorflow import (
    FuncGraph,
    functions_called_by,
    python_function,
    replace_input,
    resource_of,
    set_attribute,
    subgraph,
    watch_traces,
)
from aggregathor.locking import effects
from aggregathor.locking.dependence import Drift
from aggregathor.locking.digest import Digest
from aggregathor.locking.kernels import KernelLock
from aggregathor.locking.patch import Copies, Key, writes_of
from aggregathor.locking.reachability import reach
from aggregathor.locking.scan import PythonCall, Scan, Write

_logger = logging.getLogger(__name__)
_MOST_NAMED = 3  # variables in an error
_NOT_THE_USERS = tuple(str(Path(str(each.__file__)).parent) for each in (tf, keras, aggregathor))

_REMEDY_STRICT = (
    "If all ranks make the same write, or the step undoes it before its gradient leaves, "
    "--lock=drift lets it; --lock=patch lets this rank write a copy of its own."
)
_REMEDY_DRIFT = (
    "It would write what depends on this rank's own data, and no round in the same function "
    "replaces that: the next gradient would be of other parameters than the server's. If that is "
    "undone elsewhere before the next gradient leaves, --lock=off lets it, or put both into one "
    "tf.function. If it trains the variable, let it take part: agt.DistributedOptimizer, agt.apply."
)


class LockError(UserError):
    """A graph would write a variable that only the server writes."""


class Guard:
    """Variables that this process may not write, the graphs that it traces, and its kernels.

    A ``tf.function``, each branch and loop body in it, and what a dataset calls are checked when
    they have been traced; a graph that was traced before a variable is locked is checked then.
    Strictly, nothing may write. Else a graph may, unless the variables would then differ from the
    server's: see ``dependence``. That shows in the outermost graph only, which is the one checked.

    Attributes:
      is_strict: the default of ``lock``.
    """

    def __init__(
        self, who: str, *, scans: bool = True, patches: bool = False, is_strict: bool = True
    ) -> None:
        """Starts checking graphs, if it scans.

        Args:
          who: who may not write, such as "rank 2".
          scans: whether graphs are checked.
          patches: the default of ``lock``.
          is_strict: whether nothing may write a variable, by default.
        """
        self.is_strict = is_strict
        self._who = who
        self._patches = patches
        self._kernels: KernelLock | None = None
        self._digest: Digest | None = None
        self._allowed = ("_aggregathor_writes", secrets.token_bytes(16))
        self._names: dict[Key, str] = {}  # of locked variables
        self._strict: set[str] = set()  # names of those that nothing may write
        self._patched: dict[
            Key, tf.Variable
        ] = {}  # the locked ones that have a copy to write instead
        self._copies = Copies()
        self._traced: weakref.WeakSet[FuncGraph] = weakref.WeakSet()
        self._thread = threading.local()  # `makes`: TensorFlow is making a variable on it
        self._stop_watching = watch_traces(self._look) if scans else None

    def lock_kernels(self) -> KernelLock:
        """Lets kernels refuse, too, to write variables that are locked from now on.

        Raises:
          NoKernelLock: they cannot; nothing has changed.
        """
        self._kernels = KernelLock(self._who, self._allowed)
        return self._kernels

    def digest(self, every: int) -> Digest:
        """Compares the server's values with the variables when the next gradient is made."""
        self._digest = Digest(self._who, every)
        return self._digest

    def describe(self) -> str:
        """Returns in a few words what is checked, and of how many graphs so far."""
        scans = "by the scan of all writes" if self.is_strict else "by the scan for drift"
        layers = [
            f"{scans} ({len(self._traced)} graphs so far)" if self._stop_watching else "",
            "by the kernels" if self._kernels is not None else "",
            "by the digest" if self._digest is not None else "",
        ]
        return " and ".join(filter(None, layers))

    def close(self, wait_s: float = 0.0) -> None:
        """Stops checking; waits for nothing."""
        if self._digest is not None:
            self._digest.close()
        if self._stop_watching is not None:
            self._stop_watching()
        if self._kernels is not None:
            self._kernels.close()

    def lock(
        self, variables: Iterable[tf.Variable | keras.Variable], *, patch: bool | None = None
    ) -> None:
        """Locks more variables, of TensorFlow or Keras.

        Args:
          variables: of TensorFlow or Keras.
          patch: whether graphs that are traced from now on write a copy of this process's own
            instead, where they name the variable itself; elsewhere, and if not, they are refused,
            strictly. By default as the guard was made.
        Raises:
          LockError: a graph that was traced before would write one.
        """
        for variable in variables:
            name = name_of(variable)
            if self.is_strict or patch is not None:
                self._strict.add(name)
            for each in parts_of(variable):
                self._names[_key_of(each)] = name
                if self._patches if patch is None else patch:
                    self._patched[_key_of(each)] = each
                if self._kernels is not None and _is_eager(each):
                    self._kernels.lock(each, name)
        for graph in list(self._traced):
            self.check_function(graph)

    def lock_ops(self, variables: Iterable[tf.Variable]) -> list[tf.Operation]:
        """Makes ops of v1 that lock variables in the session that runs them."""
        if self._kernels is None:
            return []
        made = [self._kernels.lock(each, name_of(each)) for each in variables]
        return [each for each in made if each is not None]

    def overwrite(self, variable: tf.Variable, value: Any) -> None:
        """Writes a locked variable, with what the server has published. Nothing else may."""
        with self._kernels.writing() if self._kernels else contextlib.nullcontext():
            written = variable.assign(value, read_value=False)
        if isinstance(written, tf.Operation):  # in a graph
            self.allow(written)

    def note(self, variables: Sequence[Any], values: Sequence[Any]) -> Any:
        """Records the digests of what the server sent; in a graph, returns an op to depend on.

        Variables that no optimizer of the job trains are skipped.
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
        """Compares variables with their digests; in a graph, returns an op to depend on."""
        if self._digest is None:
            return None
        keys = [_key_of_all(v) for v in variables]
        return self._digest.compare(keys, [variable_of(v) for v in variables])

    def train(self, variables: Sequence[Any]) -> None:
        """Adds variables that an optimizer of the job trains, for the digest."""
        if self._digest is not None:
            for variable in variables:
                self._digest.add(_key_of_all(variable), name_of(variable))

    def forget(self) -> None:
        """Forgets the digests: call this before somebody who may writes in another way."""
        if self._digest is not None:
            self._digest.forget()

    def allow(self, operation: tf.Operation) -> None:
        """Allows an operation of a graph that has not run yet to write."""
        name, value = self._allowed
        set_attribute(operation, name, value)

    @contextlib.contextmanager
    def making_a_variable(self) -> Iterator[None]:
        """A context in which TensorFlow may trace what initialises variables."""
        before = getattr(self._thread, "makes", False)
        self._thread.makes = True
        try:
            yield
        finally:
            self._thread.makes = before

    def check_function(self, graph: FuncGraph) -> None:
        """Checks the graph of a function that was traced.

        Raises:
          LockError: it could write a locked variable.
        """
        if _is_part(graph) and not self._strict:
            return
        self._refuse(graph, graph.as_graph_def(), self._handles(graph))

    def check(self, graph: tf.Graph, wanted: Iterable[tf.Operation]) -> None:
        """Checks what a session is about to run of a graph of v1.

        Raises:
          LockError: it would write a locked variable.
        """
        if self._stop_watching is None:
            return
        names = [operation.name for operation in wanted]
        self._refuse(graph, subgraph(graph, names), {})

    def _look(self, graph: FuncGraph) -> None:
        if getattr(self._thread, "makes", False):
            for operation in graph.get_operations():
                if operation.type == "AssignVariableOp":
                    self.allow(operation)
        self._traced.add(graph)
        if self._patched:
            self._patch(graph)
        if self._names:
            self.check_function(graph)

    def _patch(self, graph: FuncGraph) -> None:
        """Redirects the writes of a graph that name a variable itself to copies."""
        for operation, at, key in list(writes_of(graph, self._key_of_handle)):
            if self._is_allowed(operation):
                continue
            copy = self._copies.handle_in(graph, key, self._patched[key])
            replace_input(operation, at, copy)
            _logger.warning(
                "%s: %s %r%s writes a copy of %s, which only the server writes",
                self._who,
                operation.type,
                operation.name,
                _made_at(operation),
                self._names[key],
            )

    def _key_of_handle(self, tensor: Any) -> Key | None:
        """Returns which of the variables with a copy a handle refers to."""
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

    def _refuse(self, graph: tf.Graph, graph_def: Any, handles: dict[str, str]) -> None:
        scan = Scan(graph_def, aliases=self._names, allowed=self._allowed).run(handles)
        calls = [write for write in map(self._by_python, scan.python) if write is not None]
        refused = [w for w in [*scan.writes, *calls] if not self._strict.isdisjoint(w.variables)]
        remedy = _REMEDY_STRICT
        if not refused and not _is_part(graph):
            drift = Drift(scan, _captured(graph)) if scan.writes else None
            refused = [write for write in scan.writes if drift is not None and drift.of(write)]
            refused += calls
            remedy = _REMEDY_DRIFT
        if refused:
            raise LockError(self._words(graph, refused[0], len(refused) - 1, remedy))

    def _by_python(self, call: PythonCall) -> Write | None:
        """Returns what a call of Python could write, as it can reach it."""
        function = python_function(call.token)
        if function is None:
            return None
        found = reach(function, lambda each: _key_of_all(each) in self._names)
        if found is None or not (self.is_strict or found.may_write):
            return None
        named = self._names[_key_of_all(found.variable)]
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

    def _words(self, graph: tf.Graph, write: Write, others: int, remedy: str) -> str:
        named = ", ".join(write.variables[:_MOST_NAMED])
        more = f" (and {others} more)" if others else ""
        where = _line_of(graph, write)
        return (
            f"{self._who} would write {named}, which only the server writes: {write.op} "
            f"{write.node!r}{where}{more}. {remedy}"
        )


def variable_of(variable: Any) -> tf.Variable:
    """Returns the ``tf.Variable`` of a Keras variable."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def name_of(variable: Any) -> str:
    """Returns the name that a user knows a variable by; of a Keras variable its path."""
    if isinstance(variable, keras.Variable):
        return variable.path
    return variable.name.removesuffix(":0")


def parts_of(variable: Any) -> Iterable[tf.Variable]:
    """Returns the variable of TensorFlow that a variable is, or its replicas."""
    shared = variable_of(variable)
    return getattr(shared, "values", [shared])


def _is_eager(variable: Any) -> bool:
    return hasattr(variable, "handle") and hasattr(variable.handle, "numpy")


def _is_part(graph: Any) -> bool:
    """Whether a graph is made as a part of another, which will be checked with it."""
    return isinstance(getattr(graph, "outer_graph", None), FuncGraph)


def _captured(graph: Any) -> list[str]:
    """Returns the names of placeholders that hold what a function was made with."""
    return [inner.op.name for _, inner in getattr(graph, "captures", ())]


def _key_of(variable: Any) -> Key:
    """Returns the container and the name of a variable, by which graphs identify it too."""
    if hasattr(variable, "handle"):
        if hasattr(variable.handle, "numpy"):
            return _resource_of(variable.handle)
        return _key_of_maker(variable.handle.op)
    return _key_of_maker(variable.op)  # a reference of v1


def _key_of_all(variable: Any) -> Key:
    """Returns the key of a variable, or of the first replica of one."""
    return _key_of(next(iter(parts_of(variable))))


def _key_of_maker(maker: tf.Operation) -> Key:
    container, name = maker.get_attr("container"), maker.get_attr("shared_name")
    return container.decode(), name.decode() or maker.name


def _resource_of(handle: Any) -> Key:
    """Returns the container and the name of a resource, the same for all its handles."""
    return resource_of(handle) or ("", f"handle {id(handle)}")  # equal to no other


def _line_of(graph: tf.Graph, write: Write) -> str:
    """Returns where in the user's script a node was made; "" if that is unknown."""
    home = next((g for g in _graphs(graph) if g[0] == write.function), None)
    if home is None:
        return ""
    return _made_at(home[1].get_operation_by_name(write.node))


def _made_at(operation: tf.Operation) -> str:
    place = place_of(operation)
    return f" made at {place}" if place else ""


def place_of(operation: tf.Operation) -> str:
    """Returns where in the user's script an operation was made; "" if that is unknown."""
    made = operation.traceback or []  # an operation of an imported graph has none
    frames = [f for f in made if not f.filename.startswith(_NOT_THE_USERS)]
    return _place(frames[-1]) if frames else ""


def _place(frame: traceback.FrameSummary) -> str:
    return f"{frame.filename}:{frame.lineno}, in {frame.name}"


def _graphs(graph: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields a graph and those of the functions that it calls, with their names."""
    yield name, graph
    for function, inner in functions_called_by(graph):
        yield from _graphs(inner, function)
