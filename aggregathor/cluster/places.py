"""Where each side of a job is: sides that are at different places would wait for ever.

All ranks apply to the same variables in the same order. Where a script chooses differently on its
ranks, by chance say, the server waits in the rounds of one list of variables for the gradient of a
worker that waits in the rounds of another for a model. So while the server waits it says where, and
a worker that waits compares that with its own place. A worker's word is not asked for: it could end
the job by it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Protocol

from aggregathor.cluster.ranks import Ranks
from aggregathor.errors import UserError

_MOST_LETTERS = 120  # of a list of names


class _Half(Protocol):
    round: int


class Places:
    """The halves that were opened, by number, and what each is about.

    Attributes:
      names: of the variables of each.
    """

    def __init__(self, ranks: Ranks, halves: Sequence[_Half]) -> None:
        """Begins with no names; ``halves`` grows as they are opened."""
        self._ranks = ranks
        self._halves = halves
        self.names: list[list[str]] = []

    def tell(self, half: int) -> None:
        """Server: tells the workers that it waits in a round of a half; from any thread."""
        self._ranks.tell_place([half, *(each.round for each in self._halves)])

    def compare(self, half: int | None) -> None:
        """Worker: compares the server's place with its own.

        Args:
          half: in which it waits for an answer; None where it is about to open one.
        Raises:
          UserError: the server waits in another, and neither can go on.
        """
        for theirs, *rounds in self._ranks.server_places():
            if theirs == half or max(theirs, half or 0) >= min(len(self._halves), len(rounds)):
                continue
            waits_for_me = self._halves[theirs].round <= rounds[theirs]
            has_answered = half is not None and rounds[half] > self._halves[half].round
            if waits_for_me and not has_answered:
                raise self.apart(half, self.names[theirs])

    def apart(self, half: int | None, theirs: Sequence[str]) -> UserError:
        """Worker: returns the error of being in a half, or None, and the server in another.

        Args:
          half: as in ``compare``.
          theirs: names of the variables that the server trains.
        """
        rank = self._ranks.rank
        if half is None:
            here, there = "begins with other variables", _listed(theirs)
        else:
            own = self.names[half]
            here = f"waits to train {_listed(_without(own, theirs))}"
            there = _listed(_without(theirs, own))
            if here.endswith(there):
                there = "them by another optimizer"
        return UserError(
            f"rank {rank} {here}, and the server waits for it to train {there}. All ranks must "
            "train the same variables in the same order: choose alike on all of them, as by a "
            "generator with the same seed that nothing else draws from."
        )


def _without(names: Sequence[str], others: Sequence[str]) -> Sequence[str]:
    """Returns the names that are not among others; all where there are none."""
    return [name for name in names if name not in others] or names


def _listed(names: Sequence[str]) -> str:
    return textwrap.shorten(", ".join(names), _MOST_LETTERS, placeholder=" ...") or "others"
