"""``python -m experiments.zeno_cost``: a round of Zeno beside bare forward passes and Multi-Krum.

20 gradients, 4 examples, the digits MLP and AggregaThor's CNN for CIFAR-10 (random images do). The
passes are n + 1 calls of a compiled function that returns the loss of 4 examples. Contenders take
turns, so that a machine that slows down slows all; figures are medians.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.command import import_tensorflow, run_command
from experiments.goals import HEADER, Goal
from experiments.measuring import seconds_of, write_report

N, F, N_R = 20, 8, 4
# name: (model, image)
MODELS = {
    "digits MLP": ("digits-mlp", (8, 8, 1)),
    "CIFAR-10 CNN": ("aggregathor-cnn", (32, 32, 3)),
}


class Cost(NamedTuple):
    """Milliseconds of a round's parts, and the medians of the ratios turn by turn."""

    model: str
    dim: int
    passes_ms: float
    zeno_ms: float
    multi_krum_ms: float
    ratio: float


def main() -> int:
    """Measures, and writes ``zeno_cost_<machine>_<date>.md``."""
    return run_command("zeno_cost", _main)


def _main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.zeno_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--turns", type=int, default=50)
    parser.add_argument("--output", type=Path, default=Path("experiments/results"))
    arguments = parser.parse_args()
    import_tensorflow()
    costs = [measure(name, *of, turns=arguments.turns) for name, of in MODELS.items()]
    text = report(costs, arguments.turns)
    write_report("zeno_cost", text, arguments.output)
    return 0


def measure(name: str, model_name: str, image: tuple[int, ...], *, turns: int) -> Cost:
    """Times the three of a model in turn."""
    import tensorflow as tf

    from aggregathor.gars import GARS, Context
    from aggregathor.protocols.validation import Examples, LossOnCopies
    from experiments import models
    from experiments.dataset import Dataset
    from experiments.evaluation import cross_entropy
    from lossympi.link import aligned_zeros

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (200, *image)).astype(np.uint8)
    labels = rng.integers(0, 10, 200).astype(np.int32)
    model = models.build(model_name, Dataset(images, labels, images, labels, 10, scale=1 / 255))
    variables = [variable.value for variable in model.trainable_variables]
    params_d = np.concatenate([variable.numpy().ravel() for variable in variables])
    stack_nd = aligned_zeros((N, len(params_d)))
    stack_nd[:] = 1e-3 * rng.standard_normal(stack_nd.shape, dtype=np.float32)

    def loss_of(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return cross_entropy(labels, model(images, training=False))

    examples = Examples((images, labels))
    losses = LossOnCopies(loss_of, variables, examples)
    context = Context(
        learning_rate=lambda: 0.1,
        losses=lambda stack_nd, rows, gamma, n_r: losses(params_d, stack_nd, rows, gamma, n_r, rng),
    )
    bare = tf.function(loss_of, autograph=False)
    batch = [tf.constant(part) for part in examples.draw(rng, N_R)]

    def passes() -> None:
        for _ in range(N + 1):
            float(bare(*batch))

    def rule(name: str) -> Callable[[], object]:
        return lambda: GARS[name].apply(stack_nd, {}, context, f=F)

    contenders = (passes, rule("zeno"), rule("multi-krum"))
    for contender in contenders:
        contender()
    seconds = np.array([[seconds_of(each) for each in contenders] for _ in range(turns)])
    passes_s, zeno_s, multi_krum_s = seconds.T
    ratio = float(np.median((zeno_s - multi_krum_s) / passes_s))
    passes_ms, zeno_ms, multi_krum_ms = 1e3 * np.median(seconds, axis=0)
    return Cost(name, len(params_d), passes_ms, zeno_ms, multi_krum_ms, ratio)


def report(costs: list[Cost], turns: int) -> str:
    """Returns the tables as Markdown."""
    import tensorflow as tf

    from experiments.machine import describe_machine

    lines = [
        f"# A round of Zeno: n = {N}, n_r = {N_R}",
        "",
        f"- command: `python -m experiments.zeno_cost --turns={turns}`",
        f"- machine: {describe_machine()}; TensorFlow {tf.__version__}",
        f"- date: {datetime.date.today().isoformat()}",
        "",
        f"| model | d | {N + 1} passes, ms | zeno, ms | multi-krum, ms |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for cost in costs:
        figures = (cost.passes_ms, cost.zeno_ms, cost.multi_krum_ms)
        cells = " | ".join(f"{figure:.2f}" for figure in figures)
        lines.append(f"| {cost.model} | {cost.dim} | {cells} |")
    lines += ["", *HEADER]
    for cost in costs:
        goal = f"{cost.model}: what Zeno costs over Multi-Krum"
        lines.append(Goal(goal, 1.3, 1.1, cost.ratio, "of the passes").row())
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
