"""Times two things in turn, such as a rule and the mean."""

from __future__ import annotations

import functools
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


def in_turn(first: Timed, second: Timed, plan: Plan, least: int = 1) -> np.ndarray:
    """Times two things in turn, ``least`` times or more whatever the plan's patience.

    A machine that slows down slows both, so ratios are to be taken pair by pair.

    Returns:
      Seconds, shape [2, pairs].
    """
    begin = time.perf_counter()
    first(), second()  # not counted: pages, caches and threads are cold
    cold_s = time.perf_counter() - begin
    pairs = max(least, min(plan.repeats, int(plan.patience_s / cold_s)))
    return np.array([(first(), second()) for _ in range(pairs)]).T


def against_mean(name: str, timed: Timed, stack: tf.Tensor, plan: Plan) -> dict:
    """Times ``timed`` and the mean of the stack in turn.

    Returns:
      Name, milliseconds and the ratio, both as medians, and the number of pairs.
    """
    mean = functools.partial(seconds, lambda: tf.reduce_mean(stack, axis=0))
    mean_s, timed_s = in_turn(mean, timed, plan)
    return {
        "name": name,
        "ms": 1e3 * float(np.median(timed_s)),
        "ratio": float(np.median(timed_s / mean_s)),
        "pairs": len(timed_s),
    }
