"""What every gradient aggregation rule (GAR) shares: its name, its condition and its checks."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from aggregathor.errors import Registry, UserError, near
from aggregathor.ops import Columns, has_arrays

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


class Explained(NamedTuple):
    """An aggregate and whom it was made of.

    Attributes:
      grad_d: what the rule gives, shape [d].
      share_n: float64 [n], how much of each row was used, 0 (rejected) to 1: whether a selecting
        rule chose the row, the share of the coordinates for a coordinate-wise rule, the relative
        weight for the geometric median.
    """

    grad_d: Values
    share_n: Values


@dataclass(frozen=True)
class Needs:
    """The condition ``n >= a f + b`` of a rule. ``a = 0``: no Byzantine row is borne at all."""

    a: int
    b: int

    @classmethod
    def parse(cls, text: str) -> Needs:
        """Reads ``"n >= 2f + 3"``, ``"n >= 4f+3"`` or ``"n >= 1"``."""
        found = re.fullmatch(r"\s*n\s*>=\s*(?:(\d*)\s*f)?\s*\+?\s*(\d+)?\s*", text)
        if not found or (found[1] is None and found[2] is None):
            raise UserError(f"a condition reads like 'n >= 2f + 3', got {text!r}")
        a = 0 if found[1] is None else int(found[1] or 1)
        return cls(a, int(found[2] or 0))

    def __str__(self) -> str:
        factor = "" if self.a == 1 else str(self.a)
        return f"n >= {factor}f + {self.b}" if self.a else f"n >= {self.b}"

    def least_n(self, f: int) -> int:
        """The smallest number of gradients that bears f Byzantine ones."""
        return self.a * f + self.b

    def largest_f(self, n: int) -> int | None:
        """The largest number of Byzantine gradients among n; None where n is too small for any."""
        if n < self.b:
            return None
        return (n - self.b) // self.a if self.a else 0


@dataclass(frozen=True)
class Gar:
    """A rule with what is known about it. Call it like its function: ``gar(stack_nd, f=2)``.

    Attributes:
      name: as in ``GARS`` and on command lines.
      needs: the condition under which the rule keeps its promise.
      computable: what its formula needs to be computed at all, promise or not (``unsafe=True``).
      robust: whether f Byzantine rows leave the result near the honest ones.
      coordinate_wise: whether a coordinate of the result depends on that of the rows alone, so that
        a row's share is a mean over coordinates.
      cost: in n, d and f.
      source: who proposed it.
      function: the checked function, the one that ``aggregathor.gars`` exports.
      parameters: name and default of what it takes beside ``f``.
      takes_arrays: whether the rule can do without TensorFlow.
      takes_columns: whether it can also be applied to some columns by themselves.
    """

    name: str
    needs: Needs
    computable: Needs
    robust: bool
    coordinate_wise: bool
    cost: str
    source: str
    function: Callable[..., tf.Tensor]
    parameters: dict[str, Any]
    takes_arrays: bool
    takes_columns: bool
    _explain: Callable[..., Explained]
    _function: Callable[..., Explained]

    def __call__(self, stack_nd: tf.Tensor, **parameters: Any) -> tf.Tensor:
        """Aggregates [n, d] to [d]; see the function's own docstring."""
        return self.function(stack_nd, **parameters)

    def explain(self, stack_nd: tf.Tensor, **parameters: Any) -> Explained:
        """Aggregates, and tells how much of each row was used."""
        return self._explain(stack_nd, with_share=True, **parameters)

    def explain_array(
        self,
        stack_nd: np.ndarray,
        *,
        f: int,
        unsafe: bool = False,
        with_share: bool = True,
        **parameters: Any,
    ) -> Explained:
        """As ``explain``, of an array and in arrays; the same to the last bit.

        Rules that take arrays do it without TensorFlow where the native library is in use, on a
        thread for each core: an operation of TensorFlow's that is not in a graph takes 0.1 ms.

        Args:
          stack_nd: [n, d]; float32 goes without TensorFlow.
          f: as for the rule.
          unsafe: as for the rule.
          with_share: False where ``share_n`` may be anything.
          **parameters: of the rule.

        Returns:
          Arrays; they may lie in ``stack_nd`` if the rule is not of this package.
        Raises:
          As ``explain``.
        """
        is_stack = stack_nd.dtype == np.float32 and stack_nd.ndim == 2 and stack_nd.size
        if not (is_stack and self.takes_arrays and has_arrays()):
            explained = self._explain(
                _as_tensor(stack_nd), with_share=with_share, f=f, unsafe=unsafe, **parameters
            )
            return Explained(*map(np.asarray, explained))
        self.check(n=len(stack_nd), f=f, unsafe=unsafe, **parameters)
        stack_nd = np.ascontiguousarray(stack_nd)
        return self._function(stack_nd, f=int(f), with_share=with_share, **parameters)

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
    ) -> Explained:
        """Aggregates some columns of a stack; the same as all together, to the last bit.

        Args:
          stack_nd: float32 [n, d] in C order.
          ranges_k2: int64 [k, 2], which columns: [begin, end), within 0..d.
          grad_d: float32 [d], where their aggregate goes.
          f: as for the rule.
          **parameters: of the rule.

        Returns:
          ``grad_d``, and the shares if they are not of the columns.
        Raises:
          As ``check``.
        """
        self.check(n=len(stack_nd), f=f, **parameters)
        columns = Columns(stack_nd, ranges_k2, grad_d)
        return self._function(columns, f=int(f), with_share=False, **parameters)

    def check(self, *, n: int, f: int, unsafe: bool = False, **parameters: Any) -> None:
        """Raises what a call with n gradients would raise, without any gradients.

        Raises:
          UserError: f is not a whole number >= 0, or a parameter is unknown.
          ConditionError: n is too small for f.
        """
        if not isinstance(f, (int, np.integer)) or isinstance(f, bool) or not 0 <= f < 2**31:
            raise UserError(f"{self.name}: f must be a whole number >= 0, got {f!r}")
        if not isinstance(unsafe, bool):
            raise UserError(f"{self.name}: unsafe is True or False, got {unsafe!r}")
        for name in parameters:
            if name not in self.parameters:
                raise UserError(f"{self.name} has no parameter {name!r}: {self._known(name)}")
        needed = self.computable if unsafe else self.needs
        if n < needed.least_n(f):
            raise ConditionError(self._too_few(n, f, needed, unsafe))

    def _known(self, name: str) -> str:
        return near(name, self.parameters) if self.parameters else "it has none but f."

    def _too_few(self, n: int, f: int, needed: Needs, unsafe: bool) -> str:
        largest = needed.largest_f(n)
        missing = needed.least_n(f) - n
        remedy = f"Start {missing} more worker{'s' if missing > 1 else ''}"
        if largest is not None and needed.a:
            remedy += f" or declare f={largest}"
        what = "cannot be computed unless" if unsafe else "needs"
        return (
            f"{self.name} {what} {needed} gradients; f={f} needs {needed.least_n(f)}, got {n}. "
            f"{remedy}."
        )


