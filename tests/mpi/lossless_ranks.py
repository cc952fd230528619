"""What each rank does where nothing is lost: mpirun -n 5 python -m ... NAME TRANSPORT."""

import itertools
import mmap
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

import lossympi
from tests.mpi.ranks import COMM, LAST, RANK, vector

NUM_WORKERS = COMM.size - 1
SHORT, LONG = 100, 90_007  # MPI sends the one at once, the other when it is asked for
TRANSPORT = sys.argv[2]


def joined(dim, **options):
    link = lossympi.connect(COMM, dim, transport=TRANSPORT, **options)
    COMM.Barrier()
    return link


def ended(link):
    COMM.Barrier()
    link.close()
    COMM.Barrier()


def check_row(got, row, round):
    expected_d = vector(row + 1, round, got.stack_nd.shape[1])
    np.testing.assert_array_equal(got.stack_nd[row], expected_d)


def exact():
    """Every float arrives, both ways, and what a worker holds stays as it is."""
    for dim, first in ((1, 0), (SHORT, 2**31 - 9), (LONG, 2**40)):  # a tag has 31 bits
        link = joined(dim)
        held = None
        for round in range(first, first + 24, 3):
            if RANK == 0:
                got = link.collect(round)
                link.broadcast(round, vector(0, round, dim))
                check_complete(got, round)
                continue
            assert link.send(round, vector(RANK, round, dim)) is True
            if held is not None:
                np.testing.assert_array_equal(held.params_d, vector(0, held.round, dim))
            held = link.receive(round)
            assert held.round == round
            assert link.receive(round) is held
            assert not held.params_d.flags.writeable
            assert held.params_d.ctypes.data % 64 == 0
            np.testing.assert_array_equal(held.params_d, vector(0, round, dim))
        ended(link)


def check_complete(got, round):
    assert (got.stats.closed_by, got.stats.round) == ("complete", round)
    assert got.arrived_nc.shape == (NUM_WORKERS, 1)
    assert got.delivered_n.tolist() == [1.0] * NUM_WORKERS
    assert got.stack_nd.flags.c_contiguous
    assert got.stack_nd.ctypes.data % 64 == 0
    for row, worker in enumerate(got.stats.workers):
        check_row(got, row, round)
        assert (worker.delivered, worker.accepted, worker.heard, worker.live) == (1, 1, True, True)
        assert (worker.late, worker.duplicate, worker.rejected) == (0, 0, {})
        assert 0 <= worker.settled_s <= got.stats.elapsed_s


def sleeper():
    """Nobody waits for a worker that has said nothing for two rounds, until it is back."""
    for dim in (SHORT, LONG):
        timeout_s = 0.2
        link = joined(dim, timeout_s=timeout_s, patience=2)
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
        ended(link)


def serve_sleeper(link, timeout_s):
    params_d = np.ones(link.dim, np.float32)
    waking = False
    until = time.monotonic() + 10
    for round in itertools.count():
        assert time.monotonic() < until
        got = link.collect(round)
        last = got.stats.workers[-1]
        for row in range(NUM_WORKERS - 1):
            check_row(got, row, round)
        if round < 2:
            assert last.live
            assert got.stats.closed_by == "deadline"
            assert timeout_s <= got.stats.elapsed_s < timeout_s + 1
        elif not waking:
            assert not last.live
            assert got.stats.closed_by == "complete"
            waking = True
            COMM.send("wake up", dest=LAST)
        is_back = last.live and last.delivered == 1 and waking
        if is_back:
            check_row(got, LAST - 1, round)
            params_d[:] = -1  # the end
        link.broadcast(round, params_d)
        if is_back:
            break
        time.sleep(0.002)


