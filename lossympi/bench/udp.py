"""Rounds over LossyMPI, timed on the server."""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import numpy as np

import lossympi
from lossympi.bench.values import Values
from lossympi.collectives import Collectives
from lossympi.connection import START_S, ConnectError
from lossympi.mpi_collectives import MpiCommunicator
from lossympi.topology import ROOT, Topology
from lossympi.udp_link import UdpServer, UdpWorker

_SETTLE_S = 0.005  # until the other ranks have left the barrier and wait for their grant


def collectives_of(comm: Any) -> Collectives:
    """Returns what ranks tell each other by."""
    return Collectives(MpiCommunicator.of(comm, START_S, ConnectError), ConnectError)


def measure_udp(comm: Any, arguments: argparse.Namespace, tell: Callable[[int], None]) -> dict:
    """Runs the rounds on every rank; returns the samples on rank 0 and nothing elsewhere.

    A barrier of MPI, which is not timed, comes before each round: the values of the round before
    have been compared on all ranks by then.

    Raises:
      ConnectError: an option is wrong, or datagrams do not get through.
    """
    os.environ["LOSSYMPI_DROP"] = str(arguments.drop)
    link = lossympi.connect(
        comm,
        arguments.floats,
        plane=arguments.plane,
        timeout_s=arguments.timeout,
        max_loss=arguments.max_loss,
        auth=arguments.auth,
        wire=arguments.wire,
        mtu=arguments.mtu,
        rate_bps=arguments.rate_bps,
    )
    try:
        if Topology.of_size(comm.size).is_server(comm.rank):
            result = _serve(comm, cast(UdpServer, link), arguments, tell)
        else:
            result = _work(comm, cast(UdpWorker, link), arguments)
        own_r = np.full(1 + arguments.rounds, np.nan)  # a silent worker has no times
        own_r[0], own_r[1 : 1 + len(result["cpu_s"])] = result["wrong_floats"], result["cpu_s"]
        everyones_nr = np.empty((comm.size, len(own_r))) if comm.rank == ROOT else None
        comm.Gather(own_r, everyones_nr, ROOT)
        wait_for_all(comm)  # or a worker would hear BYE while it still waits
    finally:
        link.close()
    if everyones_nr is None:
        return {}
    result["cpu_s_by_rank"] = [s_r[1:][np.isfinite(s_r[1:])].tolist() for s_r in everyones_nr]
    workers = Topology.of_size(comm.size).worker_ranks
    result["wrong_floats_of_models"] = sum(int(everyones_nr[rank, 0]) for rank in workers)
    del result["cpu_s"]
    return result


def wait_for_all(comm: Any) -> None:
    """A barrier that leaves the processor to others while it waits."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(0.0005)


def _serve(
    comm: Any, link: UdpServer, arguments: argparse.Namespace, tell: Callable[[int], None]
) -> dict:
    rounds, topology = arguments.rounds, Topology.of_size(comm.size)
    sent = [Values(rank, link.dim, rounds, arguments.wire) for rank in range(comm.size)]
    samples: dict[str, list] = {
        name: []
        for name in ("round_s", "broadcast_s", "deadline_s", "delivered_n", "closed_by", "cpu_s")
    }
    wrong_floats = 0
    reasons: Counter[str] = Counter()
    stop = threading.Event()
    if arguments.gil:
        threading.Thread(target=_spin, args=(stop,), daemon=True).start()
    try:
        for round in range(rounds):
            wait_for_all(comm)
            time.sleep(_SETTLE_S)
            cpu = time.process_time()
            begun = time.perf_counter()
            collected = link.collect(round)
            closed = time.perf_counter()
            link.broadcast(round, sent[comm.rank].of_round(round))
            ended = time.perf_counter()
            samples["cpu_s"].append(time.process_time() - cpu)
            stats = collected.stats
            assert stats is not None
            samples["round_s"].append(closed - begun)
            samples["broadcast_s"].append(ended - closed)
            samples["deadline_s"].append(stats.deadline_s)
            samples["delivered_n"].append(collected.delivered_n.tolist())
            samples["closed_by"].append(stats.closed_by)
            for row, worker in enumerate(stats.workers):
                wrong_floats += sent[topology.rank_of(row)].count_wrong(
                    round,
                    collected.stack_nd[row],
                    collected.arrived_nc[row],
                    collected.floats_per_datagram,
                )
                reasons.update(accepted=worker.accepted, late=worker.late)
                reasons.update(duplicate=worker.duplicate, **worker.rejected)
            reasons.update(stats.others)
            tell(round + 1)
    finally:
        stop.set()
    counted = {reason: count for reason, count in sorted(reasons.items()) if count}
    return {**samples, "wrong_floats": wrong_floats, "datagrams": counted}


def _work(comm: Any, link: UdpWorker, arguments: argparse.Namespace) -> dict:
    topology = Topology.of_size(comm.size)
    [server] = topology.server_ranks
    silent = arguments.silent and comm.rank == topology.worker_ranks[-1]
    own = Values(comm.rank, link.dim, arguments.rounds, arguments.wire)
    models = Values(server, link.dim, arguments.rounds, arguments.wire)
    whole_c, floats = np.ones(1, bool), link.dim
    cpu_s, wrong_floats = [], 0
    for round in range(arguments.rounds):
        wait_for_all(comm)
        if silent:
            continue
        cpu = time.process_time()
        link.send(round, own.of_round(round))
        model = link.receive(round)
        assert model is not None  # as it waits
        cpu_s.append(time.process_time() - cpu)
        wrong_floats += models.count_wrong(model.round, model.params_d, whole_c, floats)
    return {"cpu_s": cpu_s, "wrong_floats": wrong_floats}


def _spin(stop: threading.Event) -> None:
    """Holds the interpreter's lock as a training loop in pure Python would."""
    while not stop.is_set():
        sum(range(1000))
