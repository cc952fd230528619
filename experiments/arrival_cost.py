"""``python -m experiments.arrival_cost``: what arrival rules cost a server beyond the copy.

Gradients of 10 workers come in a random order; each is copied into its worker's row, as a link
does, and offered to the rule. The time of the offer is compared with one pass over a vector as
long, ``numpy.sum`` of one that has not been touched for as many turns as the models and gradients
that the rules compare with. Figures are medians. Of BASGD's
arrivals those that make a step are left out, whose time is that of its rule, and of Zeno++'s those
for which the validation gradient is computed; how long a step of BASGD takes is a line of its own.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aggregathor.errors import UserError
from experiments.command import import_tensorflow, run_command
from experiments.goals import HEADER, Goal
from experiments.machine import describe_machine
from experiments.measuring import seconds_of, write_report

N, F = 10, 2
DIM = 1_756_426  # of AggregaThor's CNN for CIFAR-10
# protocol: (parameters, must, stretch)
RULES: dict[str, tuple[dict[str, Any], float, float]] = {
    "async": ({}, 2.0, 1.0),
    "basgd": ({"gar": "median"}, 2.0, 1.2),
    "zeno++": ({}, 3.0, 2.0),
    "kardam": ({}, 4.0, 3.0),
}


class Cost(NamedTuple):
    """Milliseconds, medians; and the median of the ratios turn by turn."""

    protocol: str
    copy_ms: float
    pass_ms: float
    offer_ms: float
    step_ms: float
    ratio: float


def measure(protocol: str, parameters: dict[str, Any], dim: int, arrivals: int) -> Cost:
    """Times a rule on so many arrivals, of which the first tenth does not count."""
    from aggregathor.protocols.arrival_rules import arrival_rule
    from aggregathor.protocols.offers import Offer
    from aggregathor.protocols.setting import Setting

    setting = Setting(num_workers=N, f=F, protocol=protocol, **parameters)
    setting.check()
    rng = np.random.default_rng(0)
    toward_d = rng.standard_normal(dim, dtype=np.float32)
    made: list[int] = []

    def validate(params_d: np.ndarray, number: int, count: int) -> np.ndarray:
        made.append(number)
        return toward_d

    rule = arrival_rule(setting, dim, learning_rate=lambda: 0.1, validate=validate)
    sent_nd = toward_d + 0.1 * rng.standard_normal((N, dim), dtype=np.float32)
    rows_nd, others_nd = np.zeros_like(sent_nd), np.ones_like(sent_nd)
    params_d: np.ndarray = np.zeros(dim, np.float32)
    version = 0
    held = [(version, params_d)] * N
    times: list[tuple[float, ...]] = []
    steps: list[float] = []
    for arrival in range(arrivals):
        row = int(rng.integers(N))
        row_d = rows_nd[row]
        sent_nd[row] *= np.float32(rng.uniform(0.99, 1.01))
        copy_s = seconds_of(np.copyto, row_d, sent_nd[row])
        pass_s = seconds_of(np.sum, others_nd[row])
        offer = Offer(row, held[row][0], version - held[row][0], held[row][1], params_d, row_d, 0.0)
        validated = len(made)
        begun_s = time.perf_counter()
        verdict = rule.offer(offer)
        offer_s = time.perf_counter() - begun_s
        if verdict.step_d is not None:
            params_d, version = params_d - np.float32(1e-3) * verdict.step_d, version + 1
        held[row] = version, params_d
        if arrival < arrivals // 10 or len(made) > validated:
            continue
        if protocol == "basgd" and verdict.step_d is not None:
            steps.append(offer_s)
        else:
            times.append((copy_s, pass_s, offer_s, offer_s / pass_s))
    copy_s, pass_s, offer_s, ratio = np.median(times, axis=0)
    step_s = float(np.median(steps)) if steps else 0.0
    return Cost(protocol, 1e3 * copy_s, 1e3 * pass_s, 1e3 * offer_s, 1e3 * step_s, ratio)


def report(costs: list[Cost], dim: int, command: str) -> str:
    """Returns the tables as Markdown."""
    today = datetime.date.today().isoformat()
    lines = [
        f"`{command}`, {describe_machine()}, {today}.",
        "",
        f"n={N} workers, f={F}, d={dim:,}, float32. The pass is numpy.sum.",
        "",
        "| protocol | copy, ms | pass, ms | offer, ms | offer that makes a step of basgd, ms |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for each in costs:
        step = f"{each.step_ms:.2f}" if each.step_ms else ""
        figures = f"{each.copy_ms:.2f} | {each.pass_ms:.2f} | {each.offer_ms:.2f} | {step}"
        lines.append(f"| {each.protocol} | {figures} |")
    lines += ["", *HEADER]
    for each in costs:
        _, must, stretch = RULES[each.protocol]
        name = f"{each.protocol}: an arrival beyond the copy, over one pass"
        lines.append(Goal(name, must, stretch, each.ratio, "ratio").row())
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """Measures, prints the tables and writes them; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.arrival_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dim", type=int, default=DIM, help="d (%(default)s)")
    parser.add_argument("--arrivals", type=int, default=300, help="of each rule (%(default)s)")
    parser.add_argument("--output", default="results", help="folder (%(default)s)")
    args = parser.parse_args(argv)
    if args.dim < 1 or args.arrivals < 100:
        raise UserError("--dim is at least 1, and --arrivals at least 100")
    import_tensorflow()
    costs = [measure(name, of[0], args.dim, args.arrivals) for name, of in RULES.items()]
    text = report(costs, args.dim, shlex.join(["python", "-m", "experiments.arrival_cost", *argv]))
    write_report("arrival_cost", text, Path(args.output))
    return 0


if __name__ == "__main__":
    sys.exit(run_command("arrival_cost", lambda: main(sys.argv[1:])))
