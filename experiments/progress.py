"""A progress bar on a terminal; nothing where there is none."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

MIN_WIDTH_WITH_BAR = 60
# The widest that each can be, with the space before it.
ACCURACY_WIDTH = len(" accuracy 100.0%")
RATE_WIDTH = len(" 99999.9 steps/s")
BAR_WIDTH = 10


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} steps/s" if task.speed else "", no_wrap=True)


class _Accuracy(ProgressColumn):
    """Nothing before the first evaluation."""

    def render(self, task: Task) -> Text:
        accuracy = task.fields["accuracy"]
        return Text("" if math.isnan(accuracy) else f"accuracy {accuracy:.1%}", no_wrap=True)


class OneLine(RichProgress):
    """Fits the width that the terminal has at the moment: the label gives way, then the rate."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Chooses the columns anew, since a terminal may change its width."""
        if self.tasks:  # not while it is being made
            digits = max(len(str(task.total)) for task in self.tasks)
            self.columns = tuple(columns(self.console.width, digits))
        return super().get_renderables()


def columns(width: int, digits: int) -> list[ProgressColumn]:
    """Returns what fits in a line of ``width``, when the number of steps has ``digits``."""
    room = width - (2 * digits + len("/")) - ACCURACY_WIDTH - RATE_WIDTH
    bar = width >= MIN_WIDTH_WITH_BAR
    label_width = room - 1 - bar * BAR_WIDTH
    chosen: list[ProgressColumn] = []
    if label_width > 1:
        whole_or_ellipsis = Column(max_width=label_width, no_wrap=True, overflow="ellipsis")
        chosen.append(TextColumn("{task.description}", table_column=whole_or_ellipsis))
    if bar:
        chosen.append(BarColumn(bar_width=None))
    chosen.append(MofNCompleteColumn(table_column=Column(no_wrap=True)))
    chosen.append(_Accuracy(table_column=Column(no_wrap=True)))
    if room >= 0:
        chosen.append(_Rate(table_column=Column(no_wrap=True)))
    return chosen


class Progress:
    """Shows step, accuracy and rate on standard error while it is a terminal."""

    def __init__(self, label: str, step: int, steps: int) -> None:
        """Begins at ``step`` of ``steps``."""
        console = Console(stderr=True)
        self._progress = OneLine(console=console, disable=not sys.stderr.isatty(), transient=True)
        self._task = self._progress.add_task(label, total=steps, completed=step, accuracy=math.nan)

    def __enter__(self) -> Progress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, step: int, accuracy: float) -> None:
        """Moves the bar; the accuracy is that of the last evaluation."""
        self._progress.update(self._task, completed=step, accuracy=accuracy)
