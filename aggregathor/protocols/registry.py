"""The protocols by name: what each needs, known without TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from aggregathor.compositions import check_names
from aggregathor.errors import Registry, UserError, near
from aggregathor.protocols import draco


@dataclass(frozen=True, eq=False)
class Protocol:
    """How workers and servers take turns.

    Attributes:
      name: what users write: --protocol=NAME.
      about: what it does, in a line.
      condition: as text, under which f Byzantine workers are tolerated; "" for none beside that of
        its rule.
      link: the verbs of a link that it uses.
      source: who proposed it.
      parameters: name and default of each: --protocol_args="name=value".
      has_rule: whether it aggregates by the rule that --gar names, whose condition must hold too.
      rule_n: what is the rule's n, as text.
      robust: whether it tolerates Byzantine workers, where it has no rule.
      needs_validation: whether the server needs data that no worker draws of.
      reasons: for which it rejects a gradient, where it decides on each by itself.
      innocent: those of them that say nothing about the gradient itself.
    """

    name: str
    about: str
    link: tuple[str, ...]
    source: str
    condition: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    has_rule: bool = True
    rule_n: str = "n"
    robust: bool = True
    needs_validation: bool = False
    reasons: tuple[str, ...] = ()
    innocent: tuple[str, ...] = ()
    _check: Callable[..., None] | None = None
    _rows: Callable[..., int] | None = None

    @property
    def takes(self) -> bool:
        """Whether gradients are answered one by one, and not in rounds of all workers."""
        return "take" in self.link

    def rows(self, *, n: int, f: int, **parameters: Any) -> int:
        """Returns how many gradients its rule gets, of n workers."""
        return (
            n if self._rows is None else self._rows(n=n, f=f, **{**self.parameters, **parameters})
        )

    def check_parameters(self, **parameters: Any) -> None:
        """Raises ``UserError`` for a parameter that is unknown."""
        check_names(f"the protocol {self.name}", parameters, self.parameters)

    def check(self, *, n: int, f: int, **parameters: Any) -> None:
        """Raises what a training with n workers would raise, before anything is loaded.

        The rule's own condition is not among it.

        Raises:
          UserError: a parameter is unknown or out of range, or n is too small for f.
        """
        self.check_parameters(**parameters)
        if self._check is not None:
            self._check(n=n, f=f, **{**self.parameters, **parameters})

    def largest_f(self, n: int) -> int | None:
        """Returns the largest f that it can be used with among n workers; None where none is."""
        return max((f for f in range(n) if not self.refusal(n, f)), default=None)

    def refusal(self, n: int, f: int) -> str:
        """Returns why it cannot be used, with its defaults; "" where it can."""
        try:
            self.check(n=n, f=f)
        except UserError as error:
            return str(error)
        return ""


_REGISTERED: dict[str, Protocol] = {}
PROTOCOLS: Registry[Protocol] = Registry("protocol", _REGISTERED)


def protocol(
    name: str,
    *,
    check: Callable[..., None] | None = None,
    rows: Callable[..., int] | None = None,
    **known: Any,
) -> None:
    """Registers a protocol.

    Args:
      name: unique, in lower case with hyphens.
      check: ``check(n=, f=, **parameters)`` raises ``UserError`` where it cannot work.
      rows: ``rows(n=, f=, **parameters)`` says how many gradients its rule gets; n if not given.
      **known: the other attributes of ``Protocol``.
    """
    _REGISTERED[name] = Protocol(name=name, _check=check, _rows=rows, **known)


def num_buffers(*, n: int, f: int, buffers: int | None, **_: Any) -> int:
    """Returns B of BASGD: as given, or 2f + 1, with which a median tolerates f."""
    return 2 * f + 1 if buffers is None else buffers


def _check_basgd(*, n: int, f: int, buffers: int | None, reassign_s: float) -> None:
    if buffers is not None:
        _check_whole("basgd", "buffers", buffers, 1)
    _check_number("basgd", "reassign_s", reassign_s, above=0)
    b = num_buffers(n=n, f=f, buffers=buffers)
    if b > n:
        raise UserError(
            f"basgd needs a worker for each buffer at least; {b} buffers need {b}, got {n}. Start "
            f"more workers, or pass buffers={n} or fewer, if the rule tolerates f={f} of so many."
        )


def _check_zenopp(
    *, n: int, f: int, gamma: float | None, rho: float, epsilon: float, refresh: int, batch: int
) -> None:
    if gamma is not None:
        _check_number("zeno++", "gamma", gamma, above=0)
    for name, value in (("rho", rho), ("epsilon", epsilon)):
        _check_number("zeno++", name, value)
    for name, value in (("refresh", refresh), ("batch", batch)):
        _check_whole("zeno++", name, value, 1)


def _check_kardam(*, n: int, f: int, dampening: str, alpha: float, frequency: str) -> None:
    for name, value, choices in (
        ("dampening", dampening, ("inverse", "exponential", "none")),
        ("frequency", frequency, ("strict", "weak")),
    ):
        if value not in choices:
            raise UserError(f"kardam knows no {name}={value!r}: {near(str(value), choices)}")
    _check_number("kardam", "alpha", alpha)
    if n < 3 * f + 1:
        raise UserError(
            f"kardam needs n >= 3f + 1 workers; f={f} needs {3 * f + 1}, got {n}. Start "
            f"{3 * f + 1 - n} more or declare a smaller f."
        )


def _check_whole(protocol: str, name: str, value: Any, least: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise UserError(f"{protocol}: {name} is a whole number, at least {least}; got {value!r}")


def _check_number(protocol: str, name: str, value: Any, *, above: float | None = None) -> None:
    fits = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or (value < 0 if above is None else value <= above):
        least = "at least 0" if above is None else f"above {above:g}"
        raise UserError(f"{protocol}: {name} is a number {least}; got {value!r}")


protocol(
    "sync",
    about="rounds: all gradients, one aggregate, one model for all",
    link=("collect", "broadcast"),
    source="Damaskinos et al. 2019",
)

protocol(
    "draco",
    about="rounds: each batch is computed r times, and the exact mean over all is decoded",
    condition=draco.CONDITION,
    link=("collect", "broadcast"),
    source="Chen et al. 2018",
    parameters=draco.PARAMETERS,
    has_rule=False,
    check=draco.check,
)
protocol(
    "async",
    about="asynchronous: every gradient is a step at once",
    link=("take", "reply"),
    source="Dean et al. 2012",
    has_rule=False,
    robust=False,
    reasons=("not finite",),
)
protocol(
    "basgd",
    about="asynchronous: gradients are averaged in buffers, and the buffers aggregated by the rule",
    condition="n >= buffers",
    link=("take", "reply"),
    source="Yang and Li 2021",
    parameters={"buffers": None, "reassign_s": 10.0},
    rule_n="buffers (2f + 1 if not given)",
    check=_check_basgd,
    rows=num_buffers,
    reasons=("not finite", "reassigned"),
    innocent=("reassigned",),
)
protocol(
    "zeno++",
    about="asynchronous: a gradient is a step if validation data agree with its direction",
    condition="f < n, and validation data",
    link=("take", "reply"),
    source="Xie et al. 2020",
    parameters={"gamma": None, "rho": 1e-3, "epsilon": 0.0, "refresh": 10, "batch": 128},
    has_rule=False,
    needs_validation=True,
    check=_check_zenopp,
    reasons=("not finite", "zero", "score"),
)
protocol(
    "kardam",
    about="asynchronous: a gradient is a step if it changes no faster than others', dampened",
    condition="n >= 3f + 1",
    link=("take", "reply"),
    source="Damaskinos et al. 2018",
    parameters={"dampening": "inverse", "alpha": 0.2, "frequency": "strict"},
    has_rule=False,
    check=_check_kardam,
    reasons=("not finite", "no coefficient", "lipschitz", "frequency"),
    innocent=("no coefficient", "frequency"),
)