_registered: dict[str, Gar] = {}


def gar(
    name: str,
    *,
    needs: str,
    computable: str | None = None,
    robust: bool = True,
    coordinate_wise: bool = False,
    cost: str,
    source: str,
    takes_arrays: bool = False,
    takes_columns: bool = False,
) -> Callable[[Callable[..., Explained]], Callable[..., tf.Tensor]]:
    """Makes a rule of a function ``(stack_nd, *, f, with_share, **parameters) -> Explained``.

    The function is given a float32 or float64 tensor of static n that meets the condition; what it
    gives is cast back. ``share_n`` may be anything unless ``with_share``. The decorated function
    takes ``(stack_nd, *, f, unsafe=False, **parameters)`` and gives the tensor [d].

    Args:
      name: unique, in lower case with hyphens.
      needs: the condition, as ``"n >= 2f + 3"``.
      computable: the condition of ``unsafe=True``; by default ``n >= 1``.
      robust: False for a rule that promises nothing under attack.
      coordinate_wise: see ``Gar``.
      cost: such as ``"O(n^2 d)"``.
      source: the paper.
      takes_arrays: whether the function also takes an array float32 [n, d], and then gives arrays.
      takes_columns: whether it also takes ``Columns`` of one, which it may give to kernels only.
    """

    def register(function: Callable[..., Explained]) -> Callable[..., tf.Tensor]:
        if name in _registered:
            raise UserError(f"a rule called {name!r} is there already: choose another name")
        own = dict(inspect.signature(function).parameters)
        parameters = {
            p.name: p.default for p in own.values() if p.name not in ("stack_nd", "f", "with_share")
        }

        def explain(
            stack_nd: tf.Tensor,
            *,
            with_share: bool,
            f: int | None = None,
            unsafe: bool = False,
            **given: Any,
        ) -> Explained:
            if f is None and robust:
                raise TypeError(f"{name} needs f=, the number of Byzantine gradients to bear")
            f = 0 if f is None else f
            stack_nd, n = as_stack(name, stack_nd)
            rule.check(n=n, f=f, unsafe=unsafe, **given)
            wide_nd = tf.cast(stack_nd, COMPUTED_IN[stack_nd.dtype])
            grad_d, share_n = function(wide_nd, f=int(f), with_share=with_share, **given)
            return Explained(tf.cast(grad_d, stack_nd.dtype), share_n)

        @functools.wraps(function)
        def checked(stack_nd: tf.Tensor, **given: Any) -> tf.Tensor:
            return explain(stack_nd, with_share=False, **given).grad_d

        signature = _public_signature(own, f_has_default=not robust)
        setattr(checked, "__signature__", signature)  # noqa: B010 - functions have it, types do not
        checked.__annotations__ = {"return": tf.Tensor}
        rule = Gar(
            name=name,
            needs=Needs.parse(needs),
            computable=Needs.parse(computable or "n >= 1"),
            robust=robust,
            coordinate_wise=coordinate_wise,
            cost=cost,
            source=source,
            function=checked,
            parameters=parameters,
            takes_arrays=takes_arrays,
            takes_columns=takes_columns,
            _explain=explain,
            _function=function,
        )
        _registered[name] = rule
        return checked

    return register


