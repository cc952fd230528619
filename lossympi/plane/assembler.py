"""Puts the datagrams of a round where they belong. Knows neither socket nor clock."""

from collections.abc import Sequence

import numpy as np

from lossympi.link import check_array
from lossympi.plane.packet import FLOAT_BYTES, decode_floats

ACCEPTED = "accepted"


class Assembler:
    """The rows of one round at a time, and which datagrams of them are there.

    Attributes:
      c: datagrams of a row.
      round: the open round, 0 if none is.
      closed_round: the round up to which nothing is taken any more; 0 at the start.
      whole: the datagrams that have arrived in all rows, in the order in which they came to do so.
    """

    def __init__(self, dim: int, num_rows: int, floats_per_datagram: int, wire: str) -> None:
        """Starts with no round open: every round is yet to come."""
        self.c = -(-dim // floats_per_datagram)
        self.round = 0
        self.closed_round = 0
        self._dim = dim
        self._num_rows = num_rows
        self._k = floats_per_datagram
        self._wire = wire
        self._rows: Sequence[np.ndarray] | np.ndarray = ()
        self._arrived_nc = np.zeros((num_rows, self.c), bool)
        self.whole: list[int] = []

    def open(self, round: int, rows: Sequence[np.ndarray] | np.ndarray) -> None:
        """Opens a later round, to be written to `rows`, [n, d] or n of [d]; drops an open one.

        Raises:
          ValueError: the round is not later than all before, or the rows do not fit.
        """
        self.check(round, rows)
        self._rows = rows
        self._arrived_nc[:] = False
        self.whole = []
        self.round = round
        self.closed_round = round - 1

    def check(self, round: int, rows: Sequence[np.ndarray] | np.ndarray) -> None:
        """Raises ValueError as `open` does."""
        newest = max(self.round, self.closed_round)
        if round <= newest:
            raise ValueError(
                f"rounds must increase; {newest} has been opened, got {round}. Name a later one."
            )
        if len(rows) != self._num_rows:
            raise ValueError(f"{self._num_rows} rows are needed, got {len(rows)}. Pass them all.")
        for row_d in rows:
            check_array("a row", row_d, np.float32, (self._dim,))

    def close(self) -> None:
        """Closes the open round, if any; its rows are let go and never written again."""
        self.closed_round = max(self.closed_round, self.round)
        self.round = 0
        self._rows = ()

    def accept(self, row: int, round: int, seq: int, total: int, payload: bytes) -> str:
        """Writes a DATA datagram to its place.

        Returns:
          "accepted", or the first of "malformed", "early", "late" and "duplicate" that applies;
          then nothing has been written.
        """
        if not self.is_well_formed(round, seq, total, payload):
            return "malformed"
        if (standing := self.standing(round)) is not None:
            return standing
        if self._arrived_nc[row, seq]:
            return "duplicate"
        values = decode_floats(payload, self._wire)
        self._rows[row][seq * self._k : seq * self._k + len(values)] = values
        self._arrived_nc[row, seq] = True
        if self._arrived_nc[:, seq].all():
            self.whole.append(seq)
        return ACCEPTED

    def is_well_formed(self, round: int, seq: int, total: int, payload: bytes) -> bool:
        """Returns whether a DATA datagram is one of some round's c, and as long as that one is."""
        if round < 1 or total != self.c or seq >= self.c:
            return False
        num_floats = min(self._k, self._dim - seq * self._k)
        return len(payload) == num_floats * FLOAT_BYTES[self._wire]

    def standing(self, round: int) -> str | None:
        """Returns "early", "late", or None for the open round."""
        if round <= self.closed_round:
            return "late"
        return None if round == self.round else "early"

    def missing(self, row: int) -> int:
        """Returns how many datagrams of the row are not there."""
        return self.c - int(np.count_nonzero(self._arrived_nc[row]))

    def arrived(self, row: int) -> np.ndarray:
        """Returns which datagrams of the row are there, bool [c], a copy; also after `close`."""
        return self._arrived_nc[row].copy()
