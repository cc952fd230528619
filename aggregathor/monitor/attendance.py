"""Logs which workers keep a server's rounds waiting, as it happens."""

from __future__ import annotations

import logging

from lossympi import RoundStats, Topology

_logger = logging.getLogger(__name__)
_LONG_S = 1.0  # for a round to wait
_AGAIN = 1000  # rounds in which a worker was not too late, before it is named again


class Attendance:
    """Logs who kept a round waiting, who is waited for no longer or less, and who is back."""

    def __init__(self, topology: Topology) -> None:
        """Starts with all workers present."""
        self._names = topology.describe_rows
        self._away: set[int] = set()  # rows that are not waited for, which was logged
        self._late_in: dict[int, int] = {}  # the last round in which a row had no allowance

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
        self._log_who_is_too_late(stats)
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

    def _log_who_is_too_late(self, stats: RoundStats) -> None:
        late = [row for row, w in enumerate(stats.workers) if w.live and w.allowance_s == 0]
        new = [r for r in late if stats.round - self._late_in.get(r, -_AGAIN - 1) > _AGAIN]
        self._late_in.update(dict.fromkeys(late, stats.round))
        if new:
            _logger.warning(
                "%s kept others waiting for too long: from round %d on no round is prolonged for "
                "that, until it has been in time",
                self._names(new),
                stats.round,
            )
