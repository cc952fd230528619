"""Compositions as text, such as "bucketing(s=2)+multi-krum(m=5)": read and checked by name.

This needs no TensorFlow, so a typing error is found before any process of a job is started. What
the parameters may be is checked where the rules are: see ``gars.compose``.
"""

from __future__ import annotations

import ast
import functools
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from aggregathor import own
from aggregathor.conditions import Condition
from aggregathor.errors import Registry, UserError, near

_FOLDER = Path(__file__).parent / "gars"
_DECORATORS = {"gar": True, "pre_aggregation": False}  # whether it makes a rule
_LENT = ("f", "state", "context")  # what a function takes that is no parameter of its users


class Known(NamedTuple):
    """What a text is checked against: a rule or a pre-aggregation.

    Attributes:
      is_rule: whether it is a rule, which comes last.
      parameters: names of what it takes beside f.
      condition: under which a rule keeps its promise.
      rows_text: how many rows a pre-aggregation makes, such as "ceil({n}/{s})".
      defaults: of the parameters, where they are known here.
    """

    is_rule: bool
    parameters: Collection[str]
    condition: Condition = Condition(0, 1)
    rows_text: str = "{n}"
    defaults: Mapping[str, Any] = {}


class Part(NamedTuple):
    """A name of a composition with the parameters in its brackets."""

    name: str
    parameters: dict[str, Any]

    def __str__(self) -> str:
        given = ", ".join(f"{each}={value!r}" for each, value in self.parameters.items())
        return f"{self.name}({given})" if given else self.name


_declared: dict[str, Known] = {}  # by the decorators, which may be a script's


def declare(name: str, known: Known) -> None:
    """Makes a rule or a pre-aggregation known, which was registered in this process."""
    _declared[name] = known


def declare_as(name: str, other: str) -> None:
    """Makes what is known by another name known by this one too."""
    _declared[name] = _declared[other]


def check(text: str, parameters: Mapping[str, Any]) -> None:
    """Raises what ``gars.compose`` raises for names, wherever TensorFlow is not loaded.

    Raises:
      UserError: see ``read``.
    """
    read(text, parameters, _all_known(text))


def check_workers(text: str, parameters: Mapping[str, Any], n: int, f: int) -> None:
    """Raises ``UserError`` where n gradients are too few for f, as far as that is known here.

    What only a rule's own check knows is found when the rule is made.
    """
    known = _all_known(text)
    *before, last = read(text, parameters, known)
    if last.parameters.get("unsafe"):
        return
    rows, made_by = n, ""
    for part in [*before, last]:
        its = known[part.name]
        if rows < its.condition.least_n(f):
            refusal = its.condition.refusal(part.name, rows, f)
            if rows != n:
                refusal = f"{made_by} makes {rows} rows of {n} gradients, and {refusal}"
                refusal = refusal.rpartition(". Start")[0] + ". Start more, or declare a smaller f."
            raise UserError(refusal)
        made = _rows(its.rows_text.format(n=rows, **{**its.defaults, **part.parameters}))
        if made is None:
            return
        rows, made_by = made, part.name


def own_names(text: str) -> list[str]:
    """Returns the names of a composition that are functions of modules: "module:function"."""
    if not isinstance(text, str) or not own.is_own(text):
        return []
    return [name for name in (_part(word).name for word in _split(text)) if own.is_own(name)]


def _all_known(text: str) -> dict[str, Known]:
    """Returns what is known without TensorFlow, the functions among it that a text names."""
    known = {**_built_in(), **_declared}
    return {**{name: _own(name) for name in own_names(text) if name not in known}, **known}


class _Any(Collection[str]):
    """Parameters that are not known here: all names are accepted."""

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _own(name: str) -> Known:
    """Returns what the source of a module says of a rule in it."""
    found = own.look_up(name, "rule")
    if not isinstance(found, ast.FunctionDef):
        return Known(True, _Any())
    for decorator in found.decorator_list:
        called = getattr(decorator, "func", None)
        word = getattr(called, "attr", getattr(called, "id", ""))
        if word in _DECORATORS and isinstance(decorator, ast.Call):
            return _known(_DECORATORS[word], found, decorator)
    taken = found.args
    if found.decorator_list or taken.kwarg:
        return Known(True, _Any())
    names = [each.arg for each in (*taken.args[1:], *taken.kwonlyargs)]
    return Known(True, tuple(each for each in names if each not in _LENT), Condition(2, 1))


def _rows(text: str) -> int | None:
    """Returns the value of such as "9" or "ceil(9/2)"; None for other texts."""
    found = re.fullmatch(r"(?:ceil\()?(\d+)(?:/(\d+)\))?", text)
    if not found or found[2] == "0":
        return None
    return math.ceil(int(found[1]) / int(found[2] or 1))


