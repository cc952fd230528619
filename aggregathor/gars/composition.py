"""Compositions by name: "bucketing(s=2)+multi-krum(m=5)" is a rule with rows mixed before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from aggregathor.compositions import Known, own_names, read
from aggregathor.conditions import Condition, remedy_of
from aggregathor.errors import UserError
from aggregathor.gars import own
from aggregathor.gars.base import (
    COMPUTED_IN,
    Aggregated,
    ConditionError,
    Gar,
    Values,
    alone,
    as_stack,
    registered,
)
from aggregathor.gars.context import Context, State
from aggregathor.gars.pre_aggregation import PreAggregation
from aggregathor.gars.stacks import plain
from aggregathor.ops import has_arrays

_MOST_WORKERS = 10_000  # that a message advises to start, or a parameter is tried with


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
    def needs_validation(self) -> bool:
        """Whether it judges gradients by a loss on data that only the server has."""
        return self.gar.needs_validation

    @property
    def coordinate_wise(self) -> bool:
        """Whether a coordinate of the result depends on that of the rows alone."""
        return self.gar.coordinate_wise and not self._stages

    @property
    def condition(self) -> str:
        """The condition as text, such as "ceil(n/2) >= 2f + 3"."""
        n = "n"
        needed: list[tuple[str, Condition]] = []  # of so many rows
        for pre, parameters in self._stages:
            if pre.condition.a:
                needed.append((n, pre.condition))
            n = pre.rows_text_of(n, **parameters)
        needed.append((n, self.gar.condition))
        said = [
            str(condition).replace("n", rows, 1)
            for i, (rows, condition) in enumerate(needed)
            if not any(
                rows == other and (more.implies(condition) and (j < i or more != condition))
                for j, (other, more) in enumerate(needed)
            )
        ]
        return " and ".join(said)

    def check(self, *, n: int, f: int, unsafe: bool = False) -> None:
        """Raises what applying it to n gradients would raise, without any gradients.

        Raises:
          UserError: a parameter is unknown or out of range.
          ConditionError: n is too small for f.
        """
        rows, made_by = n, ""
        for pre, parameters in self._stages:
            with self._refused(n, rows, f, unsafe, made_by):
                pre.check(n=rows, f=f, **parameters)
            rows, made_by = pre.num_rows(rows, **parameters), pre.name
        with self._refused(n, rows, f, unsafe, made_by):
            self.gar.check(n=rows, f=f, unsafe=unsafe or self.unsafe, **self.parameters)

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

    def least_n(self, f: int, from_n: int, *, unsafe: bool = False) -> int | None:
        """The least n from ``from_n`` on that the rule can be applied to; None up to 10,000."""
        enough = (n for n in range(from_n, _MOST_WORKERS) if self._holds(n, f, unsafe))
        return next(enough, None)

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
        stack_nd = plain(self.name, stack_nd)
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
        self, stack_nd: Values, *, f: int, unsafe: bool = False, usage: bool = True, **strange: Any
    ) -> Aggregated:
        """Aggregates one stack by itself: ``apply`` with the state of a first round."""
        if strange:
            more = ", ".join(f"{each}={value!r}" for each, value in strange.items())
            raise UserError(
                f"{self.name} has its parameters already, and {more} is given beside them: compose "
                f'another one, as in compose("{self.gar.name}({more})")'
            )
        stack_nd, state = alone(self, stack_nd, {})
        return self.apply(stack_nd, state, Context(), f=f, unsafe=unsafe, usage=usage)[0]

    def __call__(self, stack_nd: Any, *, f: int, unsafe: bool = False, **strange: Any) -> tf.Tensor:
        """Aggregates [n, d] to a tensor [d], eagerly or in a ``tf.function``."""
        stack_nd, _ = as_stack(self.name, stack_nd)
        return self.aggregate(stack_nd, f=f, unsafe=unsafe, usage=False, **strange).grad_d

    def _holds(self, n: int, f: int, unsafe: bool = False) -> bool:
        try:
            rows = n
            for pre, parameters in self._stages:
                pre.check(n=rows, f=f, **parameters)
                rows = pre.num_rows(rows, **parameters)
            self.gar.check(n=rows, f=f, unsafe=unsafe, **self.parameters)
        except UserError:  # too few, or a parameter that is too large for so few
            return False
        return True

    @contextmanager
    def _refused(self, n: int, rows: int, f: int, unsafe: bool, made_by: str) -> Iterator[None]:
        """Adds to a stage's refusal whose rows it is about, and what to do about the gradients."""
        what = "row" if rows == 1 else "rows"
        makes = "" if rows == n else f"{made_by} makes {rows} {what} of {n} gradients, and "
        try:
            yield
        except ConditionError as error:
            if not self._stages:
                raise
            reason = str(error).partition(". ")[0]
            remedy = self._remedy(n, f, unsafe)
            raise ConditionError(f"{makes}{reason}. {remedy}.") from None
        except UserError as error:
            if not makes:
                raise
            raise UserError(f"{makes}{error}") from None

    def _remedy(self, n: int, f: int, unsafe: bool) -> str:
        enough = None if unsafe else self.least_n(f, n)
        if enough is None:
            return "Declare a smaller f"
        return remedy_of(enough - n, self.largest_f(n))


def compose(text: str, parameters: Mapping[str, Any] | None = None) -> Rule:
    """Reads a rule's name, or a composition such as "nnm+median" or "bucketing(s=2)+krum".

    Args:
      text: names joined by "+", each with its parameters in brackets where it has any. The last one
        is a rule, those before it are pre-aggregations.
      parameters: more of the last one's; ``unsafe`` may be among them.

    Raises:
      UserError: it cannot be read, a name is unknown or in the wrong place, or a parameter is
        unknown, given twice, or right for no number of gradients.
    """
    for name in own_names(text):
        own.load(name)
    *before, last = read(text, parameters or {}, _known())
    stages = [_Stage(registered[name], given) for name, given in before]
    for pre, given in stages:
        pre.check_parameters(**given)
    gar, given = registered[last.name], dict(last.parameters)
    unsafe = given.pop("unsafe", False)
    if last.parameters:
        gar.check(n=_MOST_WORKERS, f=0, unsafe=unsafe, **given)
    name = "+".join(map(str, [*before, last._replace(parameters=given)]))
    return Rule(name, gar, given, unsafe, stages)


def _known() -> dict[str, Known]:
    return {
        name: Known(isinstance(each, Gar), each.parameters) for name, each in registered.items()
    }


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
