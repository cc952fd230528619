"""What the attackers know, what an attack is, and how its rows join the honest ones."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np

from aggregathor import own
from aggregathor.errors import UserError, near

Form = Literal["omniscient", "local", "coordinates", "labels"]

registered: dict[str, Attack] = {}  # filled by the decorator below, in order of definition


@dataclass(frozen=True, eq=False)
class View:
    """What the attackers know in one step; nothing in it is ever written to.

    Args:
      honest_hd: float, shape [h, d], h >= 1; what the honest workers send in this step.
      own_bd: same dtype, shape [b, d]; what the Byzantine workers would send if honest.
      f: the bound on Byzantine rows that was declared to the rule.
      rng: the only source of randomness.
      aggregate: the rule in use: stack [n, d] -> (aggregate [d], usage [n] in 0..1: how much of
        each row was used). Asking changes nothing. Byzantine rows come last in the stack.
      state: what the attack's ``update`` returned in the step before; None in the first one.
    Raises:
      ValueError: the two arrays do not fit together.
    """

    honest_hd: np.ndarray
    own_bd: np.ndarray
    f: int
    rng: np.random.Generator
    aggregate: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
    state: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Checks that the two arrays fit together."""
        honest, own = self.honest_hd, self.own_bd
        fits = honest.ndim == own.ndim == 2 and honest.shape[1] == own.shape[1]
        if not fits or len(honest) == 0:
            raise ValueError(
                "a view needs honest_hd [h, d] with h >= 1 and own_bd [b, d] of the same d; "
                f"got {list(honest.shape)} and {list(own.shape)}."
            )
        if honest.dtype != own.dtype or honest.dtype.kind != "f":
            raise ValueError(
                f"a view needs rows of one float dtype; got {honest.dtype} and {own.dtype}."
            )

    @property
    def n(self) -> int:
        """How many rows the rule receives."""
        return len(self.honest_hd) + len(self.own_bd)

    @property
    def num_byzantine(self) -> int:
        """How many of the n rows are Byzantine (b; at most f if the declaration holds)."""
        return len(self.own_bd)


@dataclass(frozen=True, eq=False)
class Attack:
    """A named attack: call it with a `View` and its parameters to get the rows to send.

    Args:
      name: what users write: ``little``, ``sign-flip``.
      form: what the attack needs. "omniscient": sees the honest rows; "local": sees its own
        gradient alone; "coordinates": hits coordinates of any of the n rows; "labels": its
        gradients are computed on other labels.
      source: where it was published.
      function: ``function(view, **parameters)`` returns [b, d], or [n, d] (honest rows first)
        for the form "coordinates", in the dtype of the view.
      needs: what must hold between the parameters: the rule as text, and its test.
      update: for attacks that remember: ``update(view)`` returns the state of the next step.
      labels: for the form "labels": ``labels(labels, num_classes)`` returns those to train on.
    """

    name: str
    form: Form
    source: str
    function: Callable[..., np.ndarray]
    needs: Mapping[str, Callable[[SimpleNamespace], bool]]
    update: Callable[[View], np.ndarray] | None = None
    labels: Callable[[np.ndarray, int], np.ndarray] | None = None

    def __call__(self, view: View, **parameters: Any) -> np.ndarray:
        """Returns new rows: [b, d], or [n, d] for the form "coordinates"."""
        self.check(**parameters)
        rows = self.function(view, **parameters)
        count = view.n if self.form == "coordinates" else view.num_byzantine
        expected = (count, view.honest_hd.shape[1])
        if rows.shape != expected or rows.dtype != view.honest_hd.dtype:
            raise ValueError(
                f"attack {self.name} must return {view.honest_hd.dtype} {list(expected)}; "
                f"its function returned {rows.dtype} {list(rows.shape)}."
            )
        return rows

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters' names and defaults."""
        _, *parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters}

    def check(self, **parameters: Any) -> None:
        """Raises `UserError` for an unknown parameter or a bad value; needs no view."""
        defaults = self.parameters
        for name, value in parameters.items():
            if name not in defaults:
                hint = near(name, defaults) if defaults else "it takes none."
                raise UserError(f"attack {self.name} has no parameter {name!r}: {hint}")
            _check_type(self.name, name, value, defaults[name])
        given = defaults | parameters
        for rule, holds in self.needs.items():
            if not holds(SimpleNamespace(**given)):
                got = ", ".join(f"{k}={v!r}" for k, v in given.items())
                raise UserError(f"attack {self.name} needs {rule}; got {got}.")


def attack(
    name: str,
    *,
    form: Form,
    source: str,
    needs: Mapping[str, Callable[[SimpleNamespace], bool]] | None = None,
    update: Callable[[View], np.ndarray] | None = None,
    labels: Callable[[np.ndarray, int], np.ndarray] | None = None,
) -> Callable[[Callable[..., np.ndarray]], Callable[..., np.ndarray]]:
    """Registers a function as an `Attack`; calling it by its own name checks the same things."""

    def register(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        made = Attack(name, form, source, function, needs or {}, update, labels)
        registered[name] = made

        @functools.wraps(function)
        def checked(view: View, **parameters: Any) -> np.ndarray:
            return made(view, **parameters)

        return checked

    return register


def load(name: str) -> Attack | None:
    """Registers a function of the user's own by "module:function"; None for other names.

    A function that ``attack`` decorates has the form that it was given there. Any other is an
    omniscient one: ``function(view, **parameters)`` returns the rows [b, d] of the Byzantine
    workers.

    Raises:
      UserError: there is no such function, or it is no attack.
    """
    if not own.is_own(name):
        return None
    function = own.load(name, "attack")
    function = getattr(function, "__wrapped__", function)
    for each in registered.values():
        if each.function is function:
            return registered.setdefault(name, each)
    try:
        parameters = [*inspect.signature(function).parameters]
    except (TypeError, ValueError):
        parameters = []
    if parameters[:1] != ["view"]:
        raise UserError(
            f"{name} is no attack: an attack is a function (view, **parameters) that returns the "
            f"rows of the Byzantine workers, and this one takes ({', '.join(parameters)})"
        )
    return registered.setdefault(name, Attack(name, "omniscient", name, function, {}))


def apply(attack: Attack, view: View, **parameters: Any) -> np.ndarray:
    """Returns the stack [n, d] that the rule receives: honest rows first, then Byzantine ones.

    With the form "labels" the last rows are `View.own_bd` unchanged: those gradients were
    computed on the attack's labels already.
    """
    rows = attack(view, **parameters)
    if attack.form == "coordinates":
        return rows
    return np.concatenate([view.honest_hd, rows])


def repeated(row_d: np.ndarray, view: View) -> np.ndarray:
    """Returns one row as all b Byzantine rows, in the dtype of the view."""
    return np.repeat(cast(row_d, view)[np.newaxis], view.num_byzantine, axis=0)


def cast(values: np.ndarray, view: View) -> np.ndarray:
    """Returns the values in the dtype of the view; what is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return values.astype(view.honest_hd.dtype)


def _check_type(attack: str, name: str, value: object, default: object) -> None:
    # The type is that of the default; None stands for a number worked out at run time.
    if isinstance(default, str):
        expected, fits = "a string", isinstance(value, str)
    elif isinstance(default, int):
        expected, fits = "an integer", isinstance(value, Integral)
    else:
        expected, fits = "a finite number", isinstance(value, Real) and _is_finite(value)
        fits = fits or (default is None and value is None)
    if not fits or isinstance(value, bool):
        raise UserError(
            f"attack {attack} needs {expected} as {name!r}; got {value!r} (default {default!r})."
        )


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # of a whole number that is too large for a float
        return False
