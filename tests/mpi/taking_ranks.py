"""``take`` and ``reply`` between ranks: mpirun -n 5 python -m ... NAME TRANSPORT DIM DTYPE.

Rank 0 checks, and has the other ranks do what a worker's end is called for.
"""

import os
import resource
import signal
import sys
import time
from contextlib import suppress

import numpy as np
import pytest

import lossympi
from lossympi.plane.packet import Kind
from lossympi.plane.protocol import Outgoing
from tests.lossympi import taking
from tests.mpi.ranks import COMM, LAST, RANK

TRANSPORT = sys.argv[2]
N = COMM.size - 1


class Remote:
    """The end of another rank, as rank 0 calls it."""

    has_begun = TRANSPORT != "udp"  # where nothing is sent before the server takes

    def __init__(self, rank, server):
        self._rank, self._server = rank, server

    def _call(self, *call):
        COMM.send(call, dest=self._rank)
        return COMM.recv(source=self._rank)

    def send(self, round, grad_d):
        if not Remote.has_begun:
            Remote.has_begun = True
            assert self._server.take(0.0) is None
        return self._call("send", round, grad_d)

    def receive(self, round):
        return self._call("receive", round)


def joined(dim, dtype, **options):
    options = {"timeout_s": 5.0, **options}
    return lossympi.connect(COMM, dim, transport=TRANSPORT, dtype=dtype, **options)


def obey(link):
    """Does what rank 0 says until it says to stop."""
    while (call := COMM.recv(source=0)) is not None:
        verb, round, *rest = call
        result = getattr(link, verb)(round, *rest)
        if verb == "receive":
            result = result.round, np.array(result.params_d)
        COMM.send(result, dest=0)


def contract():
    check = getattr(taking, sys.argv[5])
    dim, dtype = int(sys.argv[3]), np.dtype(sys.argv[4])
    link = joined(dim, dtype)
    if RANK == 0:
        check(lambda *_: (link, [Remote(rank, link) for rank in range(1, N + 1)]), dim, dtype)
        for rank in range(1, N + 1):
            COMM.send(None, dest=rank)
    else:
        obey(link)
    COMM.Barrier()
    link.close()
    COMM.Barrier()


def idle():
    """Who waits takes no processor, and the end reaches who waits for an answer."""
    link = joined(1000, np.float32)
    begun_s = resource.getrusage(resource.RUSAGE_SELF)
    if RANK == 0:
        assert link.take(1.5) is not None
        assert link.take(1.5) is None
    else:
        if RANK == 1:
            link.send(0, np.ones(1000, np.float32))
        assert link.receive(0, wait_s=2.5) is None
    used = resource.getrusage(resource.RUSAGE_SELF)
    assert used.ru_utime + used.ru_stime - begun_s.ru_utime - begun_s.ru_stime < 0.8
    COMM.Barrier()
    if RANK == 0:
        link.close()
    else:
        with pytest.raises(lossympi.LinkError, match="it has closed the link"):
            link.receive(0)
        link.close()
    COMM.Barrier()


def flood():
    """One rank sends what it likes without end: the others have their turns, and no row changes."""
    dim, turns = 2000, 150
    of_udp = {} if TRANSPORT != "udp" else {"plane": "python" if RANK == LAST else "native"}
    link = joined(dim, np.float32, **of_udp)
    if RANK == 0:
        counts = [0] * N
        honest = set(range(N - 1))
        begun_s = time.monotonic()
        while any(counts[row] < turns for row in honest):
            arrival = link.take(20.0)
            row = arrival.row
            if row in honest:
                np.testing.assert_array_equal(arrival.grad_d, np.full(dim, row, np.float32))
            counts[row] += 1
            link.reply(row, np.full(dim, counts[row], np.float32))
            assert time.monotonic() - begun_s < 60
        # However often it comes, the others come alike.
        assert max(counts[:-1]) <= 2 * min(counts[:-1])
        dropped = link.dropped()
        # In memory that it shares it overwrites most of what it puts there itself.
        assert sum(dropped[-1].values()) > (5 if TRANSPORT == "shm" else 50)
        assert all(each.keys() <= {"late", "duplicate"} for each in dropped[:-1])
        assert TRANSPORT == "udp" or not any(dropped[:-1])
        for rank in range(1, N):
            COMM.isend(None, dest=rank, tag=9)
        stop_attack(link)
    elif RANK == LAST:
        attack(link, dim)
    else:
        for ticket in range(turns):
            link.send(ticket, np.full(dim, RANK - 1, np.float32))
            assert link.receive(ticket).params_d[0] == ticket + 1
    if RANK != LAST and RANK != 0:
        COMM.recv(source=0, tag=9)
    COMM.Barrier()
    link.close()
    COMM.Barrier()