def registry() -> Registry[Gar]:
    """Returns the rules that have been registered so far."""
    return Registry("gradient aggregation rule", _registered)


def as_stack(name: str, stack_nd: Any) -> tuple[tf.Tensor, int]:
    """Converts to a tensor [n, d] with known n, or says what is wrong with it."""
    try:
        stack_nd = tf.convert_to_tensor(stack_nd)
    except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
        raise UserError(f"{name} takes gradients stacked as [n, d]: {error}") from None
    if stack_nd.dtype not in COMPUTED_IN:
        known = ", ".join(dtype.name for dtype in COMPUTED_IN)
        raise TypeError(f"{name} takes {known}; got a stack of {stack_nd.dtype.name}")
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
        return stack_nd
    if stack_nd.ctypes.data % _ALIGNMENT or not stack_nd.size:
        return stack_nd
    return tf.experimental.dlpack.from_dlpack(stack_nd.__dlpack__())


def _public_signature(own: dict[str, inspect.Parameter], f_has_default: bool) -> inspect.Signature:
    f = own["f"].replace(default=0) if f_has_default else own["f"]
    unsafe = inspect.Parameter("unsafe", inspect.Parameter.KEYWORD_ONLY, default=False)
    rest = [p for p in own.values() if p.name not in ("stack_nd", "f", "with_share")]
    stack_nd = own["stack_nd"].replace(annotation="tf.Tensor")
    return inspect.Signature([stack_nd, f, *rest, unsafe], return_annotation=tf.Tensor)
