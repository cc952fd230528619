"""``--monitor``: what the server sees of its workers, in files, in a status line and a summary."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from aggregathor import log
from aggregathor.errors import UserError
from aggregathor.internals.tensorflow import eager_mode
from aggregathor.monitor.arrivals import ArrivalMonitor, columns_of
from aggregathor.monitor.attendance import Attendance
from aggregathor.monitor.figures import Monitor, begin_csv
from aggregathor.monitor.suspicion import Rejections, Suspicion
from aggregathor.protocols.arrivals import ArrivalReport
from aggregathor.protocols.registry import PROTOCOLS
from aggregathor.protocols.report import RoundReport
from aggregathor.protocols.setting import Setting
from lossympi import RoundStats

_logger = logging.getLogger(__name__)

IN_PLACE_S = 1.0  # between two status lines that overwrite each other on a terminal
BELOW_S = 30.0  # where each is a line of its own
# Workers that are named in a status line, and in the summary.
_MOST_LISTED, _MOST_COUNTED = 4, 12
_LOOKED_AT = 64  # coordinates of a gradient


def columns_for(setting: Setting) -> Sequence[str]:
    """Returns the columns of workers.csv."""
    protocol = PROTOCOLS[setting.protocol]
    return columns_of(protocol.reasons) if protocol.takes else Monitor.COLUMNS


def open_folder(path: str, columns: Sequence[str] = Monitor.COLUMNS) -> Path | None:
    """Makes the folder of a run below the one that the user has named; None for "".

    Args:
      path: the user's.
      columns: of workers.csv.

    Raises:
      UserError: it cannot be made or written to.
    """
    if not path:
        return None
    folder = new_folder(Path(path).expanduser().absolute(), columns)
    _logger.info("what is seen of the workers is written to %s", folder)
    return folder


class Observer:
    """All optimizers of a job, as the server sees their rounds."""

    def __init__(self, setting: Setting, folder: Path | None = None, every: int = 1) -> None:
        """Writes to a folder of ``open_folder``, with ``every`` rounds between two rows.

        Without a folder it writes nothing, and logs a summary only if a worker was missing.
        """
        self._setting = setting
        self._folder = folder
        self._every = every
        self._optimizers: list[RoundsObserver] = []
        self._arrivals: list[ArrivalsObserver] = []

    def of_rounds(self) -> RoundsObserver:
        """Returns what observes one more optimizer."""
        n = self._setting.num_workers
        files = self._files(lambda path, writer: Monitor(path, n, writer))
        status = None if files is None else self._status
        made = RoundsObserver(self._setting, files, status)
        self._optimizers.append(made)
        return made

    def of_arrivals(self) -> ArrivalsObserver:
        """Returns what observes one more optimizer, whose gradients come one by one."""
        n, reasons = self._setting.num_workers, PROTOCOLS[self._setting.protocol].reasons
        files = self._files(lambda path, writer: ArrivalMonitor(path, n, reasons, writer))
        made = ArrivalsObserver(self._setting, files, None if files is None else ArrivalStatus())
        self._arrivals.append(made)
        return made

    @cached_property
    def _status(self) -> Status:
        return Status()

    def _files(self, open_monitor: _OpenMonitor) -> _Files | None:
        if self._folder is None:
            return None
        number = 1 + len(self._optimizers) + len(self._arrivals)
        folder = self._folder if number == 1 else self._folder / f"optimizer-{number}"
        return _Files(folder, columns_for(self._setting), open_monitor, self._every)

    def close(self) -> None:
        """Writes the last rows, and logs who was suspected."""
        observers: list[RoundsObserver | ArrivalsObserver] = [*self._optimizers, *self._arrivals]
        for observer in observers:
            observer.close()
        if self._arrivals and self._folder is not None:
            _logger.info("%s", summary_of_arrivals(self._setting, self._arrivals))
        anybody_missing = any(each.suspicion.missing_n.any() for each in self._optimizers)
        if anybody_missing or (self._folder is not None and not self._arrivals):
            _logger.info("%s", summary(self._setting, self._optimizers))


class RoundsObserver:
    """One optimizer's rounds.

    Attributes:
      suspicion: its judgement of the workers.
      refused_rounds: how many rounds the rule could not be applied to.
      unverified_rounds: in how many others a decoder has not verified the sum of all coordinates.
    """

    def __init__(
        self, setting: Setting, files: _Files | None = None, status: Status | None = None
    ) -> None:
        """Passes what it sees to files and a status line, if there are any."""
        self.suspicion = Suspicion(setting.num_workers)
        self.refused_rounds = 0
        self._setting = setting
        self.unverified_rounds = 0
        self._has_warned = False
        self._sends_nan_n = np.zeros(setting.num_workers, bool)
        self._attendance = Attendance(setting.topology)
        self._files = files
        self._status = status

    def arrived(self, stats: RoundStats) -> None:
        """Logs who kept a round waiting."""
        self._attendance.arrived(stats)

    def published(self, report: RoundReport) -> RoundReport:
        """Adds a round that was published; returns the report with the suspects."""
        suspected_n = self.suspicion.see(report.usage_n, report.delivered_n)
        self.unverified_rounds += report.unverified > 0
        self._warn_of_nan(report)
        self._warn_of_infinity(report)
        report = replace(report, suspected=tuple(np.flatnonzero(suspected_n).tolist()))
        if self._files is not None:
            self._files.see(report)
        if self._status is not None:
            self._status.see(report)
        return report

    def _warn_of_nan(self, report: RoundReport) -> None:
        """Says once of each worker that it sends no numbers, as rules do not tell. O(n)."""
        dim = report.stack_nd.shape[-1]
        some = np.arange(0, dim, -(-dim // _LOOKED_AT))
        bad_n = ~np.isfinite(report.stack_nd[:, some]).any(axis=1) & (report.delivered_n == 1)
        new = np.flatnonzero(bad_n & ~self._sends_nan_n)
        # Of those that attack on purpose nobody needs to hear.
        new = new[new < self._setting.num_workers - self._setting.byzantine]
        if not len(new):
            return
        self._sends_nan_n[new] = True
        num_bad, f = int(self._sends_nan_n.sum()), self._setting.f
        _logger.warning(
            "round %d: %s: gradients of NaN or infinity, as of bad data. %s",
            self.suspicion.rounds,
            self._setting.topology.describe_rows(new),
            f"That makes {num_bad} of the f={f} that are tolerated."
            if self._setting.robust and num_bad <= f
            else "Look at the data, the loss and the learning rate.",
        )

    def _warn_of_infinity(self, report: RoundReport) -> None:
        """Says once that the rule gave what no training survives. O(d)."""
        with np.errstate(over="ignore", invalid="ignore"):
            if self._has_warned or np.isfinite(np.sum(report.grad_d)):
                return
        bad = np.count_nonzero(~np.isfinite(report.grad_d))
        if bad:
            self._has_warned = True
            _logger.warning(
                "round %d: the aggregate of %s is not finite in %d of %d coordinates, and so will "
                "be the model. %s",
                self.suspicion.rounds,
                self._setting.method,
                bad,
                len(report.grad_d),
                "The workers' own gradients may be: look at the loss and the learning rate."
                if self._setting.robust
                else f"{self._setting.method} gives no protection: see `aggregathor advise`.",
            )

    def refused(self) -> None:
        """Counts a round that the rule could not be applied to."""
        self.refused_rounds += 1

    def close(self) -> None:
        """Writes the last rows."""
        if self._files is not None:
            self._files.close()


class ArrivalsObserver:
    """One optimizer's gradients, which come one by one.

    Attributes:
      rejections: its judgement of the workers.
      updates: how many there have been.
    """

    def __init__(
        self, setting: Setting, files: _Files | None = None, status: ArrivalStatus | None = None
    ) -> None:
        """Passes what it sees to files and a status line, if there are any."""
        self.rejections = Rejections(setting.num_workers, setting.f)
        self.updates = 0
        self._innocent = PROTOCOLS[setting.protocol].innocent
        self._files = files
        self._status = status

    def decided(self, report: ArrivalReport) -> ArrivalReport:
        """Adds a gradient that was answered; returns the report with the suspects."""
        is_rejected = bool(report.why) and report.why not in self._innocent
        suspected_n = self.rejections.see(report.row, is_rejected)
        self.updates = report.updates
        report = replace(report, suspected=tuple(np.flatnonzero(suspected_n).tolist()))
        if self._files is not None:
            self._files.see(report)
        if self._status is not None:
            self._status.see(report)
        return report

    def close(self) -> None:
        """Writes the last rows."""
        if self._files is not None:
            self._files.close()


# Opens a ``Monitor`` or an ``ArrivalMonitor`` of a CSV and a writer of TensorBoard's events.
_OpenMonitor = Callable[[Path, tf.summary.SummaryWriter], Any]


class _Files:
    """CSV and TensorBoard events of one optimizer.

    A training goes on if they cannot be written: a warning says so, once.
    """

    def __init__(
        self, folder: Path, columns: Sequence[str], open_monitor: _OpenMonitor, every: int
    ) -> None:
        self._folder = folder
        self._columns = columns
        self._open_monitor = open_monitor
        self._every = every
        self._rounds = 0
        self._monitor: Any = None
        self._failed = False

    def see(self, report: RoundReport | ArrivalReport) -> None:
        self._rounds += 1
        self._try(lambda: self._see(report))

    def close(self) -> None:
        self._try(self._close)

    def _see(self, report: RoundReport | ArrivalReport) -> None:
        if self._monitor is None:
            self._monitor = self._open()
        self._monitor.record(report)
        if self._rounds % self._every == 0:
            self._monitor.write(self._rounds, report)

    def _open(self) -> Any:
        path = self._folder / "workers.csv"
        if not path.exists():
            _begin(self._folder, self._columns)
        # Not sooner: it initialises TensorFlow, which a script may want to set up first.
        writer = tf.summary.create_file_writer(str(self._folder / "events"))
        return self._open_monitor(path, writer)

    def _close(self) -> None:
        if self._monitor is not None:
            self._monitor.write_rest(self._rounds)

    def _try(self, write: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            with eager_mode():  # scripts of v1 have switched it off
                write()
        except (OSError, tf.errors.OpError) as error:
            self._failed = True
            _logger.warning(
                "cannot write to %s: %s. The training goes on without.",
                self._folder,
                _reason(error),
            )


class Status:
    """A line that reports the progress: every second in place on a terminal, else now and then.

    Under ``mpirun`` standard error is a pipe.
    """

    def __init__(self) -> None:
        """Starts counting with the first round."""
        self._line = _Line()
        self._rounds = 0
        self._recent_rounds = 0
        self._delivered = 0.0

    def see(self, report: RoundReport) -> None:
        """Adds a round; writes the line if it is due."""
        self._rounds += 1
        self._recent_rounds += 1
        self._delivered += float(report.delivered_n.mean())
        elapsed_s = self._line.due()
        if elapsed_s:
            self._line.write(self._text(report, elapsed_s))
            self._recent_rounds = 0
            self._delivered = 0.0

    def _text(self, report: RoundReport, elapsed_s: float) -> str:
        missing = np.flatnonzero(report.delivered_n == 0).tolist()
        # What matters most comes first: a narrow terminal cuts the end.
        named = _named(suspected=report.suspected, missing=missing)
        return (
            f"round {self._rounds}, {self._recent_rounds / elapsed_s:.3g}/s{named}; "
            f"{self._delivered / self._recent_rounds:.0%} delivered"
        )


class ArrivalStatus:
    """The same where gradients come one by one: what was accepted of each worker, and how stale."""

    def __init__(self) -> None:
        """Starts counting with the first gradient."""
        self._line = _Line()
        self._updates = 0  # as of the last line
        self._of: dict[int, _Recent] = {}

    def see(self, report: ArrivalReport) -> None:
        """Adds a gradient; writes the line if it is due."""
        self._of.setdefault(report.row, _Recent()).add(report)
        elapsed_s = self._line.due()
        if elapsed_s:
            self._line.write(self._text(report, elapsed_s))
            self._of.clear()
            self._updates = report.updates

    def _text(self, report: ArrivalReport, elapsed_s: float) -> str:
        total = sum(self._of.values(), _Recent())
        rates = (report.updates - self._updates) / elapsed_s, total.arrivals / elapsed_s
        each = [f"{row}: {self._of[row]}" for row in sorted(self._of)[:_MOST_COUNTED]]
        left = len(self._of) - len(each)
        return (
            f"update {report.updates}, {rates[0]:.3g}/s of {rates[1]:.3g} gradients/s"
            f"{_named(suspected=report.suspected)}; accepted, staleness: {total.words()}; "
            + ", ".join(each)
            + (f" +{left}" if left else "")
        )


@dataclass
class _Recent:
    """Gradients since the last line."""

    arrivals: int = 0
    rejected: int = 0
    staleness: int = 0
    most_stale: int = 0

    def add(self, report: ArrivalReport) -> None:
        self.arrivals += 1
        self.rejected += bool(report.why)
        self.staleness += report.staleness
        self.most_stale = max(self.most_stale, report.staleness)

    def __add__(self, other: _Recent) -> _Recent:
        return _Recent(
            self.arrivals + other.arrivals,
            self.rejected + other.rejected,
            self.staleness + other.staleness,
            max(self.most_stale, other.most_stale),
        )

    def __str__(self) -> str:
        """Returns such as "83% 2.1/7": the share that is accepted, staleness on average/at most."""
        accepted, stale = self._means()
        return f"{accepted:.0%} {stale:.1f}/{self.most_stale}"

    def words(self) -> str:
        """Returns the same as "83%, 2.1 on average and 7 at most"."""
        accepted, stale = self._means()
        return f"{accepted:.0%}, {stale:.1f} on average and {self.most_stale} at most"

    def _means(self) -> tuple[float, float]:
        return 1 - self.rejected / self.arrivals, self.staleness / self.arrivals


class _Line:
    """A status line, and when the next one is due."""

    def __init__(self) -> None:
        self._in_place = log.shows_in_place(__name__)
        self._every_s = IN_PLACE_S if self._in_place else BELOW_S
        self._begun_s: float | None = None

    def due(self) -> float:
        """Returns how long it was since the last line, if the next is due; else 0."""
        now_s = time.monotonic()
        if self._begun_s is None:
            self._begun_s = now_s
        elapsed_s = now_s - self._begun_s
        if elapsed_s < self._every_s:
            return 0.0
        self._begun_s = now_s
        return max(elapsed_s, 1e-9)

    def write(self, text: str) -> None:
        if self._in_place:
            log.show(__name__, text)
        else:
            _logger.info("%s", text)


def _named(**rows_of: Sequence[int]) -> str:
    """Returns such as "; suspected workers 3, 4"; "" for nobody."""
    return "".join(
        f"; {word} worker{'s' if len(rows) > 1 else ''} {_listed(rows)}"
        for word, rows in rows_of.items()
        if rows
    )


def new_folder(path: Path, columns: Sequence[str] = Monitor.COLUMNS) -> Path:
    """Makes the next of ``run-1``, ``run-2``, ... in ``path``, which may hold earlier runs.

    Raises:
      UserError: it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        before = [int(p.name[4:]) for p in path.glob("run-*") if p.name[4:].isdecimal()]
        for number in count(max(before, default=0) + 1):
            folder = path / f"run-{number}"
            try:
                folder.mkdir(mode=0o755)  # whatever the umask: others may read it
            except FileExistsError:  # another job has been faster
                continue
            _begin(folder, columns)
            return folder
    except OSError as error:
        raise UserError(
            f"cannot write what is seen of the workers to {path}: {_reason(error)}. Give monitor "
            "another folder, or leave it out."
        ) from None
    raise AssertionError("there is no last number")


