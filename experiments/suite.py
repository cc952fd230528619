"""Several runs in one process, and the table, CSV and picture that compare them."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from aggregathor.errors import UserError
from experiments import tasks
from experiments.config import Config
from experiments.plots import plot_accuracy
from experiments.recorder import writing
from experiments.run import Result, run

SUMMARY = ("gar", "attack", "accuracy", "steps_per_s")
FILES = ("summary.csv", "accuracy.png")


def run_all(configs: list[Config], folder: Path, *, overwrite: bool = False) -> list[Result]:
    """Makes the runs, each in a sub-folder, with the data loaded once, and names each that begins.

    Args:
      configs: of one experiment.
      folder: gets a sub-folder a run; ``FILES`` of earlier runs are deleted.
      overwrite: start again instead of continuing.

    Returns:
      The results of the runs that were made; fewer than asked for where a signal ended one.

    Raises:
      UserError: see ``run``; or two runs have the same rule and attack, and so the same name.
    """
    labels = [config.label() for config in configs]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"two runs are called {label!r}: give each another rule or attack")
    for config in configs:
        config.check()
    dataset = tasks.task(configs[0].experiment).load(configs[0].data_dir)
    with writing(folder):
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
    results = []
    for number, config in enumerate(configs, 1):
        _say(f"[{number}/{len(configs)}] {config.label()}: {config.steps} steps")
        name = f"{config.rule_slug()}-{config.attack or 'no-attack'}"
        result = run(config, folder / name, dataset=dataset, overwrite=overwrite)
        if result.stopped_by is not None:
            break
        results.append(result)
    return results


def write_summary(configs: list[Config], results: list[Result], folder: Path, title: str) -> None:
    """Writes ``summary.csv``, a row a run, and ``accuracy.png``, a curve a run."""
    with writing(folder):
        with (folder / "summary.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(SUMMARY)
            for config, result in zip(configs, results, strict=True):
                attack, accuracy = config.attack or "none", f"{result.accuracy:.4f}"
                writer.writerow([config.gar, attack, accuracy, _rate(result, 1)])
        curves = {c.label(): r.curve for c, r in zip(configs, results, strict=True)}
        plot_accuracy(curves, folder / "accuracy.png", title)


def print_summary(configs: list[Config], results: list[Result]) -> None:
    """Prints the same as a table on standard output."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("rule")
    table.add_column("attack")
    table.add_column("accuracy", justify="right")
    table.add_column("steps/s", justify="right")
    for config, result in zip(configs, results, strict=True):
        attack, accuracy = config.attack or "none", f"{result.accuracy:.1%}"
        table.add_row(config.gar, attack, accuracy, _rate(result, 0))
    Console(file=sys.stdout).print(table)


def _say(line: str) -> None:
    """Writes a line at once, through a pipe too."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _rate(result: Result, digits: int) -> str:
    return "" if math.isnan(result.steps_per_s) else f"{result.steps_per_s:.{digits}f}"
