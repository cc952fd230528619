"""Finds every way in which a graph could write a locked variable, by following its handles.

A handle is a tensor that refers to a variable: a resource, a reference of v1, or a variant that
holds one. A value that was read from a variable is not a handle. Handles are followed through the
graph and the functions that it calls. Cost: O(nodes), and of a function once for each set of
handles that it is called with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from aggregathor.internals.tensorflow import op_definition
from aggregathor.locking import effects

# Data types, as a ``GraphDef`` numbers them; 0 is none.
_INVALID, _RESOURCE, _VARIANT = 0, tf.resource.as_datatype_enum, tf.variant.as_datatype_enum
_HOLDS = (_RESOURCE, _VARIANT)
_NOTHING: frozenset[str] = frozenset()
Port = tuple[str, int]  # of a node: its name, and which of its outputs
_Held = dict[Port, frozenset[str]]


class Write(NamedTuple):
    """A node that could write locked variables."""

    variables: tuple[str, ...]
    op: str
    node: str
    function: str  # of the library, "" for the graph itself


class PythonCall(NamedTuple):
    """A node that runs a function of Python, which TensorFlow identifies by a token."""

    token: str
    op: str
    node: str
    function: str  # of the library, "" for the graph itself


class Scan:
    """A graph and its function library.

    Attributes:
      writes: the nodes that `run` has found.
      python: calls of Python, which may write all that it can reach.
      rounds: the variables that nodes write which may, by function and node.
    """

    def __init__(
        self,
        graph_def: Any,
        *,
        aliases: Mapping[tuple[str, str], str],
        allowed: tuple[str, bytes],
    ) -> None:
        """Takes the graph.

        Args:
          graph_def: a ``GraphDef``.
          aliases: locked variables by container and shared name, for ops that refer to them so.
          allowed: an attribute and its value: nodes that have it may write.
        """
        self.writes: list[Write] = []
        self.python: list[PythonCall] = []
        self.rounds: dict[tuple[str, str], frozenset[str]] = {}
        self._graph = Body("", graph_def.node)
        self._functions = {each.signature.name: each for each in graph_def.library.function}
        self._bodies: dict[str, Body] = {}
        self._called: dict[tuple[str, tuple[frozenset[str], ...]], list[frozenset[str]]] = {}
        self._ends: dict[str, tuple[list[str], list[Port]]] = {}
        self._aliases = aliases
        self._allowed = allowed

    def run(self, handles: Mapping[str, str]) -> Scan:
        """Follows handles, given as placeholder's name -> locked variable's name."""
        self._follow(self._graph, {(name, 0): frozenset([v]) for name, v in handles.items()})
        for name in self._functions:  # also where no handle comes in
            self._call(name, [])
        self.writes.sort(key=lambda write: self._place(write.function, write.node))
        return self

    def bodies(self) -> list[Body]:
        """Returns the graph, and its functions."""
        return [self._graph, *self._bodies.values()]

    def body(self, function: str) -> Body:
        """Returns a function of the library; of "" the graph."""
        return self._bodies[function] if function else self._graph

    def is_function(self, op: str) -> bool:
        """Whether an op is a call of a function of the library."""
        return op in self._functions

    def arguments_of(self, function: str) -> Sequence[Any]:
        """Returns the arguments of a function, as an ``OpDef`` has them."""
        return self._functions[function].signature.input_arg

    def ends_of(self, function: str) -> tuple[list[str], list[Port]]:
        """Returns the names of a function's arguments, and the ports of its results."""
        if function not in self._ends:
            of = self._functions[function]
            body = self._bodies[function]
            results = [of.ret[each.name] for each in of.signature.output_arg]
            self._ends[function] = (
                [each.name for each in of.signature.input_arg],
                [body.port(result, self.outputs) for result in results],
            )
        return self._ends[function]

    def _place(self, function: str, node: str) -> tuple[str, int]:
        """Returns a key that sorts nodes in the order they were made, the graph's own first."""
        return function, list(self.body(function).nodes).index(node)

    def _follow(self, body: Body, held: _Held) -> _Held:
        """Returns which ports of a body refer to which variables, given those that are known."""
        waiting = {reader for port in held for reader in body.readers[port[0]]}
        for node in body.interesting:
            if node.op in effects.SOURCES:
                container, name = node.attr["container"].s, node.attr["shared_name"].s
                key = (container.decode(), name.decode() or node.name)
                if key in self._aliases:
                    held[node.name, 0] = frozenset([self._aliases[key]])
                    waiting.update(body.readers[node.name])
            elif node.op in effects.PYTHON:
                token = node.attr["token"].s.decode()
                call = PythonCall(token, node.op, node.name, body.function)
                if call not in self.python and not self._is_allowed(node):
                    self.python.append(call)
        while waiting:
            name = waiting.pop()
            node = body.nodes[name]
            operands = [held.get(port, _NOTHING) for port in body.operands(node, self.outputs)]
            if any(operands):
                for at, now in enumerate(self._step(body, node, operands)):
                    before = held.get((name, at), _NOTHING)
                    if now - before:
                        held[name, at] = before | now
                        waiting.update(body.readers[name])
        return held

    def _step(
        self, body: Body, node: Any, operands: list[frozenset[str]]
    ) -> Sequence[frozenset[str]]:
        """Returns what the outputs of a node refer to; records the node if it could write."""
        op = node.op
        types = self.types(node)
        operands = self._without_values(body, node, operands)
        union = frozenset().union(*operands)
        if not union or op in effects.READS:
            return ()
        if self._is_allowed(node):
            self.rounds[body.function, node.name] = union
            return ()
        if op in effects.PASSES:
            pairs = op == "IdentityN"
            return [
                (operands[at] if pairs else union) if _may_hold(kind) else _NOTHING
                for at, kind in enumerate(types)
            ]
        functions = self.functions_of(node)
        if not functions and not effects.is_dataset(op):
            write = Write(tuple(sorted(union)), op, node.name, body.function)
            if write not in self.writes:
                self.writes.append(write)
            return ()
        if op in effects.LOOPS:
            return self._loop(functions, operands)
        if op in self._functions or op in effects.CALLS_WITH_ALL:
            given = operands
        elif op in effects.CALLS_AFTER_FIRST:
            given = operands[1:]
        else:
            return self._call_somehow(functions, union, types, body, node, operands)
        results = [self._call(name, given) for name in functions]
        return [frozenset().union(*each) for each in zip(*results, strict=True)]

    def _loop(
        self, functions: Iterable[str], operands: list[frozenset[str]]
    ) -> list[frozenset[str]]:
        while True:
            before = operands
            for name in functions:
                results = self._call(name, operands)
                if len(results) == len(operands):  # of the body; a condition gives a truth value
                    operands = [o | r for o, r in zip(operands, results, strict=True)]
            if operands == before:
                return operands

    def _call_somehow(
        self,
        functions: Sequence[str],
        union: frozenset[str],
        types: Sequence[_Type],
        body: Body,
        node: Any,
        operands: Sequence[frozenset[str]],
    ) -> list[frozenset[str]]:
        """A dataset, or another op that calls functions: any operand may be any argument."""
        given = _NOTHING
        for name in functions:
            signature = self._functions[name].signature
            held = [
                union if _may_hold(_Type(each.type, each.is_ref)) else _NOTHING
                for each in signature.input_arg
            ]
            given = given.union(*self._call(name, held))
        if not functions:
            given = union
        else:  # captures of the functions stay inside; what an input dataset emits passes on
            ports = body.operands(node, self.outputs)
            for port, held_by in zip(ports, operands, strict=True):
                if body.type_of(port, self.types).dtype == _VARIANT:
                    given |= held_by
        return [given if _may_hold(kind) else _NOTHING for kind in types]

    def _call(self, name: str, given: Sequence[frozenset[str]]) -> list[frozenset[str]]:
        """Follows handles through a function; returns what its results refer to."""
        function = self._functions[name]
        arguments = [each.name for each in function.signature.input_arg]
        given = (*given[: len(arguments)], *[_NOTHING] * (len(arguments) - len(given)))
        key = (name, given)
        if key not in self._called:
            self._called[key] = [_NOTHING] * len(function.signature.output_arg)  # if it recurs
            if name not in self._bodies:
                self._bodies[name] = Body(name, function.node_def, arguments)
            body = self._bodies[name]
            held = {(a, 0): v for a, v in zip(arguments, given, strict=True) if v}
            held = self._follow(body, held)
            self._called[key] = [
                held.get(body.port(function.ret[each.name], self.outputs), _NOTHING)
                for each in function.signature.output_arg
            ]
        return self._called[key]

    def _without_values(
        self, body: Body, node: Any, operands: list[frozenset[str]]
    ) -> list[frozenset[str]]:
        """Drops references of v1 whose value the op takes, as it asks for no reference."""
        if not any(body.type_of(p, self.types).is_ref for p in body.operands(node, self.outputs)):
            return operands
        wants_ref = _wants_ref(node)
        return [
            _NOTHING if body.type_of(port, self.types).is_ref and not wants else held
            for port, held, wants in zip(
                body.operands(node, self.outputs), operands, wants_ref, strict=True
            )
        ]

    def _is_allowed(self, node: Any) -> bool:
        name, value = self._allowed
        return name in node.attr and node.attr[name].s == value

    def functions_of(self, node: Any) -> list[str]:
        """Returns the functions of the library that a node calls."""
        found = [node.op] if node.op in self._functions else []
        for value in node.attr.values():
            found += [f.name for f in (value.func, *value.list.func) if f.name in self._functions]
        return found

    def outputs(self, node: Any) -> list[tuple[str, list[_Type]]]:
        """Returns a node's output arguments, each with the types of its tensors."""
        if node.op in self._functions:
            signature = self._functions[node.op].signature
        else:
            signature = op_definition(node.op)
            if signature is None:
                return []
        return [(each.name, _types_of(each, node)) for each in signature.output_arg]

    def types(self, node: Any) -> list[_Type]:
        """Returns the types of a node's outputs."""
        return [kind for _, kinds in self.outputs(node) for kind in kinds]