def hostile():
    """One rank sends what it likes: it is counted, and only its own row may change."""
    for dim in (SHORT, LONG):
        rounds = 5
        link = joined(dim, timeout_s=10.0, patience=100)
        if RANK == LAST:
            attack(link, dim, rounds)
        counts = np.zeros(4, int)
        for round in range(rounds):
            if RANK == 0:
                got = link.collect(round)
                assert got.stats.closed_by == "complete"
                for row in range(NUM_WORKERS):
                    check_row(got, row, round)
                last = got.stats.workers[-1]
                wrong = [last.rejected.get(reason, 0) for reason in ("malformed", "early")]
                counts += [*wrong, last.late, last.duplicate]
                for worker in got.stats.workers[:-1]:
                    assert (worker.late, worker.duplicate, worker.rejected) == (0, 0, {})
                link.broadcast(round, vector(0, round, dim))
            elif RANK < LAST:
                link.send(round, vector(RANK, round, dim))
                model = link.receive(round)
                np.testing.assert_array_equal(model.params_d, vector(0, model.round, dim))
        COMM.Barrier()
        if RANK == 0:  # what came after the gradient of the last round
            got = link.collect(rounds)
            last = got.stats.workers[-1]
            wrong = [last.rejected.get(reason, 0) for reason in ("malformed", "early")]
            counts += [*wrong, last.late, last.duplicate]
            # Whatever comes between a gradient and the close is not a duplicate but late.
            assert counts[:2].tolist() == [6 * rounds, 2 * rounds], counts
            assert counts[2:].sum() == 2 * rounds, counts
        elif RANK < LAST:
            link.send(rounds, vector(RANK, rounds, dim))
        else:
            link._comm.Isend(vector(RANK, rounds, dim), 0, rounds).Wait()
        ended(link)


def attack(link, dim, rounds):
    """Speaks MPI on the link's own communicator."""
    comm, sent = link._comm, []

    def send(floats, tag):
        sent.append(comm.Isend(floats, 0, tag))

    params_d = np.empty(16 + dim, np.float32)
    for round in range(rounds):
        nan_d = np.full(dim, np.nan, np.float32)
        for size in (0, 1, dim - 1, dim + 1, 3 * dim):
            send(np.full(size, np.nan, np.float32), round)
        sent.append(comm.Isend(np.zeros(4 * dim - 1, np.uint8), 0, round))
        send(nan_d, round + 1)
        send(nan_d, 2**30 - 1)
        send(nan_d, (round - 1) % 2**31)
        send(vector(RANK, round, dim), round)
        send(nan_d, round)
        comm.Recv(params_d, 0)
        np.testing.assert_array_equal(params_d[16:], vector(0, round, dim))
    # The server drops the last ones in its next round.
    assert len(sent) == 11 * rounds
    threading.Thread(target=MPI.Request.Waitall, args=(sent,), daemon=True).start()


def overtaken():
    """A gradient that is on its way at the close is not written into what collect returned."""
    dim = LONG
    link = joined(dim, timeout_s=0.3)
    if RANK == LAST:
        request = link._comm.Isend(np.full(dim, np.nan, np.float32), 0, 0)
        time.sleep(0.6)  # in which it does not go on
        request.Wait()
        COMM.Barrier()
    elif RANK > 0:
        link.send(0, vector(RANK, 0, dim))
        COMM.Barrier()
        link.send(1, vector(RANK, 1, dim))
        np.testing.assert_array_equal(link.receive(0).params_d, vector(0, 0, dim))
    else:
        got = link.collect(0)
        assert got.stats.closed_by == "deadline"
        assert got.arrived_nc[:, 0].tolist() == [True] * (NUM_WORKERS - 1) + [False]
        assert list(link._overtaken) == [LAST - 1]
        got.stack_nd[-1] = 0
        link.broadcast(0, vector(0, 0, dim))
        COMM.Barrier()  # in which MPI receives the rest
        assert (got.stack_nd[-1] == 0).all()
        for row in range(NUM_WORKERS - 1):
            check_row(got, row, 0)
        again = link.collect(1)
        assert not link._overtaken
        assert again.stats.workers[-1].late == 1
        assert again.stats.workers[-1].heard
        for row in range(NUM_WORKERS - 1):
            check_row(again, row, 1)
        assert (again.stack_nd[-1] == 0).all()
    ended(link)


