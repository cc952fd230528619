"""Conditions of rules, such as "n >= 2f + 3": how many gradients tolerate f Byzantine ones."""

from __future__ import annotations

import re
from dataclasses import dataclass

from aggregathor.errors import UserError


@dataclass(frozen=True)
class Condition:
    """The condition ``n >= a f + b`` of a rule. ``a = 0``: it tolerates no Byzantine row at all."""

    a: int
    b: int

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Reads ``"n >= 2f + 3"``, ``"n >= 4f+3"`` or ``"n >= 1"``."""
        found = re.fullmatch(r"\s*n\s*>=\s*(?:(\d*)\s*f)?\s*\+?\s*(\d+)?\s*", text)
        if not found or (found[1] is None and found[2] is None):
            raise UserError(f"a condition reads like 'n >= 2f + 3', got {text!r}")
        a = 0 if found[1] is None else int(found[1] or 1)
        return cls(a, int(found[2] or 0))

    def __str__(self) -> str:
        factor = "" if self.a == 1 else str(self.a)
        return f"n >= {factor}f + {self.b}" if self.a else f"n >= {self.b}"

    def implies(self, other: Condition) -> bool:
        """Whether the other holds for every f >= 0 for which this one does."""
        return self.a >= other.a and self.b >= other.b

    def refusal(self, name: str, n: int, f: int, *, what: str = "needs") -> str:
        """Says that n gradients are too few, and what to do."""
        remedy = remedy_of(self.least_n(f) - n, self.largest_f(n) if self.a else None)
        return f"{name} {what} {self} gradients; f={f} needs {self.least_n(f)}, got {n}. {remedy}."

    def least_n(self, f: int) -> int:
        """The smallest number of gradients that tolerates f Byzantine ones."""
        return self.a * f + self.b

    def largest_f(self, n: int) -> int | None:
        """The largest number of Byzantine gradients among n; None where n is too small for any."""
        if n < self.b:
            return None
        return (n - self.b) // self.a if self.a else 0


def remedy_of(missing: int, largest_f: int | None) -> str:
    """Returns what to do where so many workers are missing; None: no f would do."""
    remedy = f"Start {missing} more worker{'s' if missing > 1 else ''}"
    return remedy if largest_f is None else f"{remedy} or declare f={largest_f}"
