"""The order in which gradients came, as a file: a simulation that follows it computes the same."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from aggregathor import files
from aggregathor.errors import UserError
from aggregathor.protocols.arrivals import ArrivalReport

COLUMNS = ("step", "time_s", "row", "ticket", "version", "verdict")


class Line(NamedTuple):
    """One arrival.

    Attributes:
      time_s: when it was decided on; as exact as a float is, since BASGD's timer looks at it.
      row: its worker's.
      ticket: the worker's number of it.
      version: of the model that it is of.
      verdict: "step", "kept", or why it was rejected.
    """

    time_s: float
    row: int
    ticket: int
    version: int
    verdict: str


class ScheduleFile:
    """Writes what came, one line an arrival; its step is 1, 2, ..."""

    def __init__(self, path: Path, steps: int) -> None:
        """Goes on after that many arrivals: what the file has beyond them is made again.

        Raises:
          OSError: it cannot be read or written.
          UserError: it is there, and is no schedule, or a shorter one.
        """
        lines = read_schedule(path) if steps else []
        if len(lines) < steps:
            raise UserError(f"{path} has {len(lines)} arrivals, and the checkpoint is of {steps}.")
        with files.replacing(path) as file:
            text = [",".join(COLUMNS)]
            text += [_text(step, line) for step, line in enumerate(lines[:steps], 1)]
            file.write(("\n".join(text) + "\n").encode())
        self._file = files.appending(path)

    def add(self, step: int, report: ArrivalReport) -> None:
        """Writes an arrival; it is in the file after ``flush``."""
        line = Line(report.now_s, report.row, report.ticket, report.version, report.verdict)
        self._file.write(_text(step, line) + "\n")

    def flush(self) -> None:
        """Has all lines written out."""
        self._file.flush()

    def close(self) -> None:
        """Ends."""
        self._file.close()


def read_schedule(path: Path) -> list[Line]:
    """Reads a file that ``ScheduleFile`` has written; a last line that was cut short is left out.

    Raises:
      UserError: it cannot be read, or is no schedule.
    """
    try:
        with files.reading(path) as file:
            text = file.read().decode()
        whole = text[: text.rfind("\n") + 1]
        header, *rows = list(csv.reader(whole.splitlines())) or [[]]
        if tuple(header) != COLUMNS:
            raise ValueError(f"its columns are {','.join(header)}, not {','.join(COLUMNS)}")
        lines = []
        for number, row in enumerate(rows, 1):
            step, time_s, worker, ticket, version, verdict = row
            if int(step) != number:
                raise ValueError(f"arrival {number} is called {step}")
            lines.append(Line(float(time_s), int(worker), int(ticket), int(version), verdict))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is no schedule of arrivals: {error}") from None
    return lines


def _text(step: int, line: Line) -> str:
    return f"{step},{line.time_s!r},{line.row},{line.ticket},{line.version},{line.verdict}"
