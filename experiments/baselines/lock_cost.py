"""Times in-graph replication on a server of the protocol "grpc" and on a locked one, in turn.

One process has both servers, each with the model and a session of its own on the same workers, and
makes a step with either. So what else the machine does meets both alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from experiments.baselines import cluster, workload
from experiments.baselines.ingraph import graph
from experiments.command import run_command

_PROTOCOLS = ("grpc", "grpc+lock")  # of the parameter servers 0 and 1


def main() -> int:
    """Starts the processes, or is one of them; returns the exit status."""
    arguments = cluster.parser(__doc__).parse_args()
    if cluster.is_task():
        resolver = cluster.task_resolver()
        if (resolver.task_type, resolver.task_id) == ("ps", 0):
            _measure(resolver.cluster_spec(), arguments)
        if resolver.task_type == "worker":
            cluster.start_server(resolver).join()
        threading.Event().wait()  # the second parameter server is in the process of the first
    return cluster.launch(
        "experiments.baselines.lock_cost",
        {"ps": len(_PROTOCOLS), "worker": arguments.workers},
        ("ps", 0),
        limit_s=arguments.limit,
    )


def _measure(spec: Any, arguments: argparse.Namespace) -> None:
    steps = [_step(spec, ps, arguments) for ps in range(len(_PROTOCOLS))]
    seconds: list[list[float]] = [[] for _ in steps]
    for k in range(workload.WARM_UP + arguments.steps):
        for ps in (0, 1) if k % 2 else (1, 0):
            begun = time.perf_counter()
            steps[ps]()
            if k >= workload.WARM_UP:
                seconds[ps].append(time.perf_counter() - begun)
    medians = [statistics.median(each) for each in seconds]
    report = {f"{name}_ms": 1e3 * of for name, of in zip(_PROTOCOLS, medians, strict=True)}
    report |= {"steps": arguments.steps, "throughput": medians[0] / medians[1]}
    cluster.end_with(json.dumps(report) + "\n")


def _step(spec: Any, ps: int, arguments: argparse.Namespace) -> Callable[[], object]:
    """Starts a server and returns what makes a step with it."""
    import tensorflow as tf

    from aggregathor.locking.server import locked_server

    if _PROTOCOLS[ps] == "grpc":
        server = tf.distribute.Server(spec, "ps", ps)
    else:
        server = locked_server(spec, "ps", ps)
    with tf.Graph().as_default() as made:
        loss = graph(arguments.size, arguments.workers, "flat", 1, ps)
        start = tf.compat.v1.global_variables_initializer()
    # Not the other server, which would refuse to take part.
    config = tf.compat.v1.ConfigProto(device_filters=[f"/job:ps/task:{ps}", "/job:worker"])
    session = tf.compat.v1.Session(server.target, graph=made, config=config)
    session.run(start)
    step = session.make_callable(loss)
    return lambda: (step(), server)[0]  # which ends with the last who knows it


if __name__ == "__main__":
    sys.exit(run_command("lock_cost", main))
