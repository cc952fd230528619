"""The link of shared memory, its ends in one process; tests/mpi has it under mpirun."""

import contextlib
import ctypes
import fcntl
import mmap
import os
import threading
import time

import numpy as np
import pytest

from lossympi import LinkError, backend
from lossympi.options import Options
from tests.lossympi.rounds import Caller
from tests.native_rounds import Reader

pytestmark = pytest.mark.skipif(backend.native() is None, reason=backend.why_not_native())
if backend.native() is not None:
    from lossympi.shm_link import SharedServer, SharedWorker

D = 1003


@contextlib.contextmanager
def link(n=3, dim=D, **options):
    checked = Options.of_lossless({"timeout_s": 0.2, **options})
    server = SharedServer(n, dim, checked)
    workers = [SharedWorker(server.files, rank, dim, checked) for rank in range(n)]
    try:
        yield server, workers
    finally:
        server.close()
        with contextlib.suppress(OSError):  # a test has hidden them
            server.hide()


def vector(seed, dim=D):
    return np.random.default_rng(seed).standard_normal(dim, dtype=np.float32)


def test_what_is_put_is_collected_and_what_is_published_received():
    with link() as (server, workers):
        for round in (0, 1, 2, 7, 2**62):
            for rank, worker in enumerate(workers):
                assert worker.send(round, vector([rank, round % 100])) is True
            got = server.collect(round)
            assert got.stats.closed_by == "complete"
            for rank in range(3):
                np.testing.assert_array_equal(got.stack_nd[rank], vector([rank, round % 100]))
            server.broadcast(round, vector([9, round % 100]))
            for worker in workers:
                model = worker.receive(round)
                assert model.round == round
                np.testing.assert_array_equal(model.params_d, vector([9, round % 100]))
                assert worker.receive(round) is model
                assert not model.params_d.flags.writeable


def test_hostile_bits_arrive_as_they_are():
    hostile = [np.nan, -np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0, -0.0, 1e-45]
    for dim in (1, len(hostile)):
        with link(1, dim) as (server, (worker,)):
            sent_d = np.array(hostile[:dim], np.float32)
            worker.send(0, sent_d)
            assert server.collect(0).stack_nd.tobytes() == sent_d.tobytes()
            server.broadcast(0, sent_d)
            assert worker.receive(0).params_d.tobytes() == sent_d.tobytes()


def test_late_early_and_double_gradients_are_counted_and_change_nothing():
    with link(quorum=3) as (server, workers):
        for worker in workers[:2]:
            worker.send(5, vector(1))
        workers[2].send(4, vector(2))  # late
        timers = [
            threading.Timer(0.04 * (i + 1), workers[2].send, (round, vector(3 + i)))
            for i, round in enumerate((6, 2**40))  # early
        ]
        for timer in timers:
            timer.start()
        got = server.collect(5)
        assert got.stats.closed_by == "deadline"
        assert got.arrived_nc[:, 0].tolist() == [True, True, False]
        last = got.stats.workers[2]
        assert (last.late, last.rejected, last.heard) == (1, {"early": 2}, True)
        assert [w.late + w.duplicate + len(w.rejected) for w in got.stats.workers[:2]] == [0, 0]

        for worker in workers[1:]:
            worker.send(6, vector(7))
        threading.Timer(0.05, workers[1].send, (6, vector(8))).start()
        got = server.collect(6)
        np.testing.assert_array_equal(got.stack_nd[1], vector(7))
        assert got.stats.workers[1].duplicate == 1


def test_a_worker_that_goes_on_writing_changes_its_row_only_until_it_is_copied():
    with link(2, 2_000_000, timeout_s=10.0) as (server, (honest, attacker)):
        rounds = Reader(attacker.native(lambda *_: None))
        mailbox_d = rounds.outgoing_d()
        stop = threading.Event()

        def scribble():
            while not stop.is_set():
                mailbox_d[:] = np.random.default_rng().standard_normal()

        thread = threading.Thread(target=scribble)
        thread.start()
        try:
            for round in range(5):
                honest.send(round, np.full(2_000_000, round, np.float32))
                attacker._worker.put(round, mailbox_d)
                got = server.collect(round)
                before = got.stack_nd.copy()
                time.sleep(0.01)
                np.testing.assert_array_equal(got.stack_nd, before)
                assert (got.stack_nd[0] == round).all()
        finally:
            stop.set()
            thread.join()


