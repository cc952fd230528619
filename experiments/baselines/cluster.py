"""The processes of a TensorFlow cluster: all started by one command, and all ended by it."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from experiments.baselines import hosts, workload

Task = tuple[str, int]  # job and index

_STDIN = 0


def parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser of the flags of all baselines."""
    made = workload.parser(description)
    made.add_argument("--workers", type=int, default=4, help="how many (%(default)s)")
    made.add_argument("--limit", type=float, default=300, help="s, for all of it (%(default)s)")
    return made


def is_task() -> bool:
    """Whether this process is one of a cluster's; if so, it will end when the launcher does."""
    if "TF_CONFIG" not in os.environ:
        return False
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    return True


def _end_with_launcher() -> None:
    os.read(_STDIN, 1)  # a pipe, to which nobody writes
    os._exit(1)


def launch(
    module: str,
    jobs: Mapping[str, int],
    reporter: Task,
    *,
    limit_s: float,
    on_hosts: bool = False,
) -> int:
    """Runs ``python -m module``, with our arguments, as every task of a cluster.

    Args:
      module: what to run. It finds its task in TF_CONFIG, and ``is_task()`` true.
      jobs: how many tasks each job has.
      reporter: the task whose output is shown, and with whose end all others are ended.
      limit_s: seconds after which all are ended.
      on_hosts: task by task on the hosts of ``scripts/lossympi-hosts --plain``, not on this one.
    Returns:
      The reporter's exit status; 1 if another task failed before, or the time was up.
    """
    tasks = [(job, index) for job, count in jobs.items() for index in range(count)]
    if on_hosts:
        addresses = [hosts.address(host) for host in range(len(tasks))]
    else:
        addresses = _free_addresses(len(tasks))
    where = dict(zip(tasks, addresses, strict=True))
    cluster = {job: [where[job, index] for index in range(jobs[job])] for job in jobs}
    command = [sys.executable, "-m", module, *sys.argv[1:]]
    running: dict[Task, subprocess.Popen] = {}
    try:
        for host, (job, index) in enumerate(tasks):
            config = {"cluster": cluster, "task": {"type": job, "index": index}}
            running[job, index] = subprocess.Popen(
                [*(hosts.enter(host) if on_hosts else ()), *command],
                env={**os.environ, **workload.THREADS, "TF_CONFIG": json.dumps(config)},
                stdin=subprocess.PIPE,
                stdout=None if (job, index) == reporter else subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for us alone
            )
        return _wait(running, reporter, limit_s)
    finally:
        for process in running.values():
            process.kill()
        for process in running.values():
            process.communicate()


def _wait(running: Mapping[Task, subprocess.Popen], reporter: Task, limit_s: float) -> int:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        status = running[reporter].poll()
        if status is not None:
            return status
        for (job, index), process in running.items():
            if process.poll():
                sys.stderr.write(f"{job} {index} ended with status {process.returncode}\n")
                return 1
        time.sleep(0.05)
    sys.stderr.write(f"not done after {limit_s:g} s\n")
    return 1


def _free_addresses(count: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return addresses


def task_resolver() -> Any:
    """Returns TensorFlow's view of TF_CONFIG: ``cluster_spec()``, ``task_type`` and ``task_id``."""
    from experiments.command import import_tensorflow

    import_tensorflow()
    import tensorflow as tf

    return tf.distribute.cluster_resolver.TFConfigClusterResolver()


def start_server(resolver: Any, *, locked: bool = False) -> Any:
    """Starts TensorFlow's gRPC server of this task, or ours that nobody else drives."""
    import tensorflow as tf

    spec = resolver.cluster_spec()
    if locked:
        from aggregathor.locking.server import locked_server

        return locked_server(spec, resolver.task_type, resolver.task_id)
    return tf.distribute.Server(spec, job_name=resolver.task_type, task_index=resolver.task_id)


def end_with(report: str) -> None:
    """Prints it and ends the process at once: what is left of the cluster is the launcher's."""
    sys.stdout.write(report)
    sys.stdout.flush()
    os._exit(0)
