"""Logs which workers keep a server's rounds waiting, as it happens."""

from __future__ import annotations

import logging

from lossympi import RoundStats, Topology

_logger = logging.getLogger(__name__)
_LONG_S = 1.0  # for a round to wait


class Attendance:
    """Logs who kept a round waiting, who is waited for no longer, and who is back."""

    def __init__(self, topology: Topology) -> None:
        """Starts with all workers present."""
        self._names = topology.describe_rows
        self._away: set[int] = set()  # rows that are not waited for, which was logged

    def arrived(self, stats: RoundStats) -> None:
        """Adds a round that was closed."""
        absent = [row for row, w in enumerate(stats.workers) if w.live and w.delivered == 0]
        if absent and stats.closed_by == "deadline" and stats.elapsed_s >= _LONG_S:
            _logger.warning(
                "round %d has waited %.0f s for %s",
                stats.round,
                stats.elapsed_s,
                self._names(absent),
            )
        away = {row for row, worker in enumerate(stats.workers) if not worker.live}
        for level, rows, what in (
            (logging.WARNING, away - self._away, "silent, and waited for no longer"),
            (logging.INFO, self._away - away, "back"),
        ):
            if rows:
                be = "is" if len(rows) == 1 else "are"
                who = self._names(sorted(rows))
                _logger.log(level, "%s %s %s in round %d", who, be, what, stats.round)
        self._away = away
