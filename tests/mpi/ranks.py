"""What each rank of a job does and asserts: mpirun -n 5 python -m tests.mpi.ranks NAME [PLANE]."""

import itertools
import os
import sys
import time

import numpy as np
from mpi4py import MPI

import lossympi

COMM = MPI.COMM_WORLD
RANK = COMM.rank
ROUNDS = 5
LAST = COMM.size - 1


def vector(rank, round, dim):
    return np.random.default_rng([rank, round]).standard_normal(dim, dtype=np.float32)


def lossy(plane):
    """A tenth of the datagrams is lost: of gradients that is seen, of models it is not."""
    dim = 352 * (60 if plane == "python" else 800) + 7
    # A busy machine may pause a rank for longer than the default.
    link = lossympi.connect(COMM, dim, plane=plane, timeout_s=10.0, grace_s=0.02, quiet_s=2.0)
    delivered = []
    for round in range(ROUNDS):
        if RANK > 0:
            assert link.send(round, vector(RANK, round, dim))
            model = link.receive(round)
            assert model.round == round
            np.testing.assert_array_equal(model.params_d, vector(0, round, dim))
            continue
        got = link.collect(round)
        link.broadcast(round, vector(0, round, dim))
        assert got.stats.closed_by == "early"
        delivered.append(got.delivered_n)
        for worker, row_d in enumerate(got.stack_nd):
            arrived_d = np.repeat(got.arrived_nc[worker], got.floats_per_datagram)[:dim]
            expected_d = vector(worker + 1, round, dim)
            np.testing.assert_array_equal(row_d[arrived_d], expected_d[arrived_d])
    COMM.Barrier()
    link.close()
    if RANK == 0:
        num_datagrams = (COMM.size - 1) * ROUNDS * lossympi.num_datagrams(dim)
        six_sigma = 6 * np.sqrt(0.1 * 0.9 / num_datagrams)
        assert abs(np.mean(delivered) - 0.9) < six_sigma, delivered


def sleeper(plane):
    """Nobody waits for a worker that has said nothing for two rounds, until it is back."""
    dim, timeout_s = 5000, 0.3
    link = lossympi.connect(
        COMM, dim, plane=plane, timeout_s=timeout_s, patience=2, silence_s=0.2, quiet_s=0.2
    )
    if RANK == 0:
        serve_sleeper(link, timeout_s)
    else:
        if RANK == LAST:
            COMM.recv(source=0)  # that it is not waited for any more
        round = 0 if RANK < LAST else link.receive(0).round + 1
        while True:
            link.send(round, vector(RANK, round, dim))
            model = link.receive(round)
            if model.params_d[0] < 0:
                break
            round = model.round + 1
    COMM.Barrier()
    link.close()


def serve_sleeper(link, timeout_s):
    params_d = np.ones(link.dim, np.float32)
    was_dead = is_back = False
    until = time.monotonic() + 20
    for round in itertools.count():
        assert time.monotonic() < until, (was_dead, is_back)
        got = link.collect(round)
        last = got.stats.workers[-1]
        if round < 2:
            assert last.live
            assert got.stats.closed_by == "deadline"
            assert timeout_s <= got.stats.elapsed_s < timeout_s + 1
        if not last.live and got.stats.closed_by == "complete" and not was_dead:
            was_dead = True  # and nobody waited for it
            COMM.send("wake up", dest=LAST)
        is_back = is_back or (last.live and last.delivered == 1 and was_dead)
        if is_back:
            params_d[:] = -1  # the end
        link.broadcast(round, params_d)
        if is_back:  # which is heard only while a round is open: no pause between them
            break


def options_differ(plane):
    """The failure of a rank is the failure of all, and they are told whose it is."""
    error = connect_error(plane=plane, timeout_s=3.0 if RANK == 2 else 30.0)
    assert "rank 0 and rank 2 have timeout_s=30.0 and timeout_s=3.0" in error, error


def firewall(plane):
    """No datagram comes through to worker 1: all hear of it soon."""
    if RANK == 2:
        os.environ["LOSSYMPI_DROP"] = "1"
    COMM.Barrier()
    begun = time.monotonic()
    error = connect_error(plane=plane)
    assert "no UDP datagram came back between worker 1 (" in error, error
    assert "firewall" in error
    assert "worker 0 (" not in error
    assert 1.5 < time.monotonic() - begun < 5  # 2, on a machine that is not busy


def connect_error(**options):
    try:
        lossympi.connect(COMM, 1000, **options)
    except lossympi.ConnectError as error:
        return str(error)
    raise AssertionError("connected")


if __name__ == "__main__":
    JOBS = {job.__name__: job for job in (lossy, sleeper, options_differ, firewall)}
    JOBS[sys.argv[1]](*(sys.argv[2:] or ["auto"]))
