"""Zeno: 8 and 12 of 20 workers flip labels or signs, and rules that need an honest majority.

    python -m experiments.figures.zeno [--task=mnist --data_dir=... --steps=400]

20 workers with batches of 100, and b, as in the paper's figures; handwritten digits or MNIST, of
which the server alone holds a tenth, whatever the rule, so that all train on the same. Each rule
gets the f that it was made for, and at most the largest that it can have.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments.command import import_tensorflow, run_command

# The largest f of 20 workers: n >= 2f + 1, n >= 2f + 3, n >= 4f + 3.
RULES = {"average": 0, "median": 9, "krum": 8, "bulyan": 4}
N_R = (4, 16)  # the paper's, and one by which the last few points are told apart
# (attack, Byzantine workers): b, as in the paper's figures
B = {
    ("", 0): 4,
    ("label-flip", 8): 9,
    ("label-flip", 12): 16,
    ("sign-flip", 8): 16,
    ("sign-flip", 12): 16,
}


class Case(NamedTuple):
    """A run: a rule, with n_r for Zeno, under an attack."""

    gar: str
    n_r: int
    attack: str
    byzantine: int

    @property
    def rule(self) -> str:
        """Returns the row of the table."""
        return f"zeno, n_r={self.n_r}" if self.n_r else self.gar

    @property
    def column(self) -> str:
        """Returns the column of the table."""
        return f"{self.attack}, {self.byzantine} of 20" if self.attack else "no attack"

    def settings(self) -> dict[str, Any]:
        """Returns the flags of the run that are its own."""
        f = self.byzantine if self.n_r else min(self.byzantine, RULES[self.gar])
        b = B[self.attack, self.byzantine]
        own = {"gar_args": {"b": b, "n_r": self.n_r}} if self.n_r else {}
        return {
            "gar": self.gar,
            "f": f,
            "attack": self.attack,
            "byzantine": self.byzantine,
            **own,
        }


def cases() -> Iterator[Case]:
    """Yields the runs of a seed, column by column."""
    for attack, byzantine in B:
        for gar in RULES:
            yield Case(gar, 0, attack, byzantine)
        for n_r in N_R:
            yield Case("zeno", n_r, attack, byzantine)


def main() -> int:
    """Makes the runs, and the table, CSV and picture of them."""
    return run_command("zeno", _main)


def _main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.figures.zeno",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", choices=("digits", "mnist"), default="digits")
    parser.add_argument("--data_dir", default="", help="of tensorflow-datasets; mnist needs it")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("results/zeno"))
    parser.add_argument("--output", type=Path, default=Path("experiments/results"))
    arguments = parser.parse_args()
    import_tensorflow()
    from experiments.recorder import writing

    with writing(arguments.output):  # now, and not after the runs
        arguments.output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=arguments.output).close()
    runs = _run(arguments)
    if runs is None:
        sys.stderr.write("zeno: stopped; the same command goes on from there\n")
        return 130
    table = _table(runs)
    with writing(arguments.output):
        into = arguments.output / f"zeno_{arguments.task}"
        _write_csv(runs, into.with_suffix(".csv"))
        into.with_suffix(".md").write_text(f"{_heading(arguments)}\n{table}")
        _plot(runs, into.with_suffix(".png"))
    sys.stdout.write(table)
    return 0


def _run(arguments: argparse.Namespace) -> dict[Case, Any] | None:
    """Returns the results; None when stopped."""
    from experiments import tasks
    from experiments.config import Config
    from experiments.run import run

    dataset = tasks.task(arguments.task).load(arguments.data_dir)
    runs = {}
    for case in cases():
        config = Config(
            arguments.task,
            workers=20,
            batch_size=100,
            learning_rate=0.2,
            validation_share=0.1,
            steps=arguments.steps,
            eval_every=50,
            checkpoint_every=arguments.steps,
            seed=arguments.seed,
            **case.settings(),
        )
        name = "-".join(map(str, (case.gar, case.n_r, case.attack or "none", case.byzantine)))
        result = run(
            config,
            arguments.runs / arguments.task / f"seed{arguments.seed}" / name,
            dataset=dataset,
        )
        if result.stopped_by is not None:
            return None
        runs[case] = result
    return runs


def _write_csv(runs: dict[Case, Any], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["rule", "attack", "byzantine", "step", "accuracy"])
        for case, result in runs.items():
            for step, accuracy in zip(*result.curve, strict=True):
                row = [case.rule, case.attack or "none", case.byzantine, int(step)]
                writer.writerow([*row, f"{accuracy:.4f}"])


def _table(runs: dict[Case, Any]) -> str:
    """Returns the final accuracies in percent as a Markdown table."""
    columns = list(dict.fromkeys(case.column for case in runs))
    lines = [f"| rule | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    for rule in dict.fromkeys(case.rule for case in runs):
        results = [result for case, result in runs.items() if case.rule == rule]
        ended = (f" (refused after step {each.steps})" if each.failure else "" for each in results)
        cells = [
            f"{100 * each.accuracy:.1f}{why}" for each, why in zip(results, ended, strict=True)
        ]
        lines.append(f"| {rule} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _heading(arguments: argparse.Namespace) -> str:
    import tensorflow as tf

    from experiments.machine import describe_machine

    command = "python -m experiments.figures.zeno"
    command += f" --task={arguments.task} --seed={arguments.seed} --steps={arguments.steps}"
    return (
        f"# Zeno: {arguments.task}, 20 workers, final top-1 accuracy in percent\n\n"
        f"- command: `{command}`\n"
        f"- machine: {describe_machine()}; TensorFlow {tf.__version__}\n"
        f"- date: {datetime.date.today().isoformat()}\n"
    )


def _plot(runs: dict[Case, Any], path: Path) -> None:
    """Draws the curves, a panel an attack, beside the average that nobody attacks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from experiments.plots import draw_curves

    (baseline, *_) = runs.values()
    columns = list(dict.fromkeys(case.column for case in runs if case.attack))
    figure, all_axes = plt.subplots(
        2, 2, figsize=(10, 7), sharex=True, sharey=True, layout="constrained"
    )
    for axes, column in zip(all_axes.flat, columns, strict=True):
        curves = {case.rule: each.curve for case, each in runs.items() if case.column == column}
        draw_curves(axes, {**curves, "average, no attack": baseline.curve})
        axes.set_title(column)
        axes.label_outer()
    figure.legend(
        *all_axes[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        frameon=False,
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
