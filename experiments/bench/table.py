"""The table: every rule, and what else computes the same, at one size."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from aggregathor import gars, ops
from experiments.bench.measure import Run, Timed, against_mean, seconds
from experiments.bench.peers import peer_rules
from experiments.bench.plan import Plan

BRUTE_N, BRUTE_F = 11, 2
ITERATIONS = 5


class Goal(NamedTuple):
    """The ratios to the mean that are asked for, and hoped for."""

    must: float
    stretch: float


# With AVX-512 and 2 threads, at n = 19, f = 4, d = 1.75 million.
GOALS = {
    "average-nan": Goal(1.0, 0.6),
    "median": Goal(1.0, 0.7),
    "trimmed-mean": Goal(1.0, 0.7),
    "median, 10% missing": Goal(2.0, 1.2),
    "trimmed-mean, 10% missing": Goal(2.0, 1.2),
    "meamed": Goal(1.8, 1.1),
    "phocas": Goal(1.8, 1.1),
    "krum": Goal(2.5, 1.6),
    "multi-krum": Goal(2.5, 1.6),
    "bulyan": Goal(4.0, 2.5),
    "geometric-median, one iteration": Goal(2.0, 1.2),
    "brute, n=11, f=2": Goal(3.0, 1.6),
}
# How much more other instruction sets may take; those that are not here have no goal.
GOAL_FACTORS = {"avx512": 1.0, "avx2": 1.6}


def goal_of(name: str, kernels: str) -> Goal | None:
    """Returns the goal of a row of the table, if it has one."""
    goal, factor = GOALS.get(name), GOAL_FACTORS.get(kernels)
    if goal is None or factor is None:
        return None
    return Goal(goal.must * factor, goal.stretch * factor)


def measure_table(plan: Plan) -> list[dict]:
    """Times everything, each row against the mean of the stack that it is given."""
    rng = np.random.default_rng(0)
    stack_nd = rng.standard_normal((plan.n, plan.d), np.float32)
    holey_nd = np.where(rng.random(stack_nd.shape, np.float32) < 0.1, np.float32(np.nan), stack_nd)
    with tf.device("CPU"):  # where the rules run, also on a machine that has a GPU
        full, holey = tf.constant(stack_nd), tf.constant(holey_nd)
        few = full[:BRUTE_N]
        of_brute = f", n={BRUTE_N}, f={BRUTE_F}"
        rows = [(name, _timed(run), full) for name, run in _own(full, holey, plan.f).items()]
        rows.append(("geometric-median, one iteration", _iteration(full, plan.f), full))
        rows.append((f"brute{of_brute}", _timed(_rule("brute", few, BRUTE_F)), few))
        rows += [(name, _timed(run), full) for name, run in _others(full, plan.f).items()]
        for label, name, run in peer_rules(stack_nd, plan.f, stack_nd[:BRUTE_N], BRUTE_F):
            label, stack = (label + of_brute, few) if name == "brute" else (label, full)
            rows.append((label, _timed(run), stack))
        return [against_mean(name, timed, stack, plan) for name, timed, stack in rows]


def _own(full: tf.Tensor, holey: tf.Tensor, f: int) -> dict[str, Run]:
    """The rules that judge by gradients alone, but for brute and Weiszfeld's.

    Brute is slow at this n, and the time of Weiszfeld's depends on the data.
    """
    runs = {
        name: _rule(name, full, f)
        for name, rule in gars.GARS.items()
        if name not in ("brute", "geometric-median") and not rule.needs_validation
    }
    for name in ("median", "trimmed-mean", "meamed", "multi-krum", "bulyan"):
        runs[f"{name}, 10% missing"] = _rule(name, holey, f)
    return runs


def _others(full: tf.Tensor, f: int) -> dict[str, Run]:
    """What TensorFlow and NumPy have, and our own rules without the native kernels."""
    return {
        "tf.sort": lambda: tf.sort(full, axis=0),
        "numpy.median": functools.partial(np.median, full.numpy(), axis=0),
        "median, stand-in": _stand_in("median", full, f),
        "multi-krum, stand-in": _stand_in("multi-krum", full, f),
    }


def _timed(run: Run) -> Timed:
    return functools.partial(seconds, run)


def _rule(name: str, stack: tf.Tensor, f: int, **parameters: Any) -> Run:
    return functools.partial(gars.GARS[name], stack, f=f, **parameters)


def _stand_in(name: str, stack: tf.Tensor, f: int) -> Run:
    def run() -> tf.Tensor:
        with ops.using("tensorflow"):
            return gars.GARS[name](stack, f=f)

    return run


def _iteration(stack: tf.Tensor, f: int) -> Timed:
    """What an iteration adds: the start, a median, is in both runs."""
    one, more = (
        _rule("geometric-median", stack, f, max_iter=max_iter, tol=0.0)
        for max_iter in (1, 1 + ITERATIONS)
    )
    return lambda: (seconds(more) - seconds(one)) / ITERATIONS
