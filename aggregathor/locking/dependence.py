"""Which writes of a graph let a worker's variables drift from the server's.

Every rank runs the same script. A write that all ranks make alike, such as clipped weights, leaves
their variables equal; what a step writes before its round is replaced by what the round brings. The
others drift: what is written depends on this rank's own data or random numbers, and stays until the
next gradient is computed.

Values are data if they come from an argument, an iterator, a table, a file, Python or a random
number generator, or are computed from such a value, or in a branch or loop that such a value
decides. Variables, constants and what is computed from them are not: the script made them, on all
ranks alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from aggregathor.internals.tensorflow import op_definition
from aggregathor.locking import effects
from aggregathor.locking.scan import Body, Port, Scan, Write

_RESOURCE = tf.resource.as_datatype_enum
_PLACEHOLDERS = frozenset({"Placeholder", "PlaceholderV2", "PlaceholderWithDefault"})
# TensorFlow calls them stateful; what they return is made of their operands, or the server's.
_OF_OPERANDS = ("TensorArray", "Stack", "Assert", "Print", "Aggregathor")


class Drift:
    """The graph of a scan, and which of its values are data."""

    def __init__(self, scan: Scan, captured: Iterable[str] = ()) -> None:
        """Looks where data go.

        Args:
          scan: of the graph; it has run.
          captured: the names of placeholders that are no arguments.
        Cost: O(nodes), and O(nodes) of a function again for each of its arguments.
        """
        self._scan = scan
        self._data: set[tuple[str, Port]] = set()  # function, node and output
        self._decided: set[str] = set()  # functions that data decide to run, or not
        self._calls: dict[str, set[tuple[str, str]]] = defaultdict(set)  # and where they are called
        self._waiting: list[tuple[str, str]] = []  # nodes whose operands have become data
        captured = frozenset(captured)
        for body in scan.bodies():
            for node in body.nodes.values():
                for name in scan.functions_of(node):
                    self._calls[name].add((body.function, node.name))
                if _is_source(node) and not (not body.function and node.name in captured):
                    self._mark_all(body, node)
        for name, places in self._calls.items():
            if any(_calls_somehow(scan.body(f).nodes[n], scan) for f, n in places):
                self._mark_arguments(name)
        while self._waiting:
            function, name = self._waiting.pop()
            body = scan.body(function)
            self._follow(body, body.nodes[name])

    def of(self, write: Write) -> bool:
        """Whether a write of the scan makes variables differ from the server's."""
        body = self._scan.body(write.function)
        operands = self._operands(body, body.nodes[write.node])
        if not any(operands) and write.function not in self._decided:
            return False
        return not self._is_replaced(write.function, write.node, {*write.variables}, set())

    def _follow(self, body: Body, node: Any) -> None:
        """Marks what becomes data because operands of a node, or results of what it calls, are."""
        operands = self._operands(body, node)
        functions = self._scan.functions_of(node)
        if node.op in effects.READS:
            if any(operands[1:]):  # such as the indices of what is read
                self._mark_all(body, node)
        elif not functions or _calls_somehow(node, self._scan):
            if any(operands):
                self._mark_all(body, node)
        elif node.op in effects.LOOPS:
            for name in functions:
                results = self._call(name, operands)
                if len(results) == len(operands):  # of the body; a condition gives a truth value
                    self._mark(body, node, results)
                    self._call(name, results)
                elif any(results):
                    self._decide(functions)
                    self._mark_all(body, node)
            self._mark(body, node, operands)
        else:
            selects = node.op in effects.CALLS_AFTER_FIRST
            if selects and operands[0]:
                self._decide(functions)
                self._mark_all(body, node)
            for name in functions:
                self._mark(body, node, self._call(name, operands[1:] if selects else operands))

    def _call(self, name: str, operands: list[bool]) -> list[bool]:
        """Hands data to a function; returns which of its results are known to be data."""
        arguments, results = self._scan.ends_of(name)
        for argument, is_data in zip(arguments, operands, strict=False):
            if is_data:
                self._mark_port(self._scan.body(name), (argument, 0))
        return [(name, port) in self._data for port in results]

    def _decide(self, functions: Iterable[str]) -> None:
        for name in functions:
            if name not in self._decided:
                self._decided.add(name)
                for node in self._scan.body(name).nodes.values():
                    self._decide(self._scan.functions_of(node))

    def _operands(self, body: Body, node: Any) -> list[bool]:
        ports = body.operands(node, self._scan.outputs)
        return [(body.function, port) in self._data for port in ports]

    def _mark_arguments(self, name: str) -> None:
        """Marks the arguments of a function that an op calls with elements of its own."""
        for argument in self._scan.arguments_of(name):
            if argument.type != _RESOURCE:
                self._mark_port(self._scan.body(name), (argument.name, 0))

    def _mark_all(self, body: Body, node: Any) -> None:
        self._mark(body, node, [True] * len(self._scan.types(node)))

    def _mark(self, body: Body, node: Any, are_data: Iterable[bool]) -> None:
        for at, is_data in enumerate(are_data):
            if is_data:
                self._mark_port(body, (node.name, at))

    def _mark_port(self, body: Body, port: Port) -> None:
        if (body.function, port) in self._data:
            return
        self._data.add((body.function, port))
        self._waiting += [(body.function, reader) for reader in body.readers[port[0]]]
        if body.function and port in self._scan.ends_of(body.function)[1]:
            self._waiting += self._calls[body.function]

    def _is_replaced(self, function: str, node: str, variables: set[str], seen: set[str]) -> bool:
        """Whether a round replaces variables after a node, wherever its function is called."""
        later = False
        for each in self._scan.body(function).nodes.values():
            if later:
                variables = variables - self._replaced_by(function, each)
            later = later or each.name == node
        if not variables:
            return True
        if function in seen:  # it recurs
            return False
        return bool(self._calls[function]) and all(
            self._is_replaced(caller, call, variables, {*seen, function})
            for caller, call in self._calls[function]
        )

    def _replaced_by(self, function: str, node: Any) -> set[str]:
        """Returns the variables that a node replaces, whenever it runs, by what a round brings."""
        found = set(self._scan.rounds.get((function, node.name), ()))
        if node.op in effects.CALLS_WITH_ALL or self._scan.is_function(node.op):
            for name in self._scan.functions_of(node):
                for each in self._scan.body(name).nodes.values():
                    found |= self._replaced_by(name, each)
        return found


def _is_source(node: Any) -> bool:
    """Whether a node makes data of its own."""
    op = node.op
    if op in _PLACEHOLDERS or op in effects.PYTHON:
        return True
    if op in effects.HARMLESS or op.startswith(_OF_OPERANDS):
        return False
    definition = op_definition(op)
    is_random = op.startswith("Stateless")  # with a seed, which is each rank's own
    return is_random or (definition is not None and definition.is_stateful)


def _calls_somehow(node: Any, scan: Scan) -> bool:
    """Whether a node calls functions with operands that are not its own, as a dataset does."""
    known = effects.CALLS_WITH_ALL | effects.CALLS_AFTER_FIRST | effects.LOOPS
    return node.op not in known and not scan.is_function(node.op)


__all__ = ["Drift"]