class _Type(NamedTuple):
    dtype: int
    is_ref: bool


class Body:
    """The nodes of a graph or of a function, and which node reads which.

    Attributes:
      function: its name, "" for the graph itself.
      nodes: by name, in the order they were made.
      readers: of each node, or argument, the names of the nodes that read it.
      interesting: the nodes that make variables, or run Python.
    """

    def __init__(self, function: str, nodes: Iterable[Any], arguments: Iterable[str] = ()) -> None:
        """Takes the nodes and the names of the function's arguments."""
        self.function = function
        self.nodes = {node.name: node for node in nodes}
        self.readers: dict[str, list[str]] = defaultdict(list)
        self.interesting = []
        self._arguments = frozenset(arguments)
        self._operands: dict[str, list[Port]] = {}
        for node in self.nodes.values():
            if node.op in effects.SOURCES or node.op in effects.PYTHON:
                self.interesting.append(node)
            for text in node.input:
                if not text.startswith("^"):
                    self.readers[text.partition(":")[0]].append(node.name)

    def operands(self, node: Any, outputs: Any) -> list[Port]:
        """Returns the ports that a node reads."""
        if node.name not in self._operands:
            self._operands[node.name] = [
                self.port(text, outputs) for text in node.input if not text.startswith("^")
            ]
        return self._operands[node.name]

    def port(self, text: str, outputs: Any) -> Port:
        """Parses ``node``, ``node:1`` of a graph, or ``node:output:1`` of a function."""
        name, *rest = text.split(":")
        if len(rest) < 2:
            return name, int(rest[0]) if rest else 0
        at = int(rest[1])
        for output, kinds in outputs(self.nodes[name]):
            if output == rest[0]:
                break
            at += len(kinds)
        return name, at

    def type_of(self, port: Port, types: Any) -> _Type:
        """Returns the type of a port; an argument of a function counts as a resource."""
        name, at = port
        if name in self._arguments or name not in self.nodes:
            return _Type(_RESOURCE, False)
        kinds = types(self.nodes[name])
        return kinds[at] if at < len(kinds) else _Type(_INVALID, False)


def _may_hold(kind: _Type) -> bool:
    return kind.is_ref or kind.dtype in _HOLDS


def _types_of(argument: Any, node: Any) -> list[_Type]:
    """Returns the types of the tensors that an argument of an op stands for."""
    if argument.type_list_attr:
        dtypes = list(node.attr[argument.type_list_attr].list.type)
    else:
        dtype = argument.type or node.attr[argument.type_attr].type
        dtypes = [dtype] * (node.attr[argument.number_attr].i if argument.number_attr else 1)
    return [_Type(dtype, argument.is_ref) for dtype in dtypes]


def _wants_ref(node: Any) -> list[bool]:
    """Returns for each operand whether the op asks for a reference."""
    operation = op_definition(node.op)
    operands = [text for text in node.input if not text.startswith("^")]
    if operation is None:
        return [True] * len(operands)  # unknown, so the stricter
    return [
        argument.is_ref
        for argument in operation.input_arg
        for _ in range(len(_types_of(argument, node)))
    ]