def read(text: str, more: Mapping[str, Any], known: Mapping[str, Known]) -> list[Part]:
    """Reads names joined by "+", each with its parameters in brackets where it has any.

    Args:
      text: the last name is that of a rule, those before it are of pre-aggregations.
      more: more parameters of the rule; ``unsafe`` may be among them.
      known: all rules and pre-aggregations by name.

    Raises:
      UserError: it cannot be read, a name is unknown or in the wrong place, or a parameter is
        unknown or given twice.
    """
    if not isinstance(text, str):
        raise UserError(f"a rule is named by a text such as 'nnm+median', got {text!r}")
    words = _split(text)
    if not all(word.strip() for word in words):
        raise UserError(f"{text!r} has an empty name: a rule's name, or names joined by '+'")
    *before, last = parts = [_part(word) for word in words]
    for part in before:
        if _named(part.name, known, is_alone=False).is_rule:
            raise UserError(
                f"{text!r}: {part.name} is a rule, and a rule comes last: what it gives is a "
                "single row"
            )
        check_names(part.name, part.parameters, known[part.name].parameters)
    if not _named(last.name, known, is_alone=not before).is_rule:
        raise UserError(
            f"{text!r}: {last.name} is a pre-aggregation, after which a rule comes: "
            f"{last.name}+median"
        )
    for name, value in more.items():
        if name in last.parameters and last.parameters[name] != value:
            raise UserError(
                f"{text!r} has {name}={last.parameters[name]!r}, and {name}={value!r} is given "
                "beside it: leave one of them out"
            )
    own = {**last.parameters, **more}
    _check_last(parts, own, known)
    return [*before, Part(last.name, own)]


def check_names(
    name: str, given: Iterable[str], known: Collection[str], none: str = "it has none."
) -> None:
    """Raises ``UserError`` for a parameter that is unknown."""
    for each in given:
        if each not in known:
            hint = near(str(each), known) if known else none
            raise UserError(f"{name} has no parameter {each!r}: {hint}")


def _check_last(parts: list[Part], own: Mapping[str, Any], known: Mapping[str, Known]) -> None:
    *before, (name, _) = parts
    if "f" in own:
        raise UserError(f"f is no parameter of {name} among others: it has a place of its own, --f")
    taken = (*known[name].parameters, "unsafe")
    for each in own:
        for part in before:
            if each not in taken and each in known[part.name].parameters:
                meant = [
                    p._replace(parameters={each: own[each]}) if p is part else p for p in parts
                ]
                raise UserError(
                    f"{each} is a parameter of {part.name}, not of {name}: give it in brackets, "
                    f"as in {'+'.join(map(str, meant))!r}"
                )
    check_names(
        name,
        (each for each in own if each != "unsafe"),
        known[name].parameters,
        "it has none but f.",
    )


def _named(name: str, known: Mapping[str, Known], *, is_alone: bool) -> Known:
    """Returns a rule or a pre-aggregation; the hint for a single name is about rules."""
    if name in known:
        return known[name]
    if is_alone:
        rules = {each: kind for each, kind in known.items() if kind.is_rule}
        return Registry("gradient aggregation rule", rules)[name]  # raises
    return Registry("rule or pre-aggregation", known)[name]  # raises


def _split(text: str) -> list[str]:
    """Splits at every "+" that is in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "+" and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _part(word: str) -> Part:
    name, bracket, rest = word.strip().partition("(")
    if not bracket:
        return Part(name, {})
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or None in [k.arg for k in call.keywords]:
            raise ValueError("only name=value may stand in it")
        parameters: dict[str, Any] = {}
        for each in call.keywords:
            if each.arg in parameters:
                raise ValueError(f"{each.arg} is given twice")
            parameters[str(each.arg)] = _value(each.value)
        return Part(name.strip(), parameters)
    except (SyntaxError, ValueError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise UserError(
            f"{word.strip()!r} cannot be read as NAME(parameter=value, ...): {reason}"
        ) from None


def _value(node: ast.expr) -> Any:
    """Returns a literal; a bare word is a string."""
    if isinstance(node, ast.Name):
        return node.id
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"{ast.unparse(node)} is neither a number nor a word") from None


@functools.cache
def _built_in() -> dict[str, Known]:
    """Returns this package's own, as their decorators in ``gars/`` say: importing those takes 3 s.

    A test compares it with what is registered.
    """
    found = {}
    for path in sorted(_FOLDER.glob("*.py")):
        for node in ast.parse(path.read_bytes()).body:
            for call in getattr(node, "decorator_list", ()):
                match call:
                    case ast.Call(func=ast.Name(id=kind), args=[ast.Constant(value=str(name))]):
                        if kind in _DECORATORS:
                            found[name] = _known(_DECORATORS[kind], node, call)
    return found


def _known(is_rule: bool, function: Any, decorator: ast.Call) -> Known:
    """Returns what a function and its decorator say of a rule or a pre-aggregation."""
    said = {
        each.arg: each.value.value
        for each in decorator.keywords
        if isinstance(each.value, ast.Constant)
    }
    taken = function.args
    defaults = {
        name.arg: default.value
        for name, default in zip(taken.kwonlyargs, taken.kw_defaults, strict=True)
        if isinstance(default, ast.Constant)
    }
    condition = Condition.parse(str(said["condition"]))
    rows_text = str(said.get("rows_text", "{n}"))
    return Known(is_rule, _taken(function), condition, rows_text, defaults)


def _taken(function: Any) -> tuple[str, ...]:
    names = (each.arg for each in function.args.kwonlyargs)
    return tuple(name for name in names if name not in _LENT)
