"""What a run leaves in its folder: metrics, figures of the workers, events and checkpoints."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tensorflow as tf

from aggregathor import checkpoint, files
from aggregathor.errors import UserError
from aggregathor.monitor.arrivals import ArrivalMonitor
from aggregathor.monitor.figures import Monitor
from aggregathor.protocols.arrivals import ArrivalReport
from aggregathor.protocols.registry import PROTOCOLS
from aggregathor.protocols.report import RoundReport
from aggregathor.protocols.state import prefixed, under
from aggregathor.trainer.schedule import ScheduleFile
from aggregathor.trainer.training import Training

KEPT = 2  # checkpoints
METRICS = ("step", "wall_time_s", "loss", "accuracy", "top3")


class Recorder:
    """Writes metrics.csv, workers.csv, TensorBoard events and checkpoints.

    Of a training without rounds it also writes schedule.csv, and the number of updates into
    metrics.csv.

    It begins by restoring the newest checkpoint that can be read; as a context it drops what was
    recorded after that, which is made again, and records the rest.
    """

    def __init__(self, folder: Path, training: Training) -> None:
        """Opens the files of ``folder`` and restores ``training`` from the newest checkpoint."""
        self._folder = folder
        with writing(folder):
            self._writer = tf.summary.create_file_writer(str(folder / "events"))
        self._path = folder / "metrics.csv"
        num_workers = training.setting.num_workers
        protocol = PROTOCOLS[training.setting.protocol]
        self._columns = (*METRICS, "updates") if protocol.takes else METRICS
        self._monitor: Monitor | ArrivalMonitor
        path = folder / "workers.csv"
        if protocol.takes:
            self._monitor = ArrivalMonitor(path, num_workers, protocol.reasons, self._writer)
        else:
            self._monitor = Monitor(path, num_workers, self._writer)
        self._schedule: ScheduleFile | None = None
        self._updates = 0
        self.metrics: list[dict[str, float]] = []
        self._begin_s = 0.0
        self._training = training
        self._checkpoints = folder / "checkpoints"
        restore_newest(self._checkpoints, self._restore)

    def __enter__(self) -> Recorder:
        steps = self._training.steps
        with writing(self._folder):
            rows = keep_rows(self._path, self._columns, steps)
            keep_rows(self._monitor.path, self._monitor.columns, steps)
            if isinstance(self._monitor, ArrivalMonitor):
                self._schedule = ScheduleFile(self._folder / "schedule.csv", steps)
        self.metrics = [{name: float(value) for name, value in row.items()} for row in rows]
        before_s = self.metrics[-1]["wall_time_s"] if self.metrics else 0.0
        self._begin_s = time.perf_counter() - before_s
        return self

    def __exit__(self, *_: object) -> None:
        with writing(self._folder):
            self._writer.close()
            if self._schedule is not None:
                self._schedule.close()

    def record(self, step: int, report: RoundReport | ArrivalReport) -> None:
        """Adds what the server saw in a step."""
        if isinstance(report, ArrivalReport):
            assert isinstance(self._monitor, ArrivalMonitor)
            assert self._schedule is not None
            self._monitor.record(report)
            self._schedule.add(step, report)
            self._updates = report.updates
        else:
            assert isinstance(self._monitor, Monitor)
            self._monitor.record(report)

    def save(self, step: int) -> None:
        """Saves a checkpoint, unless that step's is there; the last two are kept."""
        path = self._checkpoints / f"step-{step:09d}.npz"
        if path.exists():
            return
        arrays = {
            **prefixed("training", self._training.state()),
            **prefixed("monitor", self._monitor.state()),
            "updates": np.array(self._updates),
        }
        with writing(self._folder):
            if self._schedule is not None:
                self._schedule.flush()  # no checkpoint is of more than the file has
            checkpoint.write(path, arrays)
            for old in _checkpoints(self._checkpoints)[:-KEPT]:
                old.unlink()

    def _restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._training.restore(under("training", arrays))
        self._monitor.restore(under("monitor", arrays))
        self._updates = int(arrays.get("updates", 0))

    def workers(self, step: int, report: RoundReport | ArrivalReport) -> None:
        """Writes a row a worker."""
        with writing(self._folder):
            if isinstance(report, ArrivalReport):
                assert isinstance(self._monitor, ArrivalMonitor)
                self._monitor.write(step, report)
            else:
                assert isinstance(self._monitor, Monitor)
                self._monitor.write(step, report)

    def evaluated(self, step: int, loss: float, accuracy: float, top3: float) -> None:
        """Writes a row of metrics."""
        wall_time_s = time.perf_counter() - self._begin_s
        row = dict(zip(METRICS, (step, wall_time_s, loss, accuracy, top3), strict=True))
        shown = [step, f"{wall_time_s:.3f}", f"{loss:.6g}", f"{accuracy:.6g}", f"{top3:.6g}"]
        if "updates" in self._columns:
            row["updates"] = self._updates
            shown.append(self._updates)
        self.metrics.append(row)
        with writing(self._folder):
            with files.appending(self._path) as file:
                csv.writer(file).writerow(shown)
            if self._schedule is not None:
                self._schedule.flush()
            with self._writer.as_default(step=step):
                for name in self._columns[2:]:
                    tf.summary.scalar(name, row[name])
            self._writer.flush()


