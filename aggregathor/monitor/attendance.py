"""Who keeps a server's rounds waiting, said as it happens."""

from __future__ import annotations

from aggregathor.log import say
from aggregathor.protocols.report import workers
from lossympi import RoundStats

_LONG_S = 1.0  # for a round to wait


class Attendance:
    """Says who kept a round waiting, who is waited for no longer, and who is back."""

    def __init__(self) -> None:
        """Begins with all workers there."""
        self._away: set[int] = set()  # rows that are not waited for, as has been said

    def arrived(self, stats: RoundStats) -> None:
        """Looks at a round that was closed."""
        absent = [row for row, w in enumerate(stats.workers) if w.live and w.delivered == 0]
        if absent and stats.closed_by == "deadline" and stats.elapsed_s >= _LONG_S:
            say(f"round {stats.round} has waited {stats.elapsed_s:.0f} s for {workers(absent)}")
        away = {row for row, worker in enumerate(stats.workers) if not worker.live}
        for rows, what in (
            (away - self._away, "silent, and waited for no longer"),
            (self._away - away, "back"),
        ):
            if rows:
                be = "is" if len(rows) == 1 else "are"
                say(f"{workers(sorted(rows))} {be} {what} in round {stats.round}")
        self._away = away
