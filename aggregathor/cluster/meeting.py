"""Collectives of the ranks that end where one of them cannot come: what MPI's own never do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aggregathor.cluster.ranks import Ranks, SlowWaitWarning
from aggregathor.errors import UserError
from lossympi import mpi
from lossympi.collectives import Collectives
from lossympi.mpi_collectives import MpiCommunicator, listed
from lossympi.topology import ROOT

_TAGS = 6, 7  # to the server and back, beside those of `ranks.py`


class SaidByServerError(UserError):
    """What the server has to say, which says it for all."""


class Meeting(Collectives):
    """What ranks come together for before the first round; also what ``lossympi.connect`` needs.

    A script may fail on one rank, or be another script there: the others would wait for it in a
    collective for ever. Here the server learns which ranks have died, or have left with an
    error of their own, and informs all that have come.
    """

    def __init__(self, ranks: Ranks, limit_s: float) -> None:
        """Takes over two tags of the ranks' communicator, and how long one may be late."""
        self._way = _Way(ranks, limit_s)
        super().__init__(self._way, UserError, catches=UserError, describe=_first_failure)

    def Dup(self) -> Any:
        """Returns a duplicate of the communicator; collective.

        Raises:
          UserError: on every rank that is there, if one cannot come.
        """
        return self._way.Dup()


class _Way(MpiCommunicator):
    """The messages of a meeting: who has said goodbye does not come, nor does who has died."""

    def __init__(self, ranks: Ranks, limit_s: float) -> None:
        error = UserError if ranks.is_server else SaidByServerError
        super().__init__(ranks.comm, limit_s, error, tags=_TAGS, numbers=ranks.numbers)
        self._ranks = ranks

    def _why_gone(self, rank: int) -> str | None:
        return "has ended its script" if self._ranks.says_goodbye(rank) else None

    def _words_of_gone(self, rank: int, how: str) -> str:
        causes = self._ranks.causes()
        remedy = "start again with one worker fewer if it cannot be mended"
        why = (
            f"{causes[:1].upper()}{causes[1:]}. Mend that, or {remedy}"
            if causes
            else f"Its own output says why; {remedy}"
        )
        return f"rank {rank} {how}, and the training begins with all ranks. {why}."

    def _watch(self) -> Callable[[list[int]], None]:
        missing: list[int] = []
        warning = SlowWaitWarning(self.rank, lambda: f"rank {listed(missing)} to begin")

        def look(ranks: list[int]) -> None:
            missing[:] = ranks
            warning.look()

        return look

    def _await_answer(self, poll: Callable[[], bytearray | None]) -> bytearray:
        found: list[bytearray] = []

        def has_answer() -> bool:
            try:
                message = poll()
            except mpi.import_mpi().Exception:
                raise self._ranks.lost() from None
            found.extend([] if message is None else [message])
            return bool(found)

        self._ranks.wait(has_answer, "the server and the other ranks, to begin")
        return found[0]


def _first_failure(failures: Mapping[int, str]) -> str:
    """Returns what the first rank that failed has to say; of the server without its number."""
    rank, words = next(iter(failures.items()))
    return words if rank == ROOT else f"rank {rank}: {words}"
