"""Errors that a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """A mistake in what the user asked for; the message says what was found and what to do.

    Command lines print the message alone, without a traceback, and exit with status 2.
    """

    # AutoGraph re-raises what a tf.function raises as the same type only where the constructor is
    # this one; else a caller's `except ValueError` would miss it.
    __init__ = Exception.__init__


class UnknownNameError(UserError, KeyError):
    """A name that is in no registry; the message lists the names that are near."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


def near(name: str, known: Iterable[str]) -> str:
    """Returns ``did you mean 'a' or 'b'?``, or the whole list where nothing is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "known: " + ", ".join(known) + "."


class Registry(Mapping[str, T]):
    """A read-only mapping from name to value whose ``KeyError`` names what is near."""

    def __init__(
        self, kind: str, values: Mapping[str, T], load: Callable[[str], T | None] | None = None
    ) -> None:
        """Shows ``values`` as they stand.

        Args:
          kind: the word for errors, "rule" or "attack".
          values: what there is, and what will be.
          load: makes a value for a name that is not among them, or returns None.
        """
        self._kind = kind
        self._values = values
        self._load = load

    def __getitem__(self, name: str) -> T:
        try:
            return self._values[name]
        except KeyError:
            made = self._load(name) if self._load is not None else None
            if made is not None:
                return made
            message = f"no {self._kind} is called {name!r}: {near(str(name), self._values)}"
            raise UnknownNameError(message) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<{self._kind} registry: {', '.join(self._values)}>"
