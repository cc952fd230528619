"""What ranks do together, such that the failure of one is the failure of all, in the same words."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, cast

from lossympi.messages import MOST_CHARACTERS, MessageError, plain, printable, read, shown
from lossympi.topology import ROOT

_T = TypeVar("_T")


class Communicator(Protocol):
    """What collectives are made of.

    Attributes:
      rank: of this process.
      size: how many ranks there are.
    """

    rank: int
    size: int

    def allgather(self, value: Any) -> list[Any]:
        """Returns every rank's value, of what JSON knows, in the order of ranks; collective."""


class Collectives:
    """Collective calls: every rank makes the same ones, in the same order.

    What a rank says is plain data, and is compared with the type that it must have before it is
    used: what does not fit is an error on all ranks, which names the rank and the part.

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

    def allgather(self, value: Any, kind: Any = Any) -> list[Any]:
        """Returns every rank's value.

        Args:
          value: what ``messages.plain`` takes.
          kind: the type of each, as ``messages.read`` has it; by default as JSON has it.
        Raises:
          the error of this object: a rank's value is of another type.
        """
        return self._gather("value", value, kind)

    def bcast(self, value: Any, kind: Any = Any) -> Any:
        """Returns rank 0's value; what the others pass is ignored."""
        everyones = self._gather("broadcast", value if self.rank == ROOT else None, Any)
        return read(kind, everyones[ROOT])

    def each(self, step: Callable[[], _T], kind: Any = Any) -> list[_T]:
        """Runs a step on every rank; returns what it gave on each, of a type.

        Raises:
          the error of this object: the step failed somewhere, or gave something else.
        """
        result, failure = self._try(step)
        everyones = self._gather("results", (result, _words_of(failure)), tuple[Any, str | None])
        self._check([words for _, words in everyones], failure)
        return self._read_all([result for result, _ in everyones], kind)

    def together(self, step: Callable[[], _T]) -> _T:
        """Runs a step on every rank; returns what it gave on this one, which need not travel.

        Raises:
          the error of this object: the step failed somewhere.
        """
        result, failure = self._try(step)
        self._check(self._gather("failures", _words_of(failure), str | None), failure)
        return cast(_T, result)

    def agree(self, name: str, value: Any) -> None:
        """Compares a value, of what JSON knows, with that of rank 0; of a mapping by its keys.

        Raises:
          the error of this object: they differ.
        """
        values = self._gather(name, json.loads(json.dumps(value, default=_plain)), Any)
        for rank, other in enumerate(values):
            if other != values[ROOT]:
                raise self._error(
                    f"all ranks must have the same {name}; "
                    f"{_difference(rank, values[ROOT], other)}. Do all hosts run the same script, "
                    "version and command line?"
                )

    def _gather(self, what: str, value: Any, kind: Any) -> list[Any]:
        """Returns every rank's value, if all ranks are at the same call."""
        everyones = self._read_all(
            self._comm.allgather(plain((what, value))), tuple[str, Any], "what it sends"
        )
        servers = everyones[ROOT][0]
        for rank, (theirs, _) in enumerate(everyones):
            if theirs != servers:
                raise self._error(
                    f"rank {rank} is at {theirs!r} of what all ranks do together, and rank {ROOT} "
                    f"at {servers!r}. Do all hosts run the same script and version?"
                )
        return self._read_all([value for _, value in everyones], kind, what)

    def _read_all(self, values: list[Any], kind: Any, where: str = "its result") -> list[Any]:
        found, failures = [], {}
        for rank, value in enumerate(values):
            try:
                found.append(read(kind, value, where))
            except MessageError as error:
                failures[rank] = f"{error}"
        if failures:
            raise self._error(self._describe(failures))
        return found

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
    return None if failure is None else f"{failure}"[:MOST_CHARACTERS] or type(failure).__name__


def _plain(value: Any) -> Any:
    """Returns what stands for a value that JSON does not know: of a NumPy number, the number."""
    return value.item() if hasattr(value, "item") else repr(value)


def _difference(rank: int, first: Any, other: Any) -> str:
    if not (isinstance(first, dict) and isinstance(other, dict)):
        return f"rank {ROOT} has {shown(first)} and rank {rank} has {shown(other)}"
    keys = [key for key in {**first, **other} if first.get(key) != other.get(key)]
    pairs = ", ".join(
        f"{name}={shown(first.get(key))} and {name}={shown(other.get(key))}"
        for key, name in ((key, printable(key, 80)) for key in keys)
    )
    return printable(f"rank {ROOT} and rank {rank} have {pairs}")
