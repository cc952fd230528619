"""What every gradient aggregation rule (GAR) shares: its name, its condition and its checks."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from aggregathor.compositions import Known, check_names, declare
from aggregathor.conditions import Condition
from aggregathor.errors import Registry, UserError
from aggregathor.gars.context import Context, State
from aggregathor.gars.stacks import check_dtype, plain
from aggregathor.ops import Columns, has_arrays

_ALONE = Context()  # of a rule that is used by itself
_ALIGNMENT = 64  # bytes, of TensorFlow's tensors
# Half types are computed in float32 and cast back: 11 or 8 bits are too few to add n values in.
COMPUTED_IN = {
    tf.float32: tf.float32,
    tf.float64: tf.float64,
    tf.float16: tf.float32,
    tf.bfloat16: tf.float32,
}


class ConditionError(UserError):
    """n gradients are too few for f Byzantine ones among them."""


# What a rule's function works on: a tensor, or an array outside of TensorFlow.
Values: TypeAlias = "tf.Tensor | np.ndarray"


class Aggregated(NamedTuple):
    """An aggregate, and how much of each row it uses.

    Attributes:
      grad_d: what the rule gives, shape [d].
      usage_n: float64 [n], how much of each row was used, 0 (rejected) to 1: whether a selecting
        rule chose the row, the share of the coordinates for a coordinate-wise rule, the relative
        weight for the geometric median. A rule's function may give a function that computes it,
        where that costs much: it is called only if somebody asks. None where nobody did.
    """

    grad_d: Values
    usage_n: Any


@dataclass(frozen=True)
class Gar:
    """A rule with what is known about it. Call it like its function: ``gar(stack_nd, f=2)``.

    Attributes:
      name: as in ``GARS`` and on command lines.
      condition: under which the rule keeps its promise.
      minimum: what its formula needs to be computed at all, promise or not (``unsafe=True``).
      robust: whether f Byzantine rows leave the result near the honest ones.
      coordinate_wise: whether a coordinate of the result depends on that of the rows alone, so that
        a row's usage is a mean over coordinates.
      cost: in n, d and f.
      source: who proposed it.
      function: the checked function, the one that ``aggregathor.gars`` exports.
      parameters: name and default of what it takes beside ``f``.
      takes_arrays: whether its function also takes arrays, without TensorFlow.
      takes_columns: whether it can also be applied to some columns by themselves.
      needs_validation: whether it judges gradients by ``Context.losses``, and so needs data that
        only the server has.
      note: what a table of conditions does not tell; "" for nothing.
    """

    name: str
    condition: Condition
    minimum: Condition
    robust: bool
    coordinate_wise: bool
    cost: str
    source: str
    function: Callable[..., tf.Tensor]
    parameters: dict[str, Any]
    takes_arrays: bool
    takes_columns: bool
    needs_validation: bool
    note: str
    _function: Callable[..., Any]
    _init: Callable[..., State] | None
    _lent: frozenset[str]  # which of "state" and "context" the function takes
    _check: Callable[..., None] | None

    def __call__(self, stack_nd: tf.Tensor, **parameters: Any) -> tf.Tensor:
        """Aggregates [n, d] to [d]; see the function's own docstring."""
        return self.function(stack_nd, **parameters)

    @property
    def has_state(self) -> bool:
        """Whether the rule keeps something from round to round."""
        return self._init is not None

    def init(self, n: int, d: int, **parameters: Any) -> State:
        """Returns the state of the rule before its first round: {} for a rule without any.

        Raises:
          UserError: the rule has a state, and d is None, as in a graph it may be.
        """
        if self._init is None:
            return {}
        if d is None:
            raise UserError(
                f"{self.name} keeps a state of d coordinates, and d is unknown in shape "
                f"[{n}, None]: give it with tf.ensure_shape(stack_nd, [{n}, d])"
            )
        return self._init(n, d, **{**self.parameters, **parameters})

    def apply(
        self,
        stack_nd: Values,
        state: State,
        context: Context,
        *,
        f: int,
        unsafe: bool = False,
        usage: bool = True,
        **parameters: Any,
    ) -> tuple[Aggregated, State]:
        """Aggregates a round's gradients; changes neither the stack nor the state that it is given.

        Arrays in, arrays out. Of an array float32 [n, d] a rule that takes arrays works without
        TensorFlow where the native library is in use, on a thread for each core, the same to the
        last bit: an operation of TensorFlow's that is not in a graph takes 0.1 ms.

        Args:
          stack_nd: [n, d], a tensor or an array.
          state: what ``init`` or the round before gave.
          context: what the round lends to rules that ask for it.
          f: how many rows may be Byzantine.
          unsafe: computes below the rule's condition, where there is a formula.
          usage: False where nobody asks how much of each row is used.
          **parameters: of the rule.

        Returns:
          The aggregate, and the state for the next round. An array may share memory with
          ``stack_nd`` if the rule is not of this package.
        Raises:
          UserError, ConditionError: see ``check``.
          InvalidArgumentError: more rows than the rule can tolerate lack values.
        """
        stack_nd = plain(self.name, stack_nd)
        if isinstance(stack_nd, np.ndarray):
            return self._apply_to_array(stack_nd, state, context, f, unsafe, usage, parameters)
        stack_nd, n = as_stack(self.name, stack_nd)
        self.check(n=n, f=f, unsafe=unsafe, **parameters)
        own, wide = stack_nd.dtype, COMPUTED_IN[stack_nd.dtype]
        wide_nd = stack_nd if own is wide else tf.cast(stack_nd, wide)
        aggregated, state = self._run(wide_nd, state, context, f, usage, parameters)
        return aggregated._replace(grad_d=tf.cast(aggregated.grad_d, own)), state

    def aggregate(self, stack_nd: Values, *, usage: bool = True, **parameters: Any) -> Aggregated:
        """Aggregates one stack by itself: ``apply`` with the state of a first round."""
        parameters = {"f": 0, **parameters} if not self.robust else parameters
        if parameters.get("f") is None:
            raise TypeError(f"{self.name} needs f=, the number of Byzantine gradients to tolerate")
        stack_nd, state = alone(self, stack_nd, parameters)
        return self.apply(stack_nd, state, _ALONE, usage=usage, **parameters)[0]

    def by_columns(self) -> bool:
        """Whether ``aggregate_columns`` can be used."""
        return self.takes_columns and has_arrays()

    def aggregate_columns(
        self,
        stack_nd: np.ndarray,
        ranges_k2: np.ndarray,
        grad_d: np.ndarray,
        *,
        f: int,
        **parameters: Any,
    ) -> Aggregated:
        """Aggregates some columns of a stack; the same as all together, to the last bit.

        Args:
          stack_nd: float32 [n, d] in C order.
          ranges_k2: int64 [k, 2], which columns: [begin, end), within 0..d.
          grad_d: float32 [d], where their aggregate goes.
          f: as for the rule.
          **parameters: of the rule.

        Returns:
          ``grad_d``, and how much of each row is used where that does not depend on the columns.
        Raises:
          As ``check``.
        """
        self.check(n=len(stack_nd), f=f, **parameters)
        columns = Columns(stack_nd, ranges_k2, grad_d)
        _, usage_n = self._function(columns, f=int(f), **parameters)
        return Aggregated(grad_d, None if callable(usage_n) else usage_n)

    def check(self, *, n: int, f: int, unsafe: bool = False, **parameters: Any) -> None:
        """Raises what a call with n gradients would raise, without any gradients.

        Raises:
          UserError: f is not a whole number >= 0, or a parameter is unknown or out of range.
          ConditionError: n is too small for f.
        """
        if not is_whole(f) or not 0 <= f < 2**31:
            raise UserError(f"{self.name}: f must be a whole number >= 0, got {f!r}")
        if not isinstance(unsafe, bool):
            raise UserError(f"{self.name}: unsafe is True or False, got {unsafe!r}")
        check_names(self.name, parameters, self.parameters, "it has none but f.")
        needed = self.minimum if unsafe else self.condition
        if n < needed.least_n(f):
            what = "cannot be computed unless" if unsafe else "needs"
            raise ConditionError(needed.refusal(self.name, n, f, what=what))
        if self._check is not None:
            self._check(n=n, f=f, **{**self.parameters, **parameters})

    def _run(
        self,
        stack_nd: Values,
        state: State,
        context: Context,
        f: int,
        usage: bool,
        parameters: Mapping[str, Any],
    ) -> tuple[Aggregated, State]:
        lent = {"state": state, "context": context}
        lent = {name: value for name, value in lent.items() if name in self._lent}
        result = self._function(stack_nd, **lent, f=int(f), **parameters)
        aggregated, state = result if "state" in self._lent else (result, state)
        return aggregated._replace(usage_n=_asked(aggregated.usage_n) if usage else None), state

    def _apply_to_array(
        self,
        stack_nd: np.ndarray,
        state: State,
        context: Context,
        f: int,
        unsafe: bool,
        usage: bool,
        parameters: dict[str, Any],
    ) -> tuple[Aggregated, State]:
        is_stack = stack_nd.dtype == np.float32 and stack_nd.ndim == 2 and stack_nd.size
        if not (is_stack and self.takes_arrays and has_arrays()):
            aggregated, state = self.apply(
                _as_tensor(stack_nd),
                *(state, context),
                **{"f": f, "unsafe": unsafe, "usage": usage, **parameters},
            )
        else:
            self.check(n=len(stack_nd), f=f, unsafe=unsafe, **parameters)
            stack_nd = np.ascontiguousarray(stack_nd)
            aggregated, state = self._run(stack_nd, state, context, f, usage, parameters)
        grad_d, usage_n = aggregated
        usage_n = None if usage_n is None else np.asarray(usage_n)
        state = {name: np.asarray(value) for name, value in state.items()}
        return Aggregated(np.asarray(grad_d), usage_n), state