def restore_newest(folder: Path, restore: Callable[[Mapping[str, np.ndarray]], None]) -> None:
    """Restores the newest checkpoint in ``folder`` that can be read; none where there is none.

    Where that is not the last one, a line on standard error says so, and the damaged ones go.

    Raises:
      UserError: there are checkpoints, and none can be read.
    """
    paths = _checkpoints(folder)
    damage = ""
    for path in reversed(paths):
        try:
            restore(checkpoint.read(path))
        except (OSError, ValueError, KeyError) as error:
            damage = damage or f"the checkpoint {path} cannot be restored: {error}"
            continue
        if damage:
            sys.stderr.write(f"experiments: {damage}; going on from {path.name}\n")
        with writing(folder.parent):
            for damaged in paths[paths.index(path) + 1 :]:
                damaged.unlink()
        return
    if paths:
        nor = ", nor can an older one" if len(paths) > 1 else ""
        raise UserError(f"{damage}{nor}. Name another --output, or --overwrite this one.")


def _checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints, oldest first."""
    return sorted(folder.glob("step-*.npz"))


def keep_rows(path: Path, header: Sequence[str], steps: int) -> list[dict[str, str]]:
    """Drops the rows of a CSV that come after ``steps``; makes it where it is missing."""
    rows = []
    if path.exists():
        try:
            with path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                if reader.fieldnames not in (None, list(header)):
                    columns, found = ",".join(header), ",".join(reader.fieldnames)
                    raise UserError(
                        f"{path} needs the columns {columns}; got {found}. Move it away."
                    )
                # A row that was cut short when a machine failed is of after the last checkpoint.
                whole = [row for row in reader if None not in row.values()]
            rows = [row for row in whole if int(row["step"]) <= steps]
            for row in rows:
                for figure in row.values():
                    float(figure)  # a list, where a row has too many
        except UserError:
            raise
        except (ValueError, TypeError, csv.Error) as error:
            raise UserError(
                f"{path} holds what no run has written: {error}. Move it away."
            ) from None
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, header)
    writer.writeheader()
    writer.writerows(rows)
    with files.replacing(path) as file:
        file.write(text.getvalue().encode())
    return rows


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Makes a ``UserError`` of what keeps a file in ``folder`` from being written or read."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        raise cannot_write(folder, error) from None


def cannot_write(folder: Path, error: OSError | tf.errors.OpError) -> UserError:
    """Says why a folder cannot be written to."""
    if isinstance(error, OSError):
        file = Path(error.filename or folder)
        where = f" ({file.name})" if file != folder else ""
        reason = f"{error.strerror or error}{where}"
    else:
        reason = error.message.partition("\n")[0]
    return UserError(f"cannot write to {folder}: {reason}. Name an --output, or make room.")