def summary(setting: Setting, optimizers: Sequence[RoundsObserver]) -> str:
    """Returns how many rounds there were, who was suspected and who was missing, in a line."""
    robust, method = setting.robust, setting.method
    rounds = sum(each.suspicion.rounds for each in optimizers)
    refused = sum(each.refused_rounds for each in optimizers)
    nobody = np.zeros(setting.num_workers, np.int64)
    suspected_n = sum((each.suspicion.suspected_n for each in optimizers), nobody)
    missing_n = sum((each.suspicion.missing_n for each in optimizers), nobody)
    parts = [f"{_rounds(rounds)}, {method} f={setting.f}" if robust else _rounds(rounds)]
    if suspected_n.any():
        parts.append(f"suspected: {_counted(suspected_n)}")
    else:
        parts.append("nobody was suspected" if robust else f"{method} suspects nobody")
    parts += _attacks(setting)
    if missing_n.any():
        parts.append(f"nothing came from {_counted(missing_n)}")
    unverified = sum(each.unverified_rounds for each in optimizers)
    if unverified:
        parts.append(f"in {_rounds(unverified)} not all sums were verified")
    if refused:
        parts.append(f"too little came in {_rounds(refused)} more, which changed nothing")
    return "; ".join(parts)


def summary_of_arrivals(setting: Setting, optimizers: Sequence[ArrivalsObserver]) -> str:
    """Returns how many gradients made how many updates, and who was suspected, in a line."""
    nobody = np.zeros(setting.num_workers, np.int64)
    arrivals_n = sum((each.rejections.arrivals_n for each in optimizers), nobody)
    suspected_n = sum((each.rejections.suspected_n for each in optimizers), nobody)
    updates = sum(each.updates for each in optimizers)
    made = f"{updates} update{'' if updates == 1 else 's'} by {_gradients(arrivals_n.sum())}"
    parts = [f"{made}, {setting.protocol} f={setting.f}"]
    if suspected_n.any():
        parts.append(f"suspected: {_counted(suspected_n, _gradients)}")
    else:
        parts.append("nobody was suspected")
    parts += _attacks(setting)
    silent = np.flatnonzero(arrivals_n == 0).tolist()
    if silent:
        parts.append(f"nothing came from {setting.topology.describe_rows(silent)}")
    return "; ".join(parts)


