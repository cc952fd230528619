"""In-graph replication over gRPC, as AggregaThor's own runner did it.

One process is client and parameter server, n others serve as workers. The graph of the client has
the model once for each worker; the server averages the gradients and applies SGD. ``--form`` says
whether a worker's gradient travels as one vector or variable by variable.
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

from experiments.baselines import cluster, hosts, workload
from experiments.command import run_command


def main() -> int:
    """Starts the processes, or is one of them; returns the exit status."""
    parser = cluster.parser(__doc__)
    parser.add_argument("--form", choices=("flat", "variables"), default="flat")
    workload.add_per_call(parser)
    parser.add_argument(
        "--hosts",
        action="store_true",
        help="a task a host of `scripts/lossympi-hosts --plain`, the server on host 0",
    )
    parser.add_argument(
        "--protocol",
        choices=("grpc", "grpc+lock"),
        default="grpc",
        help="of the parameter server's own server; the workers' is grpc (%(default)s)",
    )
    parser.add_argument("--drop", type=int, default=0, help="of 1000 packets, once warm; --hosts")
    arguments = parser.parse_args()
    if arguments.drop and not arguments.hosts:
        parser.error("--drop is for --hosts")
    if cluster.is_task():
        resolver = cluster.task_resolver()
        is_ps = resolver.task_type == "ps"
        server = cluster.start_server(resolver, locked=is_ps and arguments.protocol != "grpc")
        if not is_ps:
            server.join()
        _measure(server.target, arguments)
    return cluster.launch(
        "experiments.baselines.ingraph",
        {"ps": 1, "worker": arguments.workers},
        ("ps", 0),
        limit_s=arguments.limit,
        on_hosts=arguments.hosts,
    )


def _measure(target: str, arguments: argparse.Namespace) -> None:
    import tensorflow as tf

    def lose_packets() -> None:
        if arguments.drop:
            hosts.lose_tcp(1 + arguments.workers, arguments.drop)

    n, v1 = arguments.workers, tf.compat.v1
    with tf.Graph().as_default():
        call = graph(arguments.size, n, arguments.form, arguments.per_call)
        with v1.Session(target) as session:
            session.run(v1.global_variables_initializer())
            # Half of the time is enough to start in; a step under losses may take a minute.
            seconds = workload.timed(
                session.make_callable(call),
                arguments.steps,
                limit_s=arguments.limit / 2,
                once_warm=lose_packets,
                per_call=arguments.per_call,
            )
            name = f"in-graph, {arguments.form}"
            if arguments.protocol != "grpc":
                name += f", {arguments.protocol}"
            cluster.end_with(workload.line(name, arguments.size, n, seconds))


def graph(size: str, n: int, form: str, per_call: int, ps: int = 0) -> Any:
    """Returns what a call fetches: the mean loss of its last step, on parameter server ``ps``."""
    import tensorflow as tf

    with tf.device(f"/job:ps/task:{ps}/device:CPU:0"):
        model = workload.variables(size)
        if per_call == 1:
            return _step(model, size, n, form, ps)

        def body(k: Any, loss: Any) -> tuple[Any, Any]:
            with tf.control_dependencies([loss]):  # the step before
                return k + 1, _step(model, size, n, form, ps)

        tf.compat.v1.disable_control_flow_v2()  # the loop that graphs of several processes have
        begin = (tf.constant(0), tf.constant(0.0))
        return tf.while_loop(lambda k, _: k < per_call, body, begin, parallel_iterations=1)[1]


def _step(model: list[Any], size: str, n: int, form: str, ps: int) -> Any:
    """Returns the op of a step: the mean loss, there when the model has been updated."""
    import tensorflow as tf

    losses, gradients = [], []
    for worker in range(n):
        with tf.device(f"/job:worker/task:{worker}/device:CPU:0"):
            loss = workload.loss(model)
            parts = tf.gradients(loss, model)
            losses.append(loss)
            if form == "flat":
                parts = [tf.concat([tf.reshape(part, [-1]) for part in parts], 0)]
            gradients.append(parts)
    with tf.device(f"/job:ps/task:{ps}/device:CPU:0"):
        means = [tf.add_n(of) / n for of in zip(*gradients, strict=True)]
        if form == "flat":
            shapes = workload.shapes(size)
            rows = tf.split(means[0], [math.prod(shape) for shape in shapes])
            means = [tf.reshape(row, shape) for row, shape in zip(rows, shapes, strict=True)]
        sgd = tf.compat.v1.train.GradientDescentOptimizer(workload.LEARNING_RATE)
        with tf.control_dependencies([sgd.apply_gradients(zip(means, model, strict=True))]):
            return tf.add_n(losses) / n


if __name__ == "__main__":
    sys.exit(run_command("ingraph", main))
