"""TensorFlow 2's MultiWorkerMirroredStrategy: n workers, a ring over gRPC, no server."""

from __future__ import annotations

import sys
import threading
from typing import Any

from experiments.baselines import cluster, workload
from experiments.command import run_command


def main() -> int:
    """Starts the processes, or is one of them; returns the exit status."""
    arguments = cluster.parser(__doc__).parse_args()
    if cluster.is_task():
        resolver = cluster.task_resolver()
        step = _step_of(resolver, arguments.size)
        seconds = workload.timed(lambda: float(step()), arguments.steps)
        if resolver.task_id != 0:
            threading.Event().wait()  # others may still need our server
        name = "MultiWorkerMirroredStrategy"
        cluster.end_with(workload.line(name, arguments.size, arguments.workers, seconds))
    return cluster.launch(
        "experiments.baselines.mwms",
        {"worker": arguments.workers},
        ("worker", 0),
        limit_s=arguments.limit,
    )


def _step_of(resolver: Any, size: str) -> Any:
    import tensorflow as tf

    ring = tf.distribute.experimental.CommunicationImplementation.RING
    strategy = tf.distribute.MultiWorkerMirroredStrategy(
        resolver, tf.distribute.experimental.CommunicationOptions(implementation=ring)
    )
    with strategy.scope():
        model = workload.variables(size)

    def replica() -> Any:
        with tf.GradientTape() as tape:
            loss = workload.loss(model)
        gradients = tape.gradient(loss, model)
        # One call for all: TensorFlow packs them into one vector.
        means = tf.distribute.get_replica_context().all_reduce("MEAN", gradients)
        for variable, mean in zip(model, means, strict=True):
            variable.assign_sub(workload.LEARNING_RATE * mean)
        return loss

    return tf.function(lambda: strategy.run(replica))


if __name__ == "__main__":
    sys.exit(run_command("mwms", main))
