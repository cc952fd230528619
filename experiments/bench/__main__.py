"""Times every rule, and what else is installed, against ``tf.reduce_mean(stack, 0)``."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from pathlib import Path

from aggregathor.cli.tf_log import quiet_tensorflow
from experiments.command import run_command
from experiments.machine import describe_machine, machine_slug

# TensorFlow reads it once, when it starts; the goals are for 2 threads.
THREADS = os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "2")

with quiet_tensorflow():
    import tensorflow as tf

    from aggregathor import gars, ops
    from experiments.bench.growth import left_out, measure_cliffs, measure_growth
    from experiments.bench.memory import peak_mib
    from experiments.bench.plan import FULL, QUICK
    from experiments.bench.report import as_markdown, plot_growth
    from experiments.bench.table import measure_table


def main(argv: list[str] | None = None) -> int:
    """Measures, prints the tables and writes them; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("experiments/results"))
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes that prove nothing: does it work?"
    )
    arguments = parser.parse_args(argv)
    try:  # before minutes of measuring
        arguments.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output={arguments.output} cannot be made: {error.strerror}")
    plan = QUICK if arguments.quick else FULL
    alone = [name for name, rule in gars.GARS.items() if not rule.needs_validation]
    memory_of = ["median"] if arguments.quick else alone

    facts = {
        "machine": describe_machine(),
        "date": datetime.date.today().isoformat(),
        "command": "python -m experiments.bench" + (" --quick" if arguments.quick else ""),
        "tensorflow": tf.__version__,
        "kernels": ops.state().in_use,
        "threads": THREADS,
    }
    result = {
        **facts,
        **plan._asdict(),
        "table": measure_table(plan),
        "peak_mib": {name: peak_mib(name, plan.n, plan.f, plan.d) for name in memory_of},
        "growth": measure_growth(plan),
        "cliffs": measure_cliffs(plan),
        "left_out": left_out(plan),
    }
    text = as_markdown(facts, result)
    sys.stdout.write(text)

    quick = "_quick" if arguments.quick else ""  # never in the place of figures that count
    name = f"gars_{machine_slug()}_{facts['kernels']}_{facts['date']}{quick}"
    (arguments.output / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.output / f"{name}.md").write_text(text)
    plot_growth(result, arguments.output / f"{name}.png")
    sys.stdout.write(f"\nwritten to {arguments.output / name}.{{json,md,png}}\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_command("bench", main))
