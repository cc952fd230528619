"""Times what each layer of the lock costs a worker's step, and writes a table.

    python -m experiments.lock --steps=200 --out=lock.md

A step is that of `make bench-throughput` with d = 1.75M in one process: the gradient of a batch of
32, and new values of all variables, which the step makes itself in place of a server. The variants
take turns, so that the machine's speed is the same for all. What the scan takes is measured once
for a graph, as it is in a job.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.baselines.workload import LEARNING_RATE, THREADS, loss, variables
from experiments.machine import describe_machine

WARM_UP = 5  # rounds of all variants that do not count
Step = Callable[[], Any]


def main() -> None:
    """Measures, prints the table and writes it where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100, help="of each variant (%(default)s)")
    parser.add_argument("--out", type=Path, help="a file for the table, too")
    args = parser.parse_args()
    os.environ.update(THREADS)
    lines = [
        f"{describe_machine()}; {datetime.datetime.now().date()}; one thread for the step; "
        f"`python -m experiments.lock --steps={args.steps}`",
        "",
        *_table_of_steps(_variants(), args.steps),
        "",
        *_table_of_scans(),
    ]
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if args.out is not None:
        args.out.write_text(text)


def _variants() -> dict[str, Step]:
    """Returns steps, each of a model of its own, which have been traced and run."""
    import tensorflow as tf

    from aggregathor.locking import Digest, Guard

    guard = Guard("rank 1")

    def make(every: int = 0) -> Step:
        """Makes a step, with a digest in every k-th round if k is not 0."""
        model = variables("big")
        guard.lock(model)
        digest = Digest("rank 1", every) if every else None
        keys = list(range(len(model)))
        for key in keys:
            if digest is not None:
                digest.add(key, f"variable {key}")

        @tf.function
        def step() -> tf.Tensor:
            with tf.GradientTape() as tape:
                value = loss(model)
            gradients = tape.gradient(value, model)
            if digest is not None:
                digest.compare(keys, model)
            news = [v - LEARNING_RATE * g for v, g in zip(model, gradients, strict=True)]
            if digest is not None:
                digest.note(keys, news)
            for variable, new in zip(model, news, strict=True):
                guard.overwrite(variable, new)
            return value

        step()
        return step

    steps = {"none, or the scan": make(), "digest": make(1), "digest, every 10th round": make(10)}
    guard.lock_kernels()  # those of the steps above have been made
    return {**steps, "kernel": make(), "kernel and digest": make(1)}


def _table_of_steps(steps: dict[str, Step], count: int) -> list[str]:
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round in range(WARM_UP + count):
        for name, step in steps.items():
            begun = time.perf_counter()
            step()
            if round >= WARM_UP:
                seconds[name].append(time.perf_counter() - begun)
    plain = np.array(next(iter(seconds.values())))
    rows = [
        f"| {name} | {1e3 * np.median(each):.2f} | {1e3 * np.median(each - plain):+.3f} |"
        for name, each in ((name, np.array(each)) for name, each in seconds.items())
    ]
    head = "| layer | ms a step, median | more, median of differences |"
    return [head, "| --- | ---: | ---: |", *rows]


def _table_of_scans() -> list[str]:
    """Scans graphs of training steps: the MLP of above, and ResNet-50."""
    import keras
    import tensorflow as tf

    from aggregathor.locking import Guard

    def step_of(model: Any, trained: Any, *shape: int) -> Any:
        @tf.function
        def step(x: Any) -> Any:
            with tf.GradientTape() as tape:
                value = tf.reduce_mean(model(x, training=True) ** 2)
            return tape.gradient(value, trained)

        return step.get_concrete_function(tf.TensorSpec(shape))

    mlp = keras.Sequential(
        [keras.Input([784]), *(keras.layers.Dense(k, "relu") for k in (1024, 900, 10))]
    )
    resnet = keras.applications.ResNet50(weights=None)
    rows = []
    for name, model, shape in (("MLP", mlp, (32, 784)), ("ResNet-50", resnet, (8, 224, 224, 3))):
        graph = step_of(model, model.trainable_variables, *shape).graph
        guard = Guard("rank 1")
        guard.lock(model.trainable_variables)
        milliseconds = []
        for _ in range(5):
            begun = time.perf_counter()
            guard.check_function(graph)
            milliseconds.append(1e3 * (time.perf_counter() - begun))
        guard.close()
        size = len(graph.get_operations())
        rows.append(f"| scan, {name} | {size} | {np.median(milliseconds):.1f} |")
    return ["| once a graph | ops | ms, median of 5 |", "| --- | ---: | ---: |", *rows]


if __name__ == "__main__":
    main()