registered: dict[str, Any] = {}  # rules, and the pre-aggregations beside them, by name


def gar(
    name: str,
    *,
    condition: str,
    minimum: str = "n >= 1",
    robust: bool = True,
    coordinate_wise: bool = False,
    cost: str,
    source: str,
    takes_arrays: bool = False,
    takes_columns: bool = False,
    needs_validation: bool = False,
    note: str = "",
    init: Callable[..., State] | None = None,
    check: Callable[..., None] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., tf.Tensor]]:
    """Makes a rule of a function ``(stack_nd, *, f, **parameters) -> Aggregated``.

    The function receives a float32 or float64 tensor of static n that meets the condition, and what
    it gives, tensors or arrays, is cast back. A rule with state takes ``state`` as well,
    leaves it as it is, and gives ``(Aggregated, state of the next round)``; one that needs to know
    the parameters, the round or a random generator takes ``context``, a ``gars.Context``. The
    decorated function takes ``(stack_nd, *, f, unsafe=False, **parameters)`` and gives the tensor
    [d].

    Args:
      name: unique, in lower case with hyphens.
      condition: as ``"n >= 2f + 3"``.
      minimum: the condition of ``unsafe=True``.
      robust: False for a rule that promises nothing under attack.
      coordinate_wise: see ``Gar``.
      cost: such as ``"O(n^2 d)"``.
      source: the paper.
      takes_arrays: whether the function also takes an array float32 [n, d], and then gives arrays.
      takes_columns: whether it also takes ``Columns`` of one, which it may give to kernels only.
      needs_validation: whether it asks ``context.losses``, which a server lends that has such data.
      note: what users should know beside the condition, in a sentence.
      init: ``init(n, d, **parameters)`` gives the state of a rule that has any: arrays by name.
        Such a rule is applied to whole stacks only: it is neither ``coordinate_wise`` nor
        ``takes_columns``.
      check: ``check(n=, f=, **parameters)`` raises ``UserError`` for parameters that are out of
        range, before the training.
    """

    def register(function: Callable[..., Any]) -> Callable[..., tf.Tensor]:
        check_new(name)
        own = inspect.signature(function).parameters
        lent = frozenset({"state", "context"} & own.keys())
        if ("state" in lent) != (init is not None):
            raise UserError(f"the rule {name} takes a state and has an init, or neither")
        if init is not None and (coordinate_wise or takes_columns):
            raise UserError(
                f"the rule {name} has a state, so it is applied to whole stacks only: leave out "
                "coordinate_wise and takes_columns"
            )

        @functools.wraps(function)
        def checked(stack_nd: Any, **given: Any) -> tf.Tensor:
            if isinstance(stack_nd, np.ndarray):
                stack_nd, _ = as_stack(name, stack_nd)
            return rule.aggregate(stack_nd, usage=False, **given).grad_d

        unsafe = inspect.Parameter("unsafe", inspect.Parameter.KEYWORD_ONLY, default=False)
        shown = [p for p in own.values() if p.name not in lent]
        setattr(checked, "__signature__", inspect.Signature([*shown, unsafe]))  # noqa: B010 - typed
        rule = Gar(
            name=name,
            condition=Condition.parse(condition),
            minimum=Condition.parse(minimum),
            robust=robust,
            coordinate_wise=coordinate_wise,
            cost=cost,
            source=source,
            function=checked,
            parameters=defaults_of(name, shown),
            takes_arrays=takes_arrays,
            takes_columns=takes_columns,
            needs_validation=needs_validation,
            note=note,
            _function=function,
            _init=init,
            _lent=lent,
            _check=check,
        )
        registered[name] = rule
        declare(name, Known(True, tuple(rule.parameters), rule.condition))
        return checked

    return register


