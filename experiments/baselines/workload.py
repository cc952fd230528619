"""What every contender computes, how it is timed, and the line that it prints."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# An MLP 784-...-10; "large" is for its memory.
HIDDEN = {"small": (100, 100), "big": (1024, 900), "large": (4096, 3300)}
PIXELS, CLASSES = 784, 10
BATCH = 32  # a worker
LEARNING_RATE = 0.01
WARM_UP = 10  # steps that do not count: tracing, connecting, learning deadlines
# Of each process: several of them share the cores of one machine.
THREADS = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "2"}


def shapes(size: str) -> list[tuple[int, ...]]:
    """Returns the shapes of weights and biases, layer by layer."""
    widths = (PIXELS, *HIDDEN[size], CLASSES)
    layers = itertools.pairwise(widths)
    return [shape for rows, columns in layers for shape in ((rows, columns), (columns,))]


def variables(size: str) -> list[Any]:
    """Makes the model's variables."""
    import tensorflow as tf

    return [tf.Variable(tf.random.normal(shape, stddev=0.05)) for shape in shapes(size)]


def batch() -> tuple[Any, Any]:
    """Returns ops that draw a batch of images and labels."""
    import tensorflow as tf

    return tf.random.normal([BATCH, PIXELS]), tf.random.uniform([BATCH], 0, CLASSES, tf.int32)


def loss(model: Sequence[Any]) -> Any:
    """Returns the loss of a model, given by its variables, on a batch of its own."""
    import tensorflow as tf

    x, labels = batch()
    w1, b1, w2, b2, w3, b3 = model
    hidden = tf.nn.relu(tf.nn.relu(x @ w1 + b1) @ w2 + b2)
    return mean_loss(labels, hidden @ w3 + b3)


def mean_loss(labels: Any, logits: Any) -> Any:
    """Returns the mean cross-entropy of a batch."""
    import tensorflow as tf

    each = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    return tf.reduce_mean(each)


def timed(
    step: Callable[[], object],
    steps: int,
    *,
    limit_s: float = math.inf,
    once_warm: Callable[[], object] = lambda: None,
    per_call: int = 1,
    warm_up: int = WARM_UP,
) -> list[float]:
    """Returns the seconds of each step; none is started after ``limit_s``.

    Where a call makes ``per_call`` steps, it is the mean of them, and a call counts once.
    """
    for _ in range(warm_up):
        step()
    once_warm()
    seconds: list[float] = []
    until = time.perf_counter() + limit_s
    while len(seconds) * per_call < steps and time.perf_counter() < until:
        begun = time.perf_counter()
        step()
        seconds.append((time.perf_counter() - begun) / per_call)
    return seconds


def line(name: str, size: str, n: int, seconds: Sequence[float]) -> str:
    """Returns what a contender prints: JSON, on one line."""
    return json.dumps(result(name, size, n, seconds)) + "\n"


def result(name: str, size: str, n: int, seconds: Sequence[float]) -> dict[str, Any]:
    """Returns the figures of a contender."""
    import tensorflow as tf

    return {
        "name": name,
        "d": sum(math.prod(shape) for shape in shapes(size)),
        "n": n,
        "batch": BATCH,
        "gradients_per_s": n * len(seconds) / sum(seconds),
        "peak_bytes": _peak_bytes(),
        "tensorflow": tf.__version__,
        "seconds": [round(each, 6) for each in seconds],
    }


def _peak_bytes() -> int:
    """Returns the most memory that this process has had, shared memory included."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser of the flags of all contenders."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--size", choices=HIDDEN, default="small")
    made.add_argument("--steps", type=int, default=100, help="that count (%(default)s)")
    return made


def add_per_call(made: argparse.ArgumentParser) -> None:
    """Adds what contenders have that can make several steps without Python in between."""
    made.add_argument(
        "--per-call", type=int, default=1, help="steps a call of TensorFlow (%(default)s)"
    )
