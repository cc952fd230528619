"""What rules cost: one job, whose server takes another rule at every step.

Jobs one after the other would not tell: a shared machine changes by more between them than a rule
costs.
"""

from __future__ import annotations

import itertools
import json
import sys

from aggregathor.aggregator import Aggregator
from aggregathor.cluster import job as jobs
from aggregathor.cluster.server import ServerChannel
from aggregathor.setting import Setting
from experiments.baselines import workload
from experiments.baselines.ours import make_step, num_workers


def main() -> int:
    """Trains for a number of steps of each rule; returns the exit status."""
    parser = workload.parser(__doc__)
    parser.add_argument("--rules", nargs="+", required=True, metavar="RULE")
    parser.add_argument("--f", type=int, default=0, help="that all must bear (%(default)s)")
    arguments = parser.parse_args()
    step, n, rules = make_step(arguments.size), num_workers(), arguments.rules
    job = jobs.current()
    if job is None:
        parser.error("start it by `aggregathor run -n N`: alone it has nothing to apply a rule to")
    step_of = itertools.count()
    kept: dict[str, Aggregator] = {}

    def next_step() -> float:
        rule = rules[next(step_of) % len(rules)]
        for channel in job.channels:
            if not isinstance(channel, ServerChannel):
                break
            if rule not in kept:
                setting = Setting(num_workers=n, gar=rule, f=arguments.f)
                kept[rule] = Aggregator(setting, len(channel.params_d))
            channel.aggregator = kept[rule]
        return float(step())

    warm_up = len(rules) * workload.WARM_UP  # so that each begins with the first
    seconds = workload.timed(next_step, len(rules) * arguments.steps, warm_up=warm_up)
    if job.is_server:
        parts = {
            rule: json.loads(workload.line(rule, arguments.size, n, seconds[place :: len(rules)]))
            for place, rule in enumerate(rules)
        }
        sys.stdout.write(json.dumps({"seconds": seconds, "parts": parts}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
