"""What rules cost: one job, whose server takes another rule at every step.

Jobs one after the other would not show it: between them a shared machine changes by more than a
rule costs.
"""

from __future__ import annotations

import functools
import itertools
import json
import sys

from aggregathor import api
from aggregathor.protocols.aggregation import Aggregation
from aggregathor.protocols.rounds import RoundsServer
from aggregathor.protocols.setting import Setting
from experiments.baselines import workload
from experiments.baselines.ours import make_step


def main() -> int:
    """Trains for a number of steps of each rule; returns the exit status."""
    parser = workload.parser(__doc__)
    parser.add_argument("--rules", nargs="+", required=True, metavar="RULE")
    parser.add_argument(
        "--f", type=int, default=0, help="Byzantine workers that all must tolerate (%(default)s)"
    )
    arguments = parser.parse_args()
    step, rules = make_step(arguments.size), arguments.rules
    job = api.current()
    if job is None:
        parser.error("start it by `aggregathor run -n N`: alone it has nothing to apply a rule to")
    n = job.ranks.topology.workers
    turns = itertools.cycle(rules)

    @functools.cache
    def aggregation(rule: str, dim: int) -> Aggregation:
        return Aggregation(Setting(num_workers=n, gar=rule, f=arguments.f), dim)

    def next_step() -> float:
        rule = next(turns)
        for half in job.halves:  # none before the first step, which has the job's own rule
            if isinstance(half, RoundsServer):
                half.aggregation = aggregation(rule, half.dim)
        return float(step())

    warm_up = len(rules) * workload.WARM_UP  # so that each begins with the first
    seconds = workload.timed(next_step, len(rules) * arguments.steps, warm_up=warm_up)
    if job.is_server:
        parts = {
            rule: workload.result(rule, arguments.size, n, seconds[place :: len(rules)])
            for place, rule in enumerate(rules)
        }
        sys.stdout.write(json.dumps({"seconds": seconds, "parts": parts}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
