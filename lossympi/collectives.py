"""What ranks do together, such that the failure of one is the failure of all, in the same words."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, cast

from lossympi.topology import ROOT

_T = TypeVar("_T")


class Communicator(Protocol):
    """What collectives are made of; an mpi4py communicator is one.

    Attributes:
      rank: of this process.
      size: how many ranks there are.
    """

    rank: int
    size: int

    def allgather(self, value: Any) -> list[Any]:
        """Returns every rank's value, in the order of ranks; collective."""


class Collectives:
    """Collective calls: every rank makes the same ones, in the same order.

    Attributes:
      rank: of this process.
      size: how many ranks there are.
    """

    def __init__(
        self,
        comm: Communicator,
        error: type[Exception],
        *,
        catches: type[Exception] = Exception,
        describe: Callable[[Mapping[int, str]], str] | None = None,
    ) -> None:
        """Uses a communicator.

        Args:
          comm: it.
          error: what is raised, on every rank.
          catches: the failures of a step that the others hear of; any other is raised on its own
            rank only.
          describe: what to say of failures, by rank; "rank 1, 2: no room" if not given.
        """
        self.rank = comm.rank
        self.size = comm.size
        self._comm = comm
        self._error = error
        self._catches = catches
        self._describe = describe or describe_failures

    def allgather(self, value: Any) -> list[Any]:
        """Returns every rank's value; all that travels does so here."""
        return self._comm.allgather(value)

    def bcast(self, value: Any) -> Any:
        """Returns rank 0's value; what the others pass is ignored."""
        return self.allgather(value if self.rank == ROOT else None)[ROOT]

    def each(self, step: Callable[[], _T]) -> list[_T]:
        """Runs a step on every rank; returns what it gave on each.

        Raises:
          the error of this object: the step failed somewhere.
        """
        result, failure = self._try(step)
        everyones = self.allgather((result, _words_of(failure)))
        self._check([words for _, words in everyones], failure)
        return [result for result, _ in everyones]

    def together(self, step: Callable[[], _T]) -> _T:
        """Runs a step on every rank; returns what it gave on this one, which need not travel.

        Raises:
          the error of this object: the step failed somewhere.
        """
        result, failure = self._try(step)
        self._check(self.allgather(_words_of(failure)), failure)
        return cast(_T, result)

    def agree(self, name: str, value: Any) -> None:
        """Compares a value, of what JSON knows, with that of rank 0; of a mapping by its keys.

        Raises:
          the error of this object: they differ.
        """
        values = [
            json.loads(text)
            for text in self.allgather(json.dumps(value, sort_keys=True, default=_plain))
        ]
        for rank, other in enumerate(values):
            if other != values[ROOT]:
                raise self._error(
                    f"all ranks must have the same {name}; "
                    f"{_difference(rank, values[ROOT], other)}. Do all hosts run the same script, "
                    "version and command line?"
                )

    def _try(self, step: Callable[[], _T]) -> tuple[_T | None, Exception | None]:
        try:
            return step(), None
        except self._catches as failure:
            return None, failure

    def _check(self, words: list[str | None], own: Exception | None) -> None:
        failures = {rank: said for rank, said in enumerate(words) if said is not None}
        if failures:
            raise self._error(self._describe(failures)) from own


def describe_failures(failures: Mapping[int, str], what: str = "") -> str:
    """Returns such as "rank 1, 2: no room", `what` before the colon; equal words once."""
    ranks = ", ".join(map(str, failures))
    return f"rank {ranks}{what}: {' / '.join(sorted(set(failures.values())))}"


def _words_of(failure: Exception | None) -> str | None:
    return None if failure is None else f"{failure}" or type(failure).__name__


def _plain(value: Any) -> Any:
    """Returns what stands for a value that JSON does not know: of a NumPy number, the number."""
    return value.item() if hasattr(value, "item") else repr(value)


def _difference(rank: int, first: Any, other: Any) -> str:
    if not (isinstance(first, dict) and isinstance(other, dict)):
        return f"rank {ROOT} has {first!r} and rank {rank} has {other!r}"
    keys = [key for key in {**first, **other} if first.get(key) != other.get(key)]
    pairs = ", ".join(f"{key}={first.get(key)!r} and {key}={other.get(key)!r}" for key in keys)
    return f"rank {ROOT} and rank {rank} have {pairs}"
