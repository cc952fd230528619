"""A rule on trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from aggregathor.gars import GARS, Condition, Gar
from aggregathor.testing.stacks import DTYPES, told


class RaisedError(Exception):
    """The rule did not give a gradient at all; the message is the failure."""


class SkippedError(Exception):
    """A clause cannot be tried on this rule; the message is the reason."""


@dataclasses.dataclass
class Subject:
    """A rule on trial, and what to try on it. ``Subject.of`` fills in what is known of a rule."""

    gar: Callable[..., Any]
    name: str
    condition: Condition
    robust: bool = True
    tolerates_missing: bool = True
    needs_validation: bool = False
    dtypes: tuple[str, ...] = DTYPES
    largest_n: int = 100
    seed: int = 0
    equivariant: bool = True
    ties: bool = True
    threads: bool = True
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    num_stacks: int = 0
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls, gar: Callable[..., Any], condition: str | Condition | None = None, **fields: Any
    ) -> Subject:
        """Makes a subject of a rule; a field that is None is the rule's own or the default."""
        known = next((rule for rule in GARS.values() if gar in (rule, rule.function)), None)
        known = gar if isinstance(gar, Gar) else known
        needed = condition or (known.condition if known else "n >= 2f + 3")
        own: dict[str, Any] = {
            "name": getattr(known or gar, "name", getattr(gar, "__name__", repr(gar))),
            "condition": Condition.parse(needed) if isinstance(needed, str) else needed,
            "robust": known.robust if known else True,
            "tolerates_missing": known is None or known.name != "average",
            "needs_validation": known is not None and known.needs_validation,
        }
        own["name"] = "the rule" if own["name"] == "<lambda>" else own["name"]
        given = {key: value for key, value in fields.items() if value is not None}
        return cls(gar, **own | given)

    def __call__(self, stack_nd: np.ndarray, f: int) -> np.ndarray:
        """What the rule gives for a tensor of these values, shape [d] for sure."""
        return self.run(self.gar, tf.constant(stack_nd), f)

    def run(
        self, gar: Callable[..., Any], stack_nd: tf.Tensor | np.ndarray, f: int, where: str = ""
    ) -> np.ndarray:
        """Returns what ``gar``, a form of the rule, makes of this object; errors say ``where``."""
        self.num_stacks += 1
        expected = f"{told(stack_nd, f)}{where}: expected a gradient"
        try:
            grad_d = np.asarray(gar(stack_nd, f=f, **self.parameters))
        except Exception as error:
            raise RaisedError(f"{expected}, found {in_short(error)}") from error
        if grad_d.shape != (stack_nd.shape[1],):
            raise RaisedError(f"{expected} of shape {stack_nd.shape[1:]}, found {grad_d.shape}")
        return grad_d

    def rng(self) -> np.random.Generator:
        """A generator of its own for each clause, so that clauses do not depend on each other."""
        return np.random.default_rng(self.seed)

    def smallest(self) -> list[tuple[int, int]]:
        """The smallest (n, f) that the condition allows."""
        if self.condition.a == 0:
            return [(max(1, self.condition.b), 0), (max(3, self.condition.b), 0)]
        return [(self.condition.least_n(f), f) for f in (1, 2)]

    def roomy(self) -> tuple[int, int]:
        """Many rows and a third of the f that they tolerate, so that some may be lost as well."""
        n = max(self.largest_n, self.condition.least_n(1))
        return n, ((self.condition.largest_f(n) or 0) + 2) // 3


def in_short(error: Exception) -> str:
    """The type and the last line, where TensorFlow says what happened."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1].strip()}"
