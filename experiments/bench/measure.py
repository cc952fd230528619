"""Times one thing against the mean."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from experiments.bench.plan import Plan

Run = Callable[[], Any]
# Runs something and returns how many seconds it took.
Timed = Callable[[], float]


def seconds(run: Run) -> float:
    """Times one run, which must have finished when it returns.

    That is so for NumPy, for PyTorch on a CPU and for TensorFlow's eager ops on a CPU. Reading the
    result of the latter (``.numpy()``) would copy it, which costs a tenth of a mean.
    """
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def against_mean(name: str, timed: Timed, stack: tf.Tensor, plan: Plan) -> dict:
    """Times ``timed`` and the mean of the stack in turn.

    A machine that slows down slows both, so ratios are taken pair by pair.

    Returns:
      Name, milliseconds and the ratio, both as medians, and the number of pairs.
    """
    begin = time.perf_counter()
    timed()  # not counted: pages, caches and threads are cold
    _mean_s(stack)
    first_s = time.perf_counter() - begin
    pairs = max(1, min(plan.repeats, int(plan.patience_s / first_s)))
    found = []
    for _ in range(pairs):
        mean_s = _mean_s(stack)
        found.append((timed(), mean_s))
    return {
        "name": name,
        "ms": 1e3 * float(np.median([timed_s for timed_s, _ in found])),
        "ratio": float(np.median([timed_s / mean_s for timed_s, mean_s in found])),
        "pairs": pairs,
    }


def _mean_s(stack: tf.Tensor) -> float:
    return seconds(lambda: tf.reduce_mean(stack, axis=0))
