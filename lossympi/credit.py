"""For how long broadcasts may wait for a worker: a rule without a clock (``WIRE.md``)."""

from __future__ import annotations

import math


class Credit:
    """How much longer than for most of them broadcasts may wait for each worker.

    A row's overtime is the time for which it was waited for although most were done. In all it may
    cost what the row has at the start, `most_s`, and 1 / 2n of the time that passes. A row that has
    used up more than it had is in debt, and is not waited for. So fewer than n/2 rows, whatever
    they do, make a job less than 4/3 as long, beside what they have at the start.
    """

    def __init__(self, num_rows: int) -> None:
        """Starts with as much as there may be."""
        self._share = 1.0 / (2.0 * num_rows)
        self._credit_s = [math.inf] * num_rows
        self._refilled_at = 0.0

    def refill(self, most_s: float, now: float) -> None:
        """Notes that time has passed; nobody has more than `most_s` now."""
        more_s = (now - self._refilled_at) * self._share
        self._credit_s = [min(most_s, credit_s + more_s) for credit_s in self._credit_s]
        self._refilled_at = now

    def in_debt(self, row: int) -> bool:
        """Returns whether a row is not waited for."""
        return self._credit_s[row] < 0

    def charge(self, row: int, overtime_s: float) -> None:
        """Takes a row's overtime off its credit."""
        self._credit_s[row] -= overtime_s