def test_a_worker_can_neither_write_the_model_nor_shrink_what_it_shares():
    with link(1) as (server, _):
        files = server.files
        path = f"/proc/{files.process}/fd/"
        for file in (files.board, files.bell, files.mailboxes[0]):
            opened = os.open(f"{path}{file.descriptor}", os.O_RDWR)
            with pytest.raises(PermissionError):
                os.ftruncate(opened, 0)
            with pytest.raises(PermissionError):
                os.ftruncate(opened, 1 << 20)
            os.close(opened)
        opened = os.open(f"{path}{files.board.descriptor}", os.O_RDWR)
        with pytest.raises(PermissionError):
            mmap.mmap(opened, 64, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        with pytest.raises(PermissionError):
            os.pwrite(opened, b"1", 0)
        os.close(opened)
        server.hide()
        with pytest.raises(FileNotFoundError):
            os.open(f"{path}{files.board.descriptor}", os.O_RDWR)


def test_the_board_is_mapped_and_sealed_as_soon_as_it_is_there(monkeypatch):
    """Who maps it between may write to it for ever, so nothing else is done meanwhile."""
    done, create, control, native = [], os.memfd_create, fcntl.fcntl, backend.native()

    def note(name, function):
        def noted(*arguments):
            result = function(*arguments)
            done.append((name, arguments[0] if name == "seal" else result))
            return result

        return noted

    monkeypatch.setattr(os, "memfd_create", note("make", create))
    monkeypatch.setattr(fcntl, "fcntl", note("seal", control))
    monkeypatch.setattr(native, "SharedServer", note("map", native.SharedServer))
    server = SharedServer(2, 10, Options.of_lossless({}))
    board = server.files.board.descriptor
    assert [name for name, _ in done[-3:]] == ["make", "map", "seal"]
    assert (done[-3][1], done[-1][1]) == (board, board)
    assert len(done) == 2 * 4 + 1
    server.hide()
    server.close()


def test_nonsense_in_bell_and_counters_delays_nobody_for_long():
    with link(2, timeout_s=5.0) as (server, (honest, attacker)):
        rounds = Reader(attacker.native(lambda *_: None))
        address = rounds.outgoing()
        header = (ctypes.c_uint8 * 64).from_address(address - 64)
        stop = threading.Event()

        def scribble():
            rng = np.random.default_rng(0)
            while not stop.is_set():
                header[:] = rng.integers(0, 256, 64).tolist()
                time.sleep(0.001)

        thread = threading.Thread(target=scribble)
        thread.start()
        try:
            for round in range(3):
                threading.Timer(0.05, honest.send, (round, vector(round))).start()
                threading.Timer(0.1, attacker.send, (round, vector(9))).start()
                got = server.collect(round)
                np.testing.assert_array_equal(got.stack_nd[0], vector(round))
                assert got.stats.workers[0].settled_s < 1
        finally:
            stop.set()
            thread.join()


def test_a_file_of_another_process_is_refused():
    with link(1) as (server, _):
        files = server.files
        other = files._replace(board=files.board._replace(inode=files.board.inode + 1))
        with pytest.raises(ValueError, match="another container"):
            SharedWorker(other, 0, D, Options())
        gone = files._replace(board=files.board._replace(descriptor=10**6))
        with pytest.raises(ValueError, match="cannot open the server's memory, /proc/"):
            SharedWorker(gone, 0, D, Options())


def test_nothing_is_left_open():
    before = os.listdir("/proc/self/fd")
    with link() as (server, workers):
        del workers
        server.hide()
        assert len(os.listdir("/proc/self/fd")) == len(before)


def test_nothing_is_left_open_where_memory_runs_out_half_way(monkeypatch):
    made, create = [], os.memfd_create

    def create_two(*arguments):
        if len(made) == 2:
            raise OSError(24, "Too many open files")
        made.append(create(*arguments))
        return made[-1]

    monkeypatch.setattr(os, "memfd_create", create_two)
    with pytest.raises(OSError, match="Too many open files"), link():
        pass
    assert len(made) == 2
    for descriptor in made:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_c_makes_rounds_in_place_and_sees_what_was_overwritten():
    with link(1) as (server, (worker,)):
        caller = Caller(worker)
        outgoing_d = caller.outgoing_d()
        rows, models = [], []

        def serve():
            for round in range(3):
                rows.append(server.collect(round).stack_nd[0].copy())
                server.broadcast(round, vector([2, round]))

        thread = threading.Thread(target=serve)
        thread.start()
        for round in range(3):
            assert caller.native.round == round
            outgoing_d[:] = vector([1, round])
            models.append(caller.run(outgoing_d).copy())
            assert caller.is_intact()
        thread.join()
        np.testing.assert_array_equal(rows, [vector([1, round]) for round in range(3)])
        np.testing.assert_array_equal(models, [vector([2, round]) for round in range(3)])

        server.broadcast(3, vector(3))
        assert caller.is_intact()
        server.broadcast(4, vector(4))  # into the vector of round 2
        assert not caller.is_intact()
        np.testing.assert_array_equal(caller.run(None), vector(4))
        assert caller.native.round == 5


def test_the_server_may_write_the_model_in_place():
    with link(1) as (server, (worker,)):
        native = Reader(server.native())
        assert native.d == D
        assert native.run is native.send_part is native.is_intact is None
        for round in range(4):
            params_d = native.outgoing_d()
            params_d[:] = vector(round)
            server.broadcast(round, params_d)
            np.testing.assert_array_equal(worker.receive(round).params_d, vector(round))


def test_who_waits_in_c_is_asked_whether_to_go_on():
    asked = []

    def idle(is_sending, has_left, waited_s):
        asked.append((is_sending, has_left))
        assert waited_s < 10
        if len(asked) == 3:
            raise RuntimeError("it is not worth it: äöü " * 100)

    with link(1) as (_, (worker,)):
        caller = Caller(worker, idle)
        begun = time.monotonic()
        assert caller.run(vector(0)) == 2
        assert 0.5 < time.monotonic() - begun < 5
        assert caller.message.value.startswith(b"RuntimeError: it is not worth it")
        assert 1020 <= len(caller.message.value.decode().encode()) <= 1023
    assert asked == [(False, False)] * 3


def test_who_waits_in_c_hears_that_the_server_has_left():
    def idle(is_sending, has_left, waited_s):
        if has_left:
            raise LinkError("it has left")

    with link(1) as (server, (worker,)):
        threading.Timer(0.05, server.close).start()
        begun = time.monotonic()
        assert Caller(worker, idle).run(vector(0)) == 2
        assert time.monotonic() - begun < 0.15  # not at the end of a slice
        with pytest.raises(LinkError, match="has closed the link"):
            worker.send(1, vector(1))
        with pytest.raises(LinkError, match="has closed the link"):
            worker.receive(1)


def test_use_after_close_is_a_mistake():
    with link(1) as (server, (worker,)):
        worker.close()
        with pytest.raises(ValueError, match="has closed its end"):
            worker.send(0, vector(0))
        server.close()
        server.close()
        for call in (lambda: server.collect(0), lambda: server.broadcast(0, vector(0))):
            with pytest.raises(ValueError, match="has closed this link"):
                call()


def test_rounds_must_increase_and_arrays_must_fit():
    with link(1) as (server, (worker,)):
        server.collect(3)
        server.broadcast(3, vector(0))
        for call in (lambda: server.collect(3), lambda: server.broadcast(3, vector(0))):
            with pytest.raises(ValueError, match="rounds must increase"):
                call()
        with pytest.raises(ValueError, match="params_d must be"):
            server.broadcast(4, vector(0)[1:])
        with pytest.raises(ValueError, match="grad_d must be"):
            worker.send(4, vector(0).astype(np.float64))
