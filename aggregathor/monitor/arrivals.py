"""Figures of each worker where gradients come one by one: what was accepted, and how stale."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from aggregathor import files
from aggregathor.monitor.figures import summary_of
from aggregathor.protocols.arrivals import ArrivalReport


def columns_of(reasons: Sequence[str]) -> tuple[str, ...]:
    """Returns the header of the CSV of a protocol that rejects for these reasons."""
    figures = ("arrivals", "accepted", "staleness", "most_stale", "dropped")
    return ("step", "worker", *figures, *(reason.replace(" ", "_") for reason in reasons))


class ArrivalMonitor:
    """Appends to a CSV and writes TensorBoard scalars ``worker_07/accepted``, ... for each worker.

    Of the arrivals since the last row:

    - arrivals: how many gradients came of the worker.
    - accepted: the share of them that is used, at once or in a later step; NaN of none.
    - staleness: mean number of updates made since the worker was given its model; NaN of none.
    - most_stale: the largest.
    - dropped: how many messages the link dropped.
    - then, for each reason of the protocol, how many gradients were rejected for it.

    Attributes:
      path: of the CSV.
      columns: its header.
    """

    def __init__(
        self,
        path: Path,
        num_workers: int,
        reasons: Sequence[str],
        writer: tf.summary.SummaryWriter,
    ) -> None:
        """Appends to ``path``, which has its header, and to ``writer``."""
        self.path = path
        self._reasons = tuple(reasons)
        self.columns = columns_of(self._reasons)
        self._writer = writer
        self._last: ArrivalReport | None = None
        self._arrivals_n = np.zeros(num_workers, np.int64)
        self._staleness_n = np.zeros(num_workers, np.int64)
        self._most_stale_n = np.zeros(num_workers, np.int64)
        self._rejected_nr = np.zeros((num_workers, len(self._reasons)), np.int64)

    def state(self) -> dict[str, np.ndarray]:
        """Returns the sums of the arrivals since the last row."""
        return {
            "arrivals": self._arrivals_n.copy(),
            "staleness": self._staleness_n.copy(),
            "most_stale": self._most_stale_n.copy(),
            "rejected": self._rejected_nr.copy(),
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues from what ``state`` returned."""
        self._arrivals_n = np.array(state["arrivals"])
        self._staleness_n = np.array(state["staleness"])
        self._most_stale_n = np.array(state["most_stale"])
        self._rejected_nr = np.array(state["rejected"])

    def record(self, report: ArrivalReport) -> None:
        """Adds an arrival. O(1)."""
        row = report.row
        self._last = report
        self._arrivals_n[row] += 1
        self._staleness_n[row] += report.staleness
        self._most_stale_n[row] = max(self._most_stale_n[row], report.staleness)
        if report.why:
            self._rejected_nr[row, self._reasons.index(report.why)] += 1

    def write(self, step: int, report: ArrivalReport) -> None:
        """Writes a row per worker for the arrivals since the last row. O(n)."""
        arrivals_n = self._arrivals_n
        came_n = np.where(arrivals_n > 0, arrivals_n, np.nan)
        accepted_n = 1 - self._rejected_nr.sum(axis=1) / came_n
        dropped = [sum(each.values()) for each in report.dropped()]
        figures = zip(
            arrivals_n.tolist(),
            accepted_n.tolist(),
            (self._staleness_n / came_n).tolist(),
            self._most_stale_n.tolist(),
            dropped,
            *self._rejected_nr.T.tolist(),
            strict=True,
        )
        rows = [dict(zip(self.columns[2:], row, strict=True)) for row in figures]
        text = io.StringIO(newline="")  # in one piece: a process that is killed leaves whole rows
        for worker, row in enumerate(rows):
            shown = [v if isinstance(v, int) else f"{v:.6g}" for v in row.values()]
            csv.writer(text).writerow([step, worker, *shown])
        with files.appending(self.path) as file:
            file.write(text.getvalue())
        with self._writer.as_default(step=step):
            tf.summary.experimental.write_raw_pb(summary_of(rows).SerializeToString())
        self._writer.flush()
        self._last = None
        for sums in (arrivals_n, self._staleness_n, self._most_stale_n, self._rejected_nr):
            sums.fill(0)

    def write_rest(self, step: int) -> None:
        """Writes rows for the arrivals since the last row, if any."""
        if self._last is not None:
            self.write(step, self._last)
