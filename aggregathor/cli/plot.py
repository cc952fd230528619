"""``aggregathor plot``: what the server saw of each worker, and the accuracy of experiments."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aggregathor.errors import UserError

FIGURES = {  # columns of workers.csv, with a label and whether the axis is logarithmic
    "selected": ("share used by the rule", False),
    "distance": ("distance to the aggregate", True),
    "delivered": ("share that arrived", False),
}
FIGURES_OF_ARRIVALS = {  # the same of a training without rounds
    "accepted": ("share accepted", False),
    "staleness": ("staleness, mean", True),
    "most_stale": ("staleness, largest", True),
}
_MOST_NAMED = 10  # workers in a legend: there are as many colours

Curve = tuple[list[float], list[float]]


class Run(NamedTuple):
    """What a folder has of a run.

    Attributes:
      name: of the folder.
      figures: by figure and worker, its values over the steps or rounds.
      accuracy: of an experiment; None of another run.
    """

    name: str
    figures: dict[str, dict[int, Curve]]
    accuracy: Curve | None


def plot(folders: Sequence[str], output: str) -> Path:
    """Draws runs side by side, and accuracies on top of them, to a PNG; returns its path.

    Args:
      folders: of ``--monitor``, of which the newest run is drawn, of one run, or of experiments.
      output: the file.

    Raises:
      UserError: there is nothing to draw, or no Matplotlib, or the file cannot be written.
    """
    runs = [read(Path(folder)) for folder in folders]
    try:
        import matplotlib
    except ImportError:
        raise UserError(
            "plots need Matplotlib: pip install 'aggregathor[experiments]', or pip install "
            "matplotlib"
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    has_accuracy = any(run.accuracy for run in runs)
    rows = len(FIGURES) + has_accuracy
    figure = plt.figure(figsize=(2 + 4.5 * len(runs), 2.4 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, len(runs))
    if has_accuracy:
        _draw_accuracies(figure.add_subplot(grid[0, :]), runs)
    for column, run in enumerate(runs):
        for row, name in enumerate(run.figures, start=int(has_accuracy)):
            axes = figure.add_subplot(grid[row, column])
            _draw_figure(axes, name, run, is_left=column == 0)
            if row == int(has_accuracy):
                axes.set_title(run.name, fontsize="medium")
        axes.set_xlabel("step" if run.accuracy else "round")
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside right lower", frameon=False)
    path = Path(output)
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write the plot to {path}: {error}") from None
    finally:
        plt.close(figure)
    return path


def read(folder: Path) -> Run:
    """Reads a folder.

    Raises:
      UserError: it has no figures, or a file is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {str(folder)!r}")
    name = folder.name or str(folder.absolute().name)
    if not (folder / "workers.csv").exists():
        numbers = [int(p.name[4:]) for p in folder.glob("run-*") if p.name[4:].isdecimal()]
        if not numbers:
            raise UserError(
                f"{folder} has no workers.csv and no run-1, run-2, ...: name a folder of --monitor "
                "or of `python -m experiments`"
            )
        name = f"{name}/run-{max(numbers)}"
        folder = folder / f"run-{max(numbers)}"
    path = folder / "workers.csv"
    names = [*(FIGURES_OF_ARRIVALS if "accepted" in _header(path) else FIGURES)]
    figures: dict[str, dict[int, Curve]] = {name: defaultdict(lambda: ([], [])) for name in names}
    for row in _rows(path, ("step", "worker", *names)):
        for figure in names:
            steps, values = figures[figure][int(row["worker"])]
            steps.append(row["step"])
            values.append(row[figure])
    if not figures[names[0]]:
        raise UserError(f"{folder / 'workers.csv'} has no rows yet: no round was written")
    accuracy = None
    if (folder / "metrics.csv").exists():
        rows = _rows(folder / "metrics.csv", ("step", "accuracy"))
        accuracy = [row["step"] for row in rows], [row["accuracy"] for row in rows]
    return Run(name, figures, accuracy)


def _header(path: Path) -> list[str]:
    try:
        with path.open(newline="") as file:
            return next(csv.reader(file), [])
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error):
        return []  # `_rows` says what is wrong with it


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, float]]:
    """Returns rows of a CSV as numbers; one that a killed process has cut short is left out."""
    try:
        with path.open(newline="") as file:
            whole = [row for row in csv.DictReader(file) if None not in row.values()]
        return [{name: float(row[name]) for name in columns} for row in whole]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} is none that a run has written: {error}") from None


def _draw_accuracies(axes: Any, runs: Sequence[Run]) -> None:
    for run in runs:
        if run.accuracy:
            axes.plot(*run.accuracy, label=run.name, linewidth=1.6)
    axes.set(xlabel="step", ylabel="test accuracy", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")


def _draw_figure(axes: Any, name: str, run: Run, *, is_left: bool) -> None:
    label, is_log = (FIGURES | FIGURES_OF_ARRIVALS)[name]
    workers = run.figures[name]
    for worker, (steps, values) in sorted(workers.items()):
        # Of an infinite distance there is a gap in the line; a cross at the top says so.
        shown = [value if math.isfinite(value) else math.nan for value in values]
        named = f"worker {worker}" if len(workers) <= _MOST_NAMED else None
        style = "-" if len(steps) > 1 else "o"
        [line] = axes.plot(steps, shown, style, label=named, linewidth=1.2)
        infinite = [step for step, value in zip(steps, values, strict=True) if math.isinf(value)]
        if infinite:
            top = axes.get_xaxis_transform()
            marks = {"color": line.get_color(), "marker": "x", "linestyle": "", "clip_on": False}
            axes.plot(infinite, [1.0] * len(infinite), transform=top, **marks)
    finite = [v for _, values in workers.values() for v in values if math.isfinite(v) and v > 0]
    if is_log and finite and max(finite) > 100 * min(finite):
        axes.set_yscale("log")
    elif not is_log:
        axes.set_ylim(-0.05, 1.05)
    if is_left:
        axes.set_ylabel(label)
    axes.grid(alpha=0.3)
