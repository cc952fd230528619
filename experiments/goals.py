"""A figure, and what it was to be."""

from __future__ import annotations

from dataclasses import dataclass

HEADER = (
    "| goal | unit | must | stretch | measured | met |",
    "| --- | --- | --- | --- | --- | --- |",
)


@dataclass(frozen=True)
class Goal:
    """A row of a table; ``got`` is None where it could not be measured."""

    name: str
    must: float
    stretch: float
    got: float | None
    unit: str
    more_is_better: bool = False

    def row(self) -> str:
        """Returns the row."""
        got = "" if self.got is None else f"{self.got:.4g}"
        numbers = f"{self.must:g} | {self.stretch:g} | {got}"
        return f"| {self.name} | {self.unit} | {numbers} | {self.verdict()} |"

    def verdict(self) -> str:
        """Returns what became of it."""
        if self.got is None:
            return "not measured"
        if self._meets(self.stretch):
            return "stretch"
        return "yes" if self._meets(self.must) else "**missed**"

    def _meets(self, limit: float) -> bool:
        assert self.got is not None
        return self.got >= limit if self.more_is_better else self.got <= limit
