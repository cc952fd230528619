"""Figures of each worker: how much the rule used of it, how far off it was, what arrived."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from aggregathor import files
from aggregathor.protocols.report import RoundReport

_SAMPLED = 1 << 14  # coordinates that are kept of a round


class Monitor:
    """Appends to a CSV and writes TensorBoard scalars ``worker_07/selected``, ... for each worker.

    - selected: how much of the worker's gradient the rule used, the mean over the rounds since the
      last row: for a rule that selects rows, the share of rounds in which it was selected; for a
      coordinate-wise rule the share of coordinates, sampled at 16384 in large models.
    - distance: Euclidean distance of its gradient to the aggregate in the last round, over the
      coordinates that arrived, scaled by d / their number; inf if it is not finite.
    - delivered: mean share of its coordinates that arrived.
    - late: how many of its messages, or datagrams, arrived after their round was closed.
    - rejected: how many the link rejected; TensorBoard also has ``worker_07/rejected/forged``, ...
      for each reason.
    """

    COLUMNS = ("step", "worker", "selected", "distance", "delivered", "late", "rejected")
    columns = COLUMNS

    def __init__(self, path: Path, num_workers: int, writer: tf.summary.SummaryWriter) -> None:
        """Appends to ``path``, which has its header, and to ``writer``."""
        self.path = path
        self._writer = writer
        self._sums = _Sums(num_workers)
        self._last: tuple[np.ndarray, np.ndarray, int] | None = None  # stack, aggregate, d

    @property
    def rounds(self) -> int:
        """The number of rounds since the last row."""
        return self._sums.rounds

    def state(self) -> dict[str, np.ndarray]:
        """Returns the sums of the rounds since the last row."""
        return self._sums.state()

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues from what ``state`` returned."""
        self._sums.restore(state)

    def record(self, report: RoundReport) -> None:
        """Adds a round. O(n min(d, 16384)): some of it is kept, as it may be the last."""
        self._sums.add(report)
        dim = len(report.grad_d)
        columns = slice(None, None, max(1, math.ceil(dim / _SAMPLED)))
        self._last = report.stack_nd[:, columns].copy(), report.grad_d[columns].copy(), dim

    def write(self, step: int, report: RoundReport) -> None:
        """Writes a row per worker for the rounds since the last row. O(nd)."""
        self._write(step, distances_to(report.stack_nd, report.grad_d))

    def write_rest(self, step: int) -> None:
        """Writes rows for the rounds since the last row, if any.

        The workers may have sent again, over the gradients of the last round: the distances are
        those of 16384 coordinates of it, scaled by sqrt(d / 16384).
        """
        if self._sums.rounds and self._last is not None:
            stack_nd, grad_d, dim = self._last
            self._write(step, distances_to(stack_nd, grad_d) * math.sqrt(dim / len(grad_d)))

    def _write(self, step: int, distance_n: np.ndarray) -> None:
        sums = self._sums
        figures = zip(
            (sums.usage_n / sums.rounds).tolist(),
            distance_n.tolist(),
            (sums.delivered_n / sums.rounds).tolist(),
            sums.late_n.tolist(),
            [counts.total() for counts in sums.rejected],
            strict=True,
        )
        rows = [dict(zip(self.COLUMNS[2:], row, strict=True)) for row in figures]
        # In one piece: a process that is killed leaves whole rows.
        text = io.StringIO(newline="")
        for worker, row in enumerate(rows):
            csv.writer(text).writerow([step, worker, *map(_written, row.values())])
        with files.appending(self.path) as file:
            file.write(text.getvalue())
        for row, counts in zip(rows, sums.rejected, strict=True):
            row.update({f"rejected/{reason}": count for reason, count in counts.items()})
        with self._writer.as_default(step=step):
            tf.summary.experimental.write_raw_pb(summary_of(rows).SerializeToString())
        self._writer.flush()
        sums.clear()


def begin_csv(path: Path, columns: Sequence[str]) -> None:
    """Creates the CSV of a monitor, with its header.

    Raises:
      FileExistsError: it exists.
    """
    with path.open("x", newline="") as file:
        csv.writer(file).writerow(columns)


def distances_to(stack_nd: np.ndarray, grad_d: np.ndarray) -> np.ndarray:
    """Returns each row's Euclidean distance to ``grad_d``, float64 [n]; inf if it is not finite."""
    distance_n = np.empty(len(stack_nd))
    for i, row_d in enumerate(stack_nd):
        with np.errstate(invalid="ignore", over="ignore"):
            difference_d = row_d.astype(np.float64) - grad_d
            present = ~np.isnan(row_d)
            sq_dist = np.sum(np.square(difference_d, out=difference_d), where=present)
        scale = len(row_d) / max(1, int(np.count_nonzero(present)))
        distance_n[i] = np.sqrt(sq_dist * scale) if present.any() else np.inf
    return np.where(np.isfinite(distance_n), distance_n, np.inf)


class _Sums:
    """The sums over the rounds since the last row."""

    def __init__(self, num_workers: int) -> None:
        self._num_workers = num_workers
        self.clear()

    def clear(self) -> None:
        n = self._num_workers
        self.rounds = 0
        self.usage_n = np.zeros(n)
        self.delivered_n = np.zeros(n)
        self.late_n = np.zeros(n, np.int64)
        self.rejected: list[Counter[str]] = [Counter() for _ in range(n)]

    def add(self, report: RoundReport) -> None:
        self.rounds += 1
        self.usage_n += report.usage_n
        self.delivered_n += report.delivered_n
        for i, worker in enumerate(report.stats.workers if report.stats else ()):
            self.late_n[i] += worker.late
            self.rejected[i].update(worker.rejected)

    def state(self) -> dict[str, np.ndarray]:
        rejected = json.dumps(self.rejected).encode()
        return {
            "rounds": np.array(self.rounds),
            "usage": self.usage_n,
            "delivered": self.delivered_n,
            "late": self.late_n,
            "rejected": np.frombuffer(rejected, np.uint8),
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        self.rounds = int(state["rounds"])
        self.usage_n = np.array(state["usage"])
        self.delivered_n = np.array(state["delivered"])
        self.late_n = np.array(state["late"])
        rejected = json.loads(state["rejected"].tobytes())
        self.rejected = [Counter(counts) for counts in rejected]


def _written(figure: float) -> str:
    return str(figure) if isinstance(figure, int) else f"{figure:.6g}"


def summary_of(rows: Iterable[Mapping[str, float]]) -> tf.compat.v1.Summary:
    """Returns one message for all workers' scalars, without those that are NaN.

    A ``tf.summary.scalar`` each takes 7 times as long.
    """
    metadata = tf.compat.v1.SummaryMetadata()
    metadata.plugin_data.plugin_name = "scalars"
    summary = tf.compat.v1.Summary()
    for worker, row in enumerate(rows):
        for name, figure in row.items():
            if math.isnan(figure):
                continue
            with np.errstate(over="ignore"):
                value = tf.make_tensor_proto(np.float32(figure))
            summary.value.add(tag=f"worker_{worker:02d}/{name}", tensor=value, metadata=metadata)
    return summary
