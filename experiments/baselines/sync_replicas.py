"""TensorFlow 1's SyncReplicasOptimizer: a parameter server and n workers, each with its own graph.

A step is one of the server's, made of n gradients. A worker that is fast may give two of them, so
that what the chief runs is no measure.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from experiments.baselines import cluster, workload
from experiments.command import run_command

_POLL_S = 0.05


def main() -> int:
    """Starts the processes, or is one of them; returns the exit status."""
    arguments = cluster.parser(__doc__).parse_args()
    if cluster.is_task():
        resolver = cluster.task_resolver()
        server = cluster.start_server(resolver)
        if resolver.task_type == "ps":
            server.join()
        _train(server.target, resolver, arguments)
    return cluster.launch(
        "experiments.baselines.sync_replicas",
        {"ps": 1, "worker": arguments.workers},
        ("worker", 0),
        limit_s=arguments.limit,
    )


def _train(target: str, resolver: Any, arguments: argparse.Namespace) -> None:
    import tensorflow as tf

    v1, n, is_chief = tf.compat.v1, arguments.workers, resolver.task_id == 0
    device = v1.train.replica_device_setter(
        worker_device=f"/job:worker/task:{resolver.task_id}", cluster=resolver.cluster_spec()
    )
    with tf.Graph().as_default(), v1.device(device):
        count = v1.train.create_global_step()
        ready = tf.Variable(0)  # workers
        one_more_ready = ready.assign_add(1)
        optimizer = v1.train.SyncReplicasOptimizer(
            v1.train.GradientDescentOptimizer(workload.LEARNING_RATE), n, n
        )
        loss = workload.loss(workload.variables(arguments.size))
        with tf.control_dependencies([optimizer.minimize(loss, global_step=count)]):
            step = (loss, tf.identity(count.read_value()))
        hook = optimizer.make_session_run_hook(is_chief)
        if not is_chief:
            _wait_for_variables(target)
        session = v1.train.MonitoredTrainingSession(target, is_chief=is_chief, hooks=[hook])
        session.run(one_more_ready)
        while session.run(ready) < n:
            time.sleep(_POLL_S)
        while not is_chief:
            session.run(step)

    done = reached = session.run(count)

    def next_step() -> None:
        nonlocal done, reached
        done += 1
        while reached < done:
            _, reached = session.run(step)

    seconds = workload.timed(next_step, arguments.steps)
    cluster.end_with(workload.line("SyncReplicasOptimizer", arguments.size, n, seconds))


def _wait_for_variables(target: str) -> None:
    """Waits for the chief, which MonitoredTrainingSession asks every 30 seconds only."""
    import tensorflow as tf

    v1 = tf.compat.v1
    missing = v1.report_uninitialized_variables(v1.global_variables())
    with v1.Session(target) as session:
        while len(session.run(missing)) > 0:
            time.sleep(_POLL_S)


if __name__ == "__main__":
    sys.exit(run_command("sync_replicas", main))
