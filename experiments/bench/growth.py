"""How the cost of the rules grows with n and with d."""

from __future__ import annotations

import functools
import mmap

import numpy as np
import tensorflow as tf

from aggregathor.gars import GARS
from experiments.bench.measure import Timed, against_mean, in_turn, seconds
from experiments.bench.plan import Plan
from lossympi.machine import free_bytes

# The power of n in the stated cost, logarithms aside; all of them grow as d. Brute is not here:
# exponential in f at worst. Krum costs what multi-krum costs, and average is the mean itself.
RULES = {
    "average-nan": 1,
    "median": 1,
    "trimmed-mean": 1,
    "meamed": 1,
    "phocas": 1,
    "geometric-median": 1,
    "multi-krum": 2,
    "bulyan": 2,
}
COORDINATE_WISE = ("average-nan", "median", "trimmed-mean", "meamed", "phocas")
PARAMETERS = {"geometric-median": {"max_iter": 2, "tol": 0.0}}  # a number that data do not change
MOST_BYTES = 8 << 30
# A prime: see random_values.
BLOCK = (1 << 24) - 3


def measure_growth(plan: Plan) -> list[dict]:
    """Times rules over all n and d whose stacks fit."""
    sizes = [(n, d) for d in plan.growth_ds for n in plan.growth_ns if fits(n, d)]
    values = random_values(max(n * d for n, d in sizes))
    rows = []
    with tf.device("CPU"):
        for n, d in sizes:
            f = (n - 3) // 4
            stack = _stack(values, n, d)
            for name in RULES:
                row = against_mean(name, _timed(name, stack, f), stack, plan)
                ns_per_value = 1e6 * row["ms"] / (n * d)
                rows.append({**row, "n": n, "f": f, "d": d, "ns_per_value": ns_per_value})
    return rows


def left_out(plan: Plan) -> list[str]:
    """Says which sizes are not measured, and why."""
    return [
        f"n = {n}, d = {d:,}: {4 * n * d / 2**30:.1f} GiB, and a stack may take "
        f"{_most_bytes() / 2**30:.1f} GiB"
        for d in plan.growth_ds
        for n in plan.growth_ns
        if not fits(n, d)
    ]


def measure_cliffs(plan: Plan, before: int = 32, after: int = 33) -> list[dict]:
    """The cost per value with one row more than the method for few rows takes, against without.

    The two are timed in turn, three times or more, each time as the better of two runs: a slow
    moment is no cliff.
    """
    ds = [d for d in plan.growth_ds if fits(after, d)]
    values = random_values(after * max(ds))
    rows = []
    with tf.device("CPU"):
        for d in ds:
            stacks = [_stack(values, n, d) for n in (before, after)]
            for name in COORDINATE_WISE:
                few, more = (_timed(name, stack, (before - 3) // 4, runs=2) for stack in stacks)
                before_s, after_s = in_turn(few, more, plan, least=3)
                factor = float(np.median(after_s / before_s)) * before / after
                rows.append({"name": name, "d": d, "factor": factor, "pairs": len(after_s)})
    return rows


def _stack(values: np.ndarray, n: int, d: int) -> tf.Tensor:
    """Shares the memory; a tensor of TensorFlow's own would be a second copy of 6 GiB."""
    return tf.experimental.dlpack.from_dlpack(values[: n * d].reshape(n, d).__dlpack__())


def _timed(name: str, stack: tf.Tensor, f: int, runs: int = 1) -> Timed:
    """Times the best of some runs."""
    run = functools.partial(GARS[name], stack, f=f, **PARAMETERS.get(name, {}))
    return lambda: min(seconds(run) for _ in range(runs))


def fits(n: int, d: int) -> bool:
    """Whether a stack of this size may be made on this machine."""
    return 4 * n * d <= _most_bytes()


@functools.cache
def _most_bytes() -> int:
    """8 GiB, or half of the memory that is free: results and the machine's other work need some."""
    return min(MOST_BYTES, (free_bytes() or 0) // 2)


def random_values(number: int) -> np.ndarray:
    """Normal float32 whose first n * d, as a stack [n, d], have no ties in a column.

    One block again and again, as drawing billions takes minutes. Row i begins at place i * d of
    the block, modulo its length. The length is a prime that divides neither d nor the difference
    of two rows' numbers, so no two rows have the same place in any column.
    """
    block = np.random.default_rng(0).standard_normal(BLOCK, np.float32)
    # Pages of its own, as TensorFlow wants an aligned address and copies what has none.
    memory = mmap.mmap(-1, 4 * number, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    values = np.frombuffer(memory, np.float32)
    for begin in range(0, number, BLOCK):
        part = values[begin : begin + BLOCK]
        part[:] = block[: len(part)]
    return values