def registry() -> Registry[Gar]:
    """Returns the rules that have been registered, and those to come."""
    return Registry("gradient aggregation rule", Kind(Gar))


class Kind(Mapping[str, Any]):
    """Those of the registered that are of one class, in the order in which they came."""

    def __init__(self, kind: type) -> None:
        """Shows what is registered, and what will be."""
        self._kind = kind

    def __getitem__(self, name: str) -> Any:
        found = registered[name]
        if not isinstance(found, self._kind):
            raise KeyError(name)
        return found

    def __iter__(self) -> Any:
        return (name for name, each in registered.items() if isinstance(each, self._kind))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def is_whole(value: Any) -> bool:
    """Whether a parameter is a whole number; True and False are none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_new(name: str) -> None:
    """Raises ``UserError`` where a rule or a pre-aggregation has this name."""
    if name in registered:
        raise UserError(f"a rule called {name!r} is there already: choose another name")


def defaults_of(name: str, function: Iterable[inspect.Parameter]) -> dict[str, Any]:
    """Returns name and default of what a rule or a pre-aggregation takes beside ``f``."""
    defaults = {p.name: p.default for p in function if p.name not in ("stack_nd", "f")}
    for each, default in defaults.items():
        if default is inspect.Parameter.empty:
            raise UserError(f"the parameter {each} of {name} has no default: give it one")
    return defaults


def alone(rule: Any, stack_nd: Any, given: Mapping[str, Any]) -> tuple[Values, State]:
    """Returns a stack that a rule or a composition aggregates by itself, and its first state.

    Args:
      rule: a ``Gar``, or a ``Rule``, which has its parameters.
      stack_nd: what it is given.
      given: arguments of the call, the rule's parameters among them.
    """
    if not rule.has_state and isinstance(stack_nd, (np.ndarray, tf.Tensor)):
        return stack_nd, {}  # `apply` checks it
    stack_nd = plain(rule.name, stack_nd)
    if not isinstance(stack_nd, np.ndarray):
        stack_nd, _ = as_stack(rule.name, stack_nd)
    if not rule.has_state:
        return stack_nd, {}
    if stack_nd.ndim != 2:
        raise UserError(f"{rule.name} takes gradients stacked as [n, d], got {stack_nd.shape}")
    own = {name: value for name, value in given.items() if name in rule.parameters}
    return stack_nd, rule.init(*stack_nd.shape, **own)


def as_stack(name: str, stack_nd: Any) -> tuple[tf.Tensor, int]:
    """Converts to a tensor [n, d] with known n, or says what is wrong with it."""
    if not isinstance(stack_nd, tf.Tensor):
        stack_nd = plain(name, stack_nd)
        try:
            stack_nd = tf.convert_to_tensor(stack_nd)
        except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
            raise UserError(f"{name} takes gradients stacked as [n, d]: {error}") from None
    check_dtype(name, stack_nd.dtype.name, [dtype.name for dtype in COMPUTED_IN])
    if stack_nd.shape.rank != 2:
        raise UserError(f"{name} takes gradients stacked as [n, d], got shape {stack_nd.shape}")
    if stack_nd.shape[1] == 0:
        raise UserError(f"{name} takes gradients of one value or more, got shape {stack_nd.shape}")
    if stack_nd.shape[0] is None:
        raise UserError(
            f"{name} checks n against f before it computes, and n is unknown in shape "
            f"{stack_nd.shape}: give it with tf.ensure_shape(stack_nd, [n, None])"
        )
    return stack_nd, int(stack_nd.shape[0])  # a v1.Dimension in scripts of v1


def _as_tensor(stack_nd: np.ndarray) -> Values:
    """Returns a tensor on the same memory, which ``tf.convert_to_tensor`` would copy, if it can."""
    if stack_nd.dtype not in (np.float32, np.float64) or not stack_nd.flags.carray:
        return tf.convert_to_tensor(stack_nd)
    if stack_nd.ctypes.data % _ALIGNMENT or not stack_nd.size:
        return tf.convert_to_tensor(stack_nd)
    return tf.experimental.dlpack.from_dlpack(stack_nd.__dlpack__())


def _asked(usage_n: Any) -> Any:
    return usage_n() if callable(usage_n) else usage_n
