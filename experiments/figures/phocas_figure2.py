"""Phocas, figure 2: four attacks on six ways to aggregate, MNIST, 20 workers.

    python -m experiments.figures.phocas_figure2

The paper's table 1 and appendix 8.5: MLP 784-128-128-10, 500 rounds, learning rate 0.1, batch 32.
6 of 20 workers attack with gaussian and omniscient, and the rules tolerate as many; bit-flip and
gambler hit coordinates of any worker, and the rules get b = q = 8, the most that Krum tolerates.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import sys
import tempfile
from pathlib import Path

import numpy as np

from aggregathor.errors import UserError
from experiments.command import import_tensorflow, run_command

RULES = ("average", "krum", "multi-krum", "trimmed-mean", "phocas")
BASELINE = "average without attack"
# attack: (Byzantine workers, f of the rules)
ATTACKS = {"gaussian": (6, 6), "omniscient": (6, 6), "bit-flip": (0, 8), "gambler": (0, 8)}


def main() -> int:
    """Makes the 21 runs of each seed and the table, CSV and picture of them."""
    return run_command("phocas_figure2", _main)


def _main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.figures.phocas_figure2",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data_dir", default="", help="where tensorflow-datasets keeps its data")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", default="0", help="comma-separated; the table shows means")
    parser.add_argument("--runs", type=Path, default=Path("results/phocas_figure2"))
    parser.add_argument("--output", type=Path, default=Path("experiments/results"))
    arguments = parser.parse_args()
    seeds = _seeds(arguments.seeds)
    import_tensorflow()
    from experiments.recorder import writing

    with writing(arguments.output):  # now, and not after an hour of runs
        arguments.output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=arguments.output).close()
    runs = _run(arguments, seeds)
    if runs is None:
        sys.stderr.write("phocas_figure2: stopped; the same command goes on from there\n")
        return 130
    table = _table(runs, seeds)
    heading = _heading(arguments)
    with writing(arguments.output):
        _write_csv(runs, arguments.output / "phocas_figure2.csv")
        (arguments.output / "phocas_figure2.md").write_text(f"{heading}\n{table}")
        _plot(runs, arguments.output / "phocas_figure2.png")
    sys.stdout.write(table)
    return 0


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(seed) for seed in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds takes whole numbers such as 0,1,2; got {text!r}") from None
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds names one more than once: {text}")
    return seeds


def _run(arguments: argparse.Namespace, seeds: list[int]) -> dict | None:
    """Returns the results [one a seed] by (rule or baseline, attack); None when stopped."""
    from experiments import tasks
    from experiments.config import Config
    from experiments.run import run

    dataset = tasks.task("mnist").load(arguments.data_dir)
    common = {
        "experiment": "mnist",
        "model": "phocas-mlp",
        "workers": 20,
        "learning_rate": 0.1,
        "batch_size": 32,
        "steps": arguments.steps,
        "eval_every": 25,
    }
    runs: dict[tuple[str, str], list] = {}
    for seed in seeds:
        plan = {(BASELINE, ""): Config(gar="average", seed=seed, **common)}
        for attack, (byzantine, f) in ATTACKS.items():
            for gar in RULES:
                plan[gar, attack] = Config(
                    gar=gar, attack=attack, byzantine=byzantine, f=f, seed=seed, **common
                )
        for key, config in plan.items():
            name = "-".join(part.replace(" ", "-") for part in key if part)
            result = run(config, arguments.runs / f"seed{seed}" / name, dataset=dataset)
            if result.stopped_by is not None:
                return None
            runs.setdefault(key, []).append(result)
    for attack in ATTACKS:
        runs[BASELINE, attack] = runs[BASELINE, ""]
    del runs[BASELINE, ""]
    return runs


def _write_csv(runs: dict, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["gar", "attack", "seed_index", "step", "accuracy"])
        for (rule, attack), results in runs.items():
            for index, result in enumerate(results):
                for step, accuracy in zip(*result.curve, strict=True):
                    writer.writerow([rule, attack, index, int(step), f"{accuracy:.4f}"])


def _table(runs: dict, seeds: list[int]) -> str:
    """Returns the final accuracies in percent as a Markdown table."""
    lines = [
        "| rule | " + " | ".join(ATTACKS) + " |",
        "| --- |" + " ---: |" * len(ATTACKS),
    ]
    for rule in (BASELINE, *RULES):
        cells = []
        for attack in ATTACKS:
            finals = 100 * np.array([result.accuracy for result in runs[rule, attack]])
            spread = f" ± {finals.std():.1f}" if len(seeds) > 1 else ""
            ended = [str(result.steps) for result in runs[rule, attack] if result.failure]
            refused = f" (refused after step {', '.join(ended)})" if ended else ""
            cells.append(f"{finals.mean():.1f}{spread}{refused}")
        lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _heading(arguments: argparse.Namespace) -> str:
    import tensorflow as tf

    from experiments.machine import describe_machine

    command = "python -m experiments.figures.phocas_figure2"
    command += f" --seeds={arguments.seeds} --steps={arguments.steps}"
    return (
        "# Phocas, figure 2: MNIST, 20 workers, final top-1 accuracy in percent\n\n"
        f"- command: `{command}`\n"
        f"- machine: {describe_machine()}; TensorFlow {tf.__version__}\n"
        f"- date: {datetime.date.today().isoformat()}\n"
    )


def _plot(runs: dict, path: Path) -> None:
    """Draws the curves of the first seed, a panel an attack."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from experiments.plots import draw_curves

    figure, all_axes = plt.subplots(
        2, 2, figsize=(10, 7), sharex=True, sharey=True, layout="constrained"
    )
    for axes, attack in zip(all_axes.flat, ATTACKS, strict=True):
        curves = {}
        for rule in (*RULES, BASELINE):
            label = "average, no attack" if rule == BASELINE else rule
            curves[label] = runs[rule, attack][0].curve
        draw_curves(axes, curves)
        axes.set_title(attack)
        axes.label_outer()
    figure.legend(
        *all_axes[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=6,
        frameon=False,
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
