"""Which rank has which role, and which row of a stack a worker has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# The rank of MPI that introduces all others to each other at the start, and prints for all.
ROOT = 0


@dataclass(frozen=True)
class Topology:
    """Servers are the ranks 0..S-1, workers the ranks S..S+n-1; worker w has row w of every stack.

    Attributes:
      servers: S, at least 1.
      workers: n, at least 1.
    Raises:
      ValueError: there is no server or no worker.

    >>> Topology(servers=2, workers=3).row_of(4)
    2
    """

    servers: int
    workers: int

    def __post_init__(self) -> None:
        """Checks that both roles are there."""
        if self.servers < 1 or self.workers < 1:
            raise ValueError(
                f"a job needs at least 1 server and 1 worker, got {self.servers} and "
                f"{self.workers}. Start more ranks."
            )

    @classmethod
    def of_size(cls, size: int, servers: int = 1) -> Topology:
        """Returns the topology of a communicator of `size` ranks, S + n."""
        return cls(servers, size - servers)

    @property
    def size(self) -> int:
        """How many ranks there are, S + n."""
        return self.servers + self.workers

    @property
    def server_ranks(self) -> range:
        """The ranks of the servers, ascending."""
        return range(self.servers)

    @property
    def worker_ranks(self) -> range:
        """The ranks of the workers, in the order of their rows."""
        return range(self.servers, self.size)

    def is_server(self, rank: int) -> bool:
        """Returns whether a rank is a server's; the others are workers'."""
        return rank < self.servers

    def row_of(self, rank: int) -> int:
        """Returns the row of a worker, 0..n-1.

        Raises:
          ValueError: the rank is no worker's.
        """
        if rank not in self.worker_ranks:
            raise ValueError(f"workers are the ranks {_range(self.worker_ranks)}, got rank {rank}.")
        return rank - self.servers

    def rank_of(self, row: int) -> int:
        """Returns the rank of the worker that has a row.

        Raises:
          ValueError: no worker has it.
        """
        if not 0 <= row < self.workers:
            raise ValueError(f"rows are {_range(range(self.workers))}, got row {row}.")
        return self.servers + row

    def peers_of(self, rank: int) -> range:
        """Returns the ranks of the other role: those that a rank exchanges vectors with."""
        return self.worker_ranks if self.is_server(rank) else self.server_ranks

    def describe(self, rank: int) -> str:
        """Returns such as "the server (rank 0)", "server 1 (rank 1)" or "worker 3 (rank 4)"."""
        if not self.is_server(rank):
            return f"worker {self.row_of(rank)} (rank {rank})"
        return f"{'the server' if self.servers == 1 else f'server {rank}'} (rank {rank})"

    def describe_rows(self, rows: Iterable[int]) -> str:
        """Returns such as "worker 3 (rank 4)" or "workers 0, 3 (ranks 1, 4)".

        For no row it is "no worker in particular".
        """
        rows = [int(row) for row in rows]
        if not rows:
            return "no worker in particular"
        many = "s" if len(rows) > 1 else ""
        ranks = ", ".join(str(self.rank_of(row)) for row in rows)
        return f"worker{many} {', '.join(map(str, rows))} (rank{many} {ranks})"


def _range(numbers: range) -> str:
    return f"{numbers[0]}..{numbers[-1]}"