def stalled():
    """Transfers that never end keep a row each, and 16 receives of what is not wanted."""
    dim = 1_000_003
    link = joined(dim, timeout_s=2.0, patience=100, f=2)
    sent = []
    folder = tempfile.TemporaryDirectory()
    is_seen = Path(COMM.bcast(folder.name)) / "seen"
    if RANK == 0:
        before = resident_bytes()
        for round in range(4):
            got = link.collect(round)
            for row in range(NUM_WORKERS - 2):
                check_row(got, row, round)
            link.broadcast(round, vector(0, round, dim))
        assert sorted(link._overtaken) == [LAST - 2, LAST - 1]
        for row, (_, stack_nd) in link._overtaken.items():
            assert not stack_nd[: row - 1, 4096:-4096].any()  # pages at the borders stay
        vectors = (resident_bytes() - before) / (4 * dim)
        # The stack, two rows that are being written, three models, three of ours; no other stack.
        assert vectors < NUM_WORKERS + 2 + 3 + 3, vectors
        assert [len(drops) for drops in link._dropped.values()] == [16], link._dropped
        is_seen.touch()
        while link._overtaken or link._dropped:
            link.collect(round := round + 1)
    elif RANK < LAST - 1:
        for round in range(4):
            link.send(round, vector(RANK, round, dim))
            link.receive(round)
    else:
        # One stalls in round 0, the other in round 1, and then sends what nobody wants.
        first = LAST - RANK
        if first == 1:
            link.send(0, vector(RANK, 0, dim))
            link.receive(0)
        sent.append(link._comm.Isend(np.ones(dim, np.float32), 0, first))
        for _ in range(40 * first):
            sent.append(link._comm.Isend(np.ones(dim + 1, np.float32), 0, 9))
        while not is_seen.exists():
            time.sleep(0.05)  # in which no transfer goes on
        MPI.Request.Waitall(sent)
    ended(link)


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def waits():
    """Deadline, quorum, wait_s, give_up_s, and whom the server waits for."""
    dim = LONG
    link = joined(dim, timeout_s=0.5, give_up_s=0.2)
    if RANK == 0:
        assert link.waiting_for() == []
        asked = []
        timer = threading.Timer(0.3, lambda: asked.append(link.waiting_for()))
        timer.start()
        got = link.collect(7)
        timer.join()
        assert asked == [[LAST - 1]]
        assert link.waiting_for() == []
        assert got.stats.closed_by == "deadline"
        assert 0.5 <= got.stats.elapsed_s < 1.5
        assert got.delivered_n.tolist() == [1.0] * (NUM_WORKERS - 1) + [0.0]
        COMM.Barrier()
    elif RANK < LAST:
        assert link.send(7, vector(RANK, 7, dim))
        COMM.Barrier()
        begun = time.monotonic()
        assert link.receive(7, wait_s=0.05) is None
        assert link.receive(7, wait_s=0) is None
        assert 0.05 <= time.monotonic() - begun < 0.2
        with pytest.raises(lossympi.LinkError, match=r"waited 0\.2 s for the server to send the"):
            link.receive(7)
        assert link.send(8, vector(RANK, 8, dim))  # the server does not take it
        if TRANSPORT == "mpi":
            assert link.send(9, vector(RANK, 9, dim), wait_s=0.05) is None
            with pytest.raises(lossympi.LinkError, match=r"waited 0\.2 s for the server to take"):
                link.send(9, vector(RANK, 9, dim))
    else:
        COMM.Barrier()
    COMM.Barrier()
    link.close()
    if RANK > 0:
        with pytest.raises(ValueError, match="has closed its end"):
            link.send(9, vector(RANK, 9, dim))
    link = joined(dim, quorum=1)
    if RANK == 0:
        got = link.collect(0)
        assert got.stats.closed_by == "early"
        assert got.arrived_nc.sum() == 1
    elif RANK == 2:
        link.send(0, vector(RANK, 0, dim))
    COMM.Barrier()
    if RANK == 0:
        link.close()
        link.close()
    else:
        with pytest.raises(lossympi.LinkError, match="but it has closed the link"):
            link.receive(0)
        with pytest.raises(lossympi.LinkError, match="but it has closed the link"):
            link.send(1, vector(RANK, 1, dim))
    ended(link)


def differ():
    """The failure of a rank is the failure of all, and they are told whose it is."""
    for change, words in (
        ({"transport": "udp"}, f"have transport={TRANSPORT!r} and transport='udp'"),
        ({"dim": 99}, "rank 0 and rank 2 have dim=100 and dim=99"),
        ({"patience": 4}, "rank 0 and rank 2 have patience=3 and patience=4"),
        ({"mtu": 1400}, "rank 2 cannot connect: without UDP nothing is lost, and there is no mtu"),
        ({"plane": "native"}, "rank 2 cannot connect: a plane is of UDP"),
    ):
        arguments = {"dim": SHORT, "transport": TRANSPORT, **(change if RANK == 2 else {})}
        with pytest.raises(lossympi.ConnectError, match=words):
            lossympi.connect(COMM, **arguments)


if __name__ == "__main__":
    jobs = exact, sleeper, hostile, overtaken, stalled, waits, differ
    JOBS = {job.__name__: job for job in jobs}
    JOBS[sys.argv[1]]()