def _attacks(setting: Setting) -> list[str]:
    """Returns who attacked, for the end of an experiment's log."""
    if not setting.attack:
        return []
    first = setting.num_workers - setting.byzantine
    attackers = ", ".join(str(row) for row in range(first, setting.num_workers))
    if setting.byzantine_moves:
        return [f"{setting.byzantine}, drawn anew each round, used {setting.attack}"]
    if setting.byzantine:
        many = "s" if setting.byzantine > 1 else ""
        return [f"worker{many} {attackers} attacked with {setting.attack}"]
    return [f"{setting.attack} hit what arrived"]  # one on coordinates of any worker's


def _counted(times_n: np.ndarray, unit: Callable[[int], str] | None = None) -> str:
    """Returns such as "worker 6 in 480 rounds, worker 7 in 479", those most often first."""
    unit = unit or _rounds
    order = [i for i in np.argsort(-times_n, kind="stable").tolist() if times_n[i]]
    first, *others = order[:_MOST_COUNTED]
    words = [f"worker {first} in {unit(times_n[first])}"]
    words += [f"worker {i} in {times_n[i]}" for i in others]
    left = len(order) - len(words)
    return ", ".join(words) + (f" and {left} others" if left else "")


def _listed(rows: Sequence[int]) -> str:
    """Returns such as "6, 7", or "1, 2, 3, 4 +5" where that is long."""
    text = ", ".join(map(str, rows[:_MOST_LISTED]))
    return text + (f" +{len(rows) - _MOST_LISTED}" if len(rows) > _MOST_LISTED else "")


def _gradients(number: int) -> str:
    return f"{number} gradient{'' if number == 1 else 's'}"


def _rounds(number: int) -> str:
    return f"{number} round{'' if number == 1 else 's'}"


def _begin(folder: Path, columns: Sequence[str]) -> None:
    folder.mkdir(mode=0o755, exist_ok=True)
    begin_csv(folder / "workers.csv", columns)


def _reason(error: OSError | tf.errors.OpError) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return error.message.partition("\n")[0]
