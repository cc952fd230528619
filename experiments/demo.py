"""``make demo``: training on handwritten digits while 2 of 11 workers attack.

Average without attack, average under attack, and three robust rules under the same attack.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.command import import_tensorflow, run_command


def main() -> int:
    """Makes the five runs; returns the exit status."""
    return run_command("demo", _main)


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("results/demo"))
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    sys.stdout.write("11 workers, 2 of them Byzantine where there is an attack; 1797 digits\n")
    sys.stdout.flush()  # the import takes seconds
    import_tensorflow()
    from experiments.config import Config
    from experiments.suite import print_summary, run_all, write_summary

    common = {
        "experiment": "digits",
        "workers": 11,
        "learning_rate": 0.05,
        "momentum": 0.9,
        "batch_size": 128,
        "steps": arguments.steps,
        "eval_every": 10,
    }
    attacked = {**common, "byzantine": 2, "attack": "omniscient"}
    configs = [
        Config(gar="average", **common),
        Config(gar="average", **attacked),
        Config(gar="median", **attacked),
        Config(gar="multi-krum", **attacked),
        Config(gar="bulyan", **attacked),
    ]
    title = "Handwritten digits, 11 workers, 2 Byzantine sending -1e20 times the honest sum"
    results = run_all(configs, arguments.output, overwrite=True)
    if len(results) < len(configs):
        sys.stderr.write("demo: stopped\n")
        return 130
    write_summary(configs, results, arguments.output, title)
    print_summary(configs, results)
    sys.stdout.write(f"curves: {arguments.output / 'accuracy.png'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
