"""A job whose last worker writes to whatever it can reach; the server looks at what came of it.

python construction_script.py TRANSPORT; the folder RESULTS is for what the ranks leave.
"""

import contextlib
import os
import re
import socket
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import aggregathor as agt
from aggregathor.protocols.aggregation import Aggregation
from tests.locking.listeners import answers_grpc, tcp_ports, udp_ports
from tests.mpi.results import leave

TRANSPORT, FOLDER = sys.argv[1], Path(os.environ["RESULTS"])
D, ROUNDS = 5000, 12
agt.init(gar="median", f=1, transport=TRANSPORT, link_args={"timeout_s": 2.0})
rank = agt.rank()
rng = np.random.default_rng(rank)
# The gradient of sum(variable * own) is `own`, bit for bit.
gradients = np.random.default_rng(99).standard_normal((4, D), dtype=np.float32)
variable = tf.Variable(tf.zeros([D]), name="shared")
optimizer = agt.DistributedOptimizer(keras.optimizers.SGD(0.125))
stacks, rejected = [], []


def record():
    """Keeps what the server's rule is given, as it is given it."""
    aggregate = Aggregation.aggregate

    def recording(self, stack_nd, *args):
        stacks.append(np.array(stack_nd))
        return aggregate(self, stack_nd, *args)

    Aggregation.aggregate = recording


def scribble():
    """Writes over all memory that this process shares with others and may write."""
    count = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        found = re.match(r"(\w+)-(\w+) rw-s .*/memfd:", line)
        if found is None:
            continue
        first, end = (int(each, 16) for each in found.groups())
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(first)
            memory.write(rng.bytes(end - first))
        count += 1
    return count


def shout(pid):
    """Sends garbage to every port of the server's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        for port in udp_ports(pid):
            for size in (0, 1, 32, 48, 500, 1456, 9000):
                with contextlib.suppress(OSError):
                    udp.sendto(rng.bytes(size), ("127.0.0.1", port))
    for port in tcp_ports(pid):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as tcp:
            tcp.sendall(rng.bytes(2000))


@tf.function
def step():
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(variable * gradients[rank])
    optimizer.apply(tape.gradient(loss, [variable]), [variable])


if rank == 0:
    record()
    (FOLDER / "part").write_text(str(os.getpid()))
    (FOLDER / "part").rename(FOLDER / "pid")
step()
if rank == 3:
    while not (FOLDER / "pid").exists():
        time.sleep(0.01)
    server = int((FOLDER / "pid").read_text())
    scribbled = 0
    for _ in range(ROUNDS):
        shout(server)
        scribbled += TRANSPORT == "shm" and scribble()
        step()
    leave(rank, {"scribbled": scribbled})
else:
    for _ in range(ROUNDS):
        time.sleep(0.1)  # for the attacker to write meanwhile
        step()
        if rank == 0:
            stats = agt.last_round().stats
            rejected += [stats.others, *(worker.rejected for worker in stats.workers)]
if rank == 0:
    ports = tcp_ports(os.getpid())
    rows = [(stack[i], gradients[i + 1]) for stack in stacks for i in range(2)]
    intact = all(np.array_equal(got[~np.isnan(got)], own[~np.isnan(got)]) for got, own in rows)
    arrived = np.mean([np.isfinite(got).mean() for got, _ in rows])
    expected = np.zeros(D, np.float32)
    for stack in stacks:
        expected -= np.float32(0.125) * agt.gars.median(stack, f=1).numpy()
    leave(
        rank,
        {
            "ports that answer gRPC": sum(map(answers_grpc, ports)),
            "rounds": len(stacks),
            "rows of others are intact": intact,
            "arrived of them": float(arrived),
            "rejected": sum(sum(each.values()) for each in rejected),
            "is made of the stack alone": bool(np.array_equal(expected, variable.numpy())),
        },
    )
