"""Compositions by name: "bucketing(s=2)+multi-krum(m=5)" is a rule with rows mixed before it."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from aggregathor.errors import Registry, UserError
from aggregathor.gars.base import (
    COMPUTED_IN,
    Aggregated,
    ConditionError,
    Gar,
    Values,
    as_stack,
    check_names,
    registered,
    registry,
)
from aggregathor.gars.context import Context, State
from aggregathor.gars.pre_aggregation import PreAggregation
from aggregathor.ops import has_arrays

_MOST_WORKERS = 10_000  # that a message advises to start
_ANY = Registry("rule or pre-aggregation", registered)


class _Stage(NamedTuple):
    pre: PreAggregation
    parameters: Mapping[str, Any]


@dataclass(frozen=True, eq=False, repr=False)
class Rule:
    """A rule with its parameters, and the pre-aggregations before it, as ``compose`` makes it.

    Attributes:
      name: the composition as text, in one form however it was written.
      gar: the last of it.
      parameters: of the last, beside f.
      unsafe: whether it is computed below its condition, where there is a formula.
    """

    name: str
    gar: Gar
    parameters: Mapping[str, Any]
    unsafe: bool
    _stages: Sequence[_Stage]

    def __repr__(self) -> str:
        return f"<rule {self.name}>"

    @property
    def robust(self) -> bool:
        """Whether f Byzantine rows leave the result near the honest ones."""
        return self.gar.robust

    @property
    def has_state(self) -> bool:
        """Whether the rule keeps something from round to round."""
        return self.gar.has_state

    @property
    def coordinate_wise(self) -> bool:
        """Whether a coordinate of the result depends on that of the rows alone."""
        return self.gar.coordinate_wise and not self._stages

    @property
    def condition(self) -> str:
        """The condition as text, such as "ceil(n/2) >= 2f + 3"."""
        n = "n"
        conditions = []
        for pre, parameters in self._stages:
            if pre.condition.a:
                conditions.append(str(pre.condition).replace("n", n, 1))
            n = pre.rows_text_of(n, **parameters)
        conditions.append(str(self.gar.condition).replace("n", n, 1))
        return " and ".join(dict.fromkeys(conditions))

    def check(self, *, n: int, f: int, unsafe: bool = False) -> None:
        """Raises what applying it to n gradients would raise, without any gradients.

        Raises:
          UserError: a parameter is unknown or out of range.
          ConditionError: n is too small for f.
        """
        rows = self._rows(n, f)
        try:
            self.gar.check(n=rows, f=f, unsafe=unsafe or self.unsafe, **self.parameters)
        except ConditionError as error:
            if rows == n:
                raise
            raise ConditionError(self._too_few(n, rows, f, unsafe, str(error))) from None
        except UserError as error:
            if rows == n:
                raise
            raise UserError(f"{self._makes(n, rows)}, and {error}") from None

    def largest_f(self, n: int) -> int | None:
        """The largest f that the rule can be applied with to n gradients; None where none is."""
        if not self.gar.condition.a:
            return 0 if self._holds(n, 0) else None
        largest = None
        for f in range(n):
            if not self._holds(n, f):
                break
            largest = f
        return largest

    def by_columns(self) -> bool:
        """Whether ``aggregate_columns`` can be used."""
        return not self._stages and self.gar.by_columns()

    def aggregate_columns(
        self, stack_nd: np.ndarray, ranges_k2: np.ndarray, grad_d: np.ndarray, *, f: int
    ) -> Aggregated:
        """Aggregates some columns of a stack: see ``Gar.aggregate_columns``."""
        return self.gar.aggregate_columns(stack_nd, ranges_k2, grad_d, f=f, **self.parameters)

    def init(self, n: int, d: int) -> State:
        """Returns the state before the first round: {} for a rule without any."""
        for pre, parameters in self._stages:
            n = pre.num_rows(n, **parameters)
        return self.gar.init(n, d, **self.parameters)

    def apply(
        self,
        stack_nd: Values,
        state: State,
        context: Context,
        *,
        f: int,
        unsafe: bool = False,
        usage: bool = True,
    ) -> tuple[Aggregated, State]:
        """Aggregates a round's gradients: see ``Gar.apply``.

        A gradient's usage is that of the rows it went into, by its weight in them: with W the
        weights [n', n] and u the usage of the n' rows it is min(1, n / n' W^T u).
        """
        if not self._stages:
            return self.gar.apply(
                stack_nd,
                *(state, context),
                **{"f": f, "unsafe": unsafe or self.unsafe, "usage": usage, **self.parameters},
            )
        self.check(n=int(np.shape(stack_nd)[0]), f=f, unsafe=unsafe)
        rows_nd, dtype = _wide(self.name, stack_nd)
        weight_mn: Any = None
        for pre, parameters in self._stages:
            rows_nd, weight = pre.function(rows_nd, f=f, context=context, **parameters)
            weight_mn = weight if weight_mn is None else weight @ weight_mn
        (grad_d, usage_m), state = self.gar.apply(
            rows_nd,
            *(state, context),
            **{"f": f, "unsafe": unsafe or self.unsafe, "usage": usage, **self.parameters},
        )
        usage_n = None if usage_m is None else _usage_of_gradients(weight_mn, usage_m)
        if isinstance(stack_nd, np.ndarray):
            usage_n = None if usage_n is None else np.asarray(usage_n)
            return Aggregated(np.asarray(grad_d).astype(dtype), usage_n), state
        return Aggregated(tf.cast(grad_d, dtype), usage_n), state

    def aggregate(
        self, stack_nd: Values, *, f: int, unsafe: bool = False, usage: bool = True
    ) -> Aggregated:
        """Aggregates one stack by itself: ``apply`` with the state of a first round."""
        if not isinstance(stack_nd, np.ndarray):
            stack_nd, _ = as_stack(self.name, stack_nd)
        state = self.init(*stack_nd.shape) if self.has_state and stack_nd.ndim == 2 else {}
        return self.apply(stack_nd, state, Context(), f=f, unsafe=unsafe, usage=usage)[0]

    def __call__(self, stack_nd: Any, *, f: int, unsafe: bool = False) -> tf.Tensor:
        """Aggregates [n, d] to a tensor [d], eagerly or in a ``tf.function``."""
        stack_nd, _ = as_stack(self.name, stack_nd)
        return self.aggregate(stack_nd, f=f, unsafe=unsafe, usage=False).grad_d

    def _rows(self, n: int, f: int) -> int:
        """Returns how many rows the rule receives of n gradients; raises where one stage would."""
        for pre, parameters in self._stages:
            pre.check(n=n, f=f, **parameters)
            n = pre.num_rows(n, **parameters)
        return n

    def _holds(self, n: int, f: int) -> bool:
        try:
            self.gar.check(n=self._rows(n, f), f=f, **self.parameters)
        except UserError:  # too few, or a parameter that is too large for so few
            return False
        return True

    def _too_few(self, n: int, rows: int, f: int, unsafe: bool, reason: str) -> str:
        reason = reason.partition(". ")[0]
        enough = next((more for more in range(n, _MOST_WORKERS) if self._holds(more, f)), None)
        remedy = "Declare a smaller f"
        if enough is not None and not unsafe:
            remedy = f"Start {enough - n} more worker{'s' if enough - n > 1 else ''}"
            largest = self.largest_f(n)
            remedy += "" if largest is None else f" or declare f={largest}"
        return f"{self._makes(n, rows)}, and {reason}. {remedy}."

    def _makes(self, n: int, rows: int) -> str:
        what = "row" if rows == 1 else "rows"
        return f"{self._stages[-1].pre.name} makes {rows} {what} of {n} gradients"


def compose(text: str, parameters: Mapping[str, Any] | None = None) -> Rule:
    """Reads a rule's name, or a composition such as "nnm+median" or "bucketing(s=2)+krum".

    Args:
      text: names joined by "+", each with its parameters in brackets where it has any. The last one
        is a rule, those before it are pre-aggregations.
      parameters: more of the last one's; ``unsafe`` may be among them.

    Raises:
      UserError: it cannot be read, a name is unknown or in the wrong place, or a parameter is
        unknown or given twice.
    """
    parts = _parts(text)
    if not all(part.strip() for part in parts):
        raise UserError(f"{text!r} has an empty name: a rule's name, or names joined by '+'")
    *before, (name, own) = map(_part, parts)
    stages = []
    for each, given in before:
        pre = _named(each, is_alone=False)
        if not isinstance(pre, PreAggregation):
            raise UserError(
                f"{text!r}: {each} is a rule, and a rule comes last: what it gives is a single row"
            )
        pre.check_parameters(**given)
        stages.append(_Stage(pre, given))
    gar = _named(name, is_alone=not before)
    if not isinstance(gar, Gar):
        raise UserError(
            f"{text!r}: {name} is a pre-aggregation, after which a rule comes: {name}+median"
        )
    for each, value in (parameters or {}).items():
        if each in own and own[each] != value:
            raise UserError(
                f"{text!r} has {each}={own[each]!r}, and {each}={value!r} is given beside it: "
                "leave one of them out"
            )
        own[each] = value
    unsafe = own.pop("unsafe", False)
    if "f" in own:
        raise UserError(f"f is no parameter of {name} among others: it has a place of its own, --f")
    check_names(name, own, gar.parameters, "it has none but f.")
    name = "+".join([*(_text(pre.name, given) for pre, given in stages), _text(gar.name, own)])
    return Rule(name, gar, own, unsafe, stages)


def _named(name: str, *, is_alone: bool) -> Any:
    """Returns a rule or a pre-aggregation; the hint for a single name is about rules."""
    if name not in registered:
        (registry() if is_alone else _ANY)[name]  # raises
    return registered[name]


def _parts(text: str) -> list[str]:
    """Splits at every "+" that is in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "+" and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _part(part: str) -> tuple[str, dict[str, Any]]:
    name, bracket, rest = part.strip().partition("(")
    if not bracket:
        return name, {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or None in [k.arg for k in call.keywords]:
            raise ValueError("only name=value may stand in it")
        parameters: dict[str, Any] = {}
        for each in call.keywords:
            if each.arg in parameters:
                raise ValueError(f"{each.arg} is given twice")
            parameters[str(each.arg)] = _value(each.value)
        return name.strip(), parameters
    except (SyntaxError, ValueError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise UserError(
            f"{part.strip()!r} cannot be read as NAME(parameter=value, ...): {reason}"
        ) from None


def _value(node: ast.expr) -> Any:
    """Returns a literal; a bare word is a string."""
    if isinstance(node, ast.Name):
        return node.id
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"{ast.unparse(node)} is neither a number nor a word") from None


def _text(name: str, parameters: Mapping[str, Any]) -> str:
    given = ", ".join(f"{each}={value!r}" for each, value in parameters.items())
    return f"{name}({given})" if given else name


def _wide(name: str, stack_nd: Values) -> tuple[Values, Any]:
    """Returns the stack in the type that it is computed in, and its own."""
    if isinstance(stack_nd, np.ndarray) and stack_nd.dtype == np.float32 and has_arrays():
        return np.ascontiguousarray(stack_nd), stack_nd.dtype
    own = stack_nd.dtype
    tensor, _ = as_stack(name, stack_nd)
    return tf.cast(tensor, COMPUTED_IN[tensor.dtype]), own


def _usage_of_gradients(weight_mn: Values, usage_m: Values) -> Values:
    m, n = map(int, weight_mn.shape)
    if isinstance(weight_mn, np.ndarray) and isinstance(usage_m, np.ndarray):
        return np.minimum(1.0, n / m * (usage_m @ weight_mn))
    usage_n = tf.linalg.matvec(weight_mn, usage_m, transpose_a=True)
    return tf.minimum(tf.constant(1.0, tf.float64), n / m * usage_n)
