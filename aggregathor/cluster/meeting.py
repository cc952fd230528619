"""Collectives of the ranks that end where one of them cannot come: what MPI's own never do."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from aggregathor.cluster.ranks import Ranks, SlowWaitWarning
from aggregathor.errors import UserError
from lossympi import mpi
from lossympi.collectives import Collectives
from lossympi.topology import ROOT

_COME, _ANSWER = 6, 7  # tags, beside those of `ranks.py`
_POLL_S = 1e-3


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
        super().__init__(ranks.comm, UserError, catches=UserError, describe=_first_failure)
        self._ranks = ranks
        self._limit_s = limit_s

    def allgather(self, value: Any) -> list[Any]:
        """Returns every rank's value; collective.

        Raises:
          UserError: on every rank that is there, if one cannot come.
          TrainingEnded: on a worker, if the server has ended.
        """
        if self._ranks.is_server:
            values, failure = self._collect(value)
            self._ranks.send_object((values, failure), self._ranks.topology.worker_ranks, _ANSWER)
        else:
            self._ranks.send_object(value, [ROOT], _COME)
            self._ranks.wait(self._has_answer, "the server and the other ranks, to begin")
            values, failure = self._ranks.comm.recv(source=ROOT, tag=_ANSWER)
        if failure:
            raise UserError(failure) if self._ranks.is_server else SaidByServerError(failure)
        return values

    def Dup(self) -> Any:
        """Returns a duplicate of the communicator; collective."""
        self.allgather(None)
        return self._ranks.comm.Dup()

    def _has_answer(self) -> bool:
        return self._ranks.is_there(ROOT, _ANSWER)

    def _collect(self, own: Any) -> tuple[list[Any], str]:
        """Returns every rank's value, and why there are none."""
        values: dict[int, Any] = {self.rank: own}
        until = time.monotonic() + self._limit_s
        missing: list[int] = []
        warning = SlowWaitWarning(self.rank, lambda: f"rank {_listed(missing)} to begin")
        while True:
            missing[:] = [rank for rank in range(self.size) if rank not in values]
            if not missing:
                return [values[rank] for rank in range(self.size)], ""
            for rank in missing:
                try:
                    if self._ranks.comm.iprobe(source=rank, tag=_COME):
                        values[rank] = self._ranks.comm.recv(source=rank, tag=_COME)
                    elif self._ranks.says_goodbye(rank):
                        return [], _gone(rank, "has ended its script")
                except mpi.import_mpi().Exception:
                    return [], _gone(rank, "has died")
            if time.monotonic() > until:
                return [], (
                    f"rank {_listed(missing)} has not come as far as the others within "
                    f"{self._limit_s:g} s: if its script does the same, raise start_s"
                )
            warning.look()
            time.sleep(_POLL_S)


def _first_failure(failures: Mapping[int, str]) -> str:
    """Returns what the first rank that failed has to say; of the server without its number."""
    rank, words = next(iter(failures.items()))
    return words if rank == ROOT else f"rank {rank}: {words}"


def _gone(rank: int, how: str) -> str:
    return (
        f"rank {rank} {how}, and the training begins with all ranks. Its own output says why; "
        "start again with one worker fewer if it cannot be mended."
    )


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))