def share():
    """Prints what a rank that floods gets of the server's turns, and of its processor's time.

    Of the latter it is charged all but what as many gradients of the others cost without it.
    """
    dim, seconds, cost_s = 90_000, 5.0, 0.0
    for floods in (False, True):
        of_udp = {} if TRANSPORT != "udp" else {"plane": "python" if RANK == LAST else "native"}
        link = joined(dim, np.float32, **of_udp)
        if RANK == 0:
            counts, params_d = [0] * N, np.zeros(dim, np.float32)
            begun_s, begun_cpu_s = time.monotonic(), time.process_time()
            while time.monotonic() - begun_s < seconds:
                arrival = link.take(1.0)
                params_d -= np.float32(1e-3) * arrival.grad_d
                counts[arrival.row] += 1
                link.reply(arrival.row, params_d)
            cpu_s, honest = time.process_time() - begun_cpu_s, sum(counts[:-1])
            if floods:
                sys.stdout.write(
                    f"{TRANSPORT}: {counts[-1] / sum(counts):.1%} of the turns, "
                    f"{1 - honest * cost_s / cpu_s:.1%} of the processor's time; turns {counts}\n"
                )
            cost_s = cpu_s / honest
            stop_attack(link)
            link.close()
        elif RANK == LAST:
            attack(link, dim) if floods else await_stop()
        else:
            with suppress(lossympi.LinkError):  # the end
                for ticket in range(10**9):
                    link.send(ticket, np.full(dim, RANK, np.float32))
                    link.receive(ticket)
        COMM.Barrier()
        link.close()


def await_stop():
    COMM.recv(source=0, tag=9)
    COMM.send(None, dest=0, tag=10)


def stop_attack(link):
    COMM.isend(None, dest=LAST, tag=9)
    while COMM.iprobe(source=LAST, tag=10) is False:
        link.take(0.001)
    COMM.recv(source=LAST, tag=10)


def attack(link, dim):
    {"mpi": attack_mpi, "shm": attack_shm, "udp": attack_udp}[TRANSPORT](link, dim)
    await_stop()


def attack_shm(link, dim):
    """Puts right and wrong tickets into its mailbox, at once one after the other."""
    grad_d, ticket = np.full(dim, np.nan, np.float32), 0
    while not COMM.iprobe(source=0, tag=9):
        for each in (2**63 - 1, ticket + 3, ticket, ticket):
            link._worker.put(each, grad_d)
        model = link.receive(0, wait_s=0.0)
        if model is not None:
            ticket = model.round + 1


def attack_udp(link, dim):
    """Seals what it likes with its own key: gradients of any round, asked for or not."""
    peers, ticket, c = link._endpoint._peers, 0, -(-dim // 352)
    data = np.full(dim, np.nan, np.float32).tobytes()
    while not COMM.iprobe(source=0, tag=9):
        for each in (ticket, ticket, ticket + 3, 2**63 - 2):
            peers.send(Outgoing(0, Kind.READY, each + 1))
            for seq in range(c):
                payload = data[1408 * seq : 1408 * (seq + 1)]
                peers.send(Outgoing(0, Kind.DATA, each + 1, seq, c, payload))
            peers.send(Outgoing(0, Kind.END, each + 1, 1, c))
        model = link.receive(0, wait_s=0.0)
        if model is not None:
            ticket = model.round + 1


def attack_mpi(link, dim):
    """Speaks MPI on the link's own communicator: right and wrong tickets and lengths."""
    comm, requests, ticket = link._comm, [], 0
    model = np.empty(16 + dim, np.float32)
    while not COMM.iprobe(source=0, tag=9):
        for size, tag in ((dim, ticket), (dim, ticket), (dim, ticket + 3), (dim - 1, ticket)):
            requests.append(comm.Isend(np.full(size, np.nan, np.float32), 0, tag))
        requests = [request for request in requests if not request.Test()]
        if comm.Iprobe(0):
            comm.Recv(model, 0)
            ticket += 1
        if len(requests) > 200:
            time.sleep(0.001)
    while requests:
        requests = [request for request in requests if not request.Test()]
        if comm.Iprobe(0):
            comm.Recv(model, 0)


def stopped():
    """Rank LAST is stopped in the middle and goes on: it costs nobody, and it gets the newest."""
    dim, turns = 50_000, 60
    link = joined(dim, np.float32, timeout_s=1.0)
    pid = COMM.bcast(os.getpid() if RANK == LAST else None, root=LAST)
    if RANK == 0:
        counts, going = [0] * N, True
        while any(count < turns for count in counts):
            arrival = link.take(30.0)
            row = arrival.row
            assert arrival.arrived_c is None or row == N - 1
            counts[row] += 1
            link.reply(row, np.full(dim, arrival.ticket, np.float32))
            if row == N - 1 and counts[row] == turns // 2 and going:
                os.kill(pid, signal.SIGSTOP)
                going = False
                before = list(counts)
            if not going and all(a >= b + 10 for a, b in zip(counts[:-1], before, strict=False)):
                assert counts[-1] <= before[-1] + 1  # one that had left already
                os.kill(pid, signal.SIGCONT)
                going = True
    else:
        for ticket in range(turns):
            link.send(ticket, np.full(dim, RANK, np.float32))
            model = link.receive(ticket)
            assert (model.params_d == model.round).all()
    COMM.Barrier()
    link.close()
    COMM.Barrier()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
