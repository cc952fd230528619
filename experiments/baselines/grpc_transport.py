"""Times 7 MB from a worker to a parameter server by TensorFlow's own gRPC, with packets lost.

It wants the hosts of ``scripts/lossympi-hosts --plain``: host 0 runs the parameter server and host
1 the worker, which is also the client. A step moves one tensor from worker to server and fetches
one of its floats. Packets are lost from when both servers are connected and warm.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from experiments.baselines import hosts

_HOST = {"ps": 0, "worker": 1}
_CLUSTER = {role: [hosts.address(host)] for role, host in _HOST.items()}


def main() -> int:
    """Starts both servers, measures, prints JSON; returns the exit status."""
    parser = argparse.ArgumentParser(prog="grpc_transport", description=__doc__)
    parser.add_argument("--floats", type=int, default=1_750_000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--drop", type=int, default=0, help="of 1000 packets")
    parser.add_argument("--limit", type=float, default=60, help="start no step after this many s")
    parser.add_argument("--cores", action="store_true", help="keep each host to a core of its own")
    parser.add_argument("--role", choices=("ps", "worker"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cores and arguments.role:
        os.sched_setaffinity(0, {_HOST[arguments.role] % (os.cpu_count() or 1)})
    if arguments.role == "ps":
        return _serve()
    if arguments.role == "worker":
        return _measure(arguments)
    if not Path("/run/netns/lm_1").exists():
        parser.error("there are no hosts. Run it by `scripts/lossympi-hosts --plain`.")
    return _control(arguments)


def _control(arguments: argparse.Namespace) -> int:
    pipe = subprocess.PIPE
    server = subprocess.Popen(_command("ps"), stdout=subprocess.DEVNULL)
    worker = subprocess.Popen(_command("worker"), stdin=pipe, stdout=pipe, text=True)
    assert worker.stdout is not None
    try:
        if worker.stdout.readline().strip() != "ready":
            raise SystemExit("the worker did not start; its own words are above")
        if arguments.drop:
            hosts.lose_tcp(len(_HOST), arguments.drop)
        said, _ = worker.communicate("go\n")
        sys.stdout.write(said)
        return worker.returncode
    finally:
        for process in (server, worker):
            process.kill()
            process.wait()


def _command(role: str) -> list[str]:
    words = [sys.executable, "-m", "experiments.baselines.grpc_transport", *sys.argv[1:]]
    return [*hosts.enter(_HOST[role]), *words, f"--role={role}"]


def _server(role: str) -> Any:
    from experiments.command import import_tensorflow

    import_tensorflow()
    import tensorflow as tf

    config = tf.compat.v1.ConfigProto(
        inter_op_parallelism_threads=2, intra_op_parallelism_threads=1
    )
    return tf.distribute.Server(_CLUSTER, job_name=role, task_index=0, config=config)


def _serve() -> int:
    _server("ps").join()
    return 0


def _measure(arguments: argparse.Namespace) -> int:
    server = _server("worker")
    import tensorflow as tf

    v1 = tf.compat.v1
    graph = tf.Graph()
    with graph.as_default():
        with tf.device("/job:worker/task:0/device:CPU:0"):
            ones = tf.ones([arguments.floats])
            variable = v1.get_variable("gradient", initializer=ones, use_resource=True)
            gradient_d = tf.identity(variable.read_value())
        with tf.device("/job:ps/task:0/device:CPU:0"):
            step = tf.reshape(gradient_d, [-1])[0]  # taken there: all of it travels
        start = v1.global_variables_initializer()
    config = v1.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    config.graph_options.optimizer_options.opt_level = -1
    seconds: list[float] = []
    with v1.Session(server.target, graph=graph, config=config) as session:
        session.run(start)
        run_step = session.make_callable(step)
        for _ in range(3):
            run_step()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        while len(seconds) < arguments.rounds and sum(seconds) < arguments.limit:
            begun = time.perf_counter()
            run_step()
            seconds.append(time.perf_counter() - begun)
    sys.stdout.write(json.dumps({"tensorflow": tf.__version__, "seconds": seconds}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
