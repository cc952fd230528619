"""The protocols by name: what each needs, known without TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aggregathor.compositions import check_names
from aggregathor.errors import Registry, UserError
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
    """

    name: str
    about: str
    link: tuple[str, ...]
    source: str
    condition: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    has_rule: bool = True
    _check: Callable[..., None] | None = None

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


def protocol(name: str, *, check: Callable[..., None] | None = None, **known: Any) -> None:
    """Registers a protocol.

    Args:
      name: unique, in lower case with hyphens.
      check: ``check(n=, f=, **parameters)`` raises ``UserError`` where it cannot work.
      **known: the other attributes of ``Protocol``.
    """
    _REGISTERED[name] = Protocol(name=name, _check=check, **known)


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
