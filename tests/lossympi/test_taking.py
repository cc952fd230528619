"""``take`` and ``reply`` between ends in this process; ``tests/mpi/test_taking.py`` has the others.

The in-memory link's and shared memory's.
"""

import contextlib
import threading
import time

import numpy as np
import pytest

from lossympi import LinkError, Network, backend, memory
from lossympi.float64_link import floats_per_value, of_dtype
from lossympi.options import Options
from tests.lossympi.taking import CONTRACT, N, check_arrival, rows_are_served_in_turn, take, vector

if backend.native() is not None:
    from lossympi.shm_link import SharedServer, SharedWorker

NEEDS_CORE = pytest.mark.skipif(backend.native() is None, reason=backend.why_not_native())
LINKS = ["memory", pytest.param("shm", marks=NEEDS_CORE)]


class Here:
    """A worker's end in this process."""

    def __init__(self, link):
        self._link = link
        self.send = link.send

    def receive(self, round):
        return self._link.receive(round)


def connect(num_workers, dim, dtype):
    server, workers = memory.connect(num_workers, dim, dtype=dtype, arrivals=True)
    return server, [Here(worker) for worker in workers]


@contextlib.contextmanager
def shared(num_workers=N, dim=1000, dtype=np.float32):
    options = Options.of_lossless({})
    floats = dim * floats_per_value(dtype)
    server = SharedServer(num_workers, floats, options)
    workers = [SharedWorker(server.files, row, floats, options) for row in range(num_workers)]
    server.hide()
    try:
        yield of_dtype(server, dtype), [of_dtype(worker, dtype) for worker in workers]
    finally:
        server.close()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dim", [1, 1000])
@pytest.mark.parametrize("check", CONTRACT)
@pytest.mark.parametrize("link", LINKS)
def test_the_contract(link, check, dim, dtype):
    if link == "memory":
        check(connect, dim, dtype)
        return
    with shared(N, dim, dtype) as (server, workers):
        check(lambda *_: (server, [Here(worker) for worker in workers]), dim, dtype)


@NEEDS_CORE
def test_of_what_a_worker_writes_on_only_what_was_copied_is_taken():
    dim = 2_000_000
    with shared(2, dim) as (server, (honest, attacker)):
        scribbled = np.frombuffer(np.ones(dim, np.float32), np.float32)
        stop = threading.Event()

        def scribble():
            """Puts the ticket that is wanted and others, without end."""
            while not stop.is_set():
                for ticket in (0, 1, 2, 3, 2**62):
                    attacker._worker.put(ticket, scribbled * np.float32(ticket + 1))

        thread = threading.Thread(target=scribble)
        thread.start()
        try:
            for ticket in range(4):
                honest.send(ticket, np.full(dim, ticket, np.float32))
                rows = {}
                while len(rows) < 2:
                    arrival = take(server)
                    rows[arrival.row] = arrival
                before_d = rows[1].grad_d.copy()
                assert server.take(0.02) is None
                np.testing.assert_array_equal(rows[1].grad_d, before_d)
                assert (rows[0].grad_d == ticket).all()
                for row in rows:
                    server.reply(row, np.full(dim, row, np.float32))
                assert (honest.receive(ticket).params_d == 0).all()
        finally:
            stop.set()
            thread.join()
        dropped = server.dropped()
        assert dropped[0] == {}
        assert dropped[1]["early"] > 0


@NEEDS_CORE
def test_a_worker_may_read_an_answer_that_is_written_anew():
    """It gets one of them whole, and in the end the newest."""
    dim = 300_000
    with shared(1, dim) as (server, (worker,)):
        last = 60
        seen = []

        def read():
            while not seen or seen[-1] < last:
                round, params_d = worker.receive(seen[-1] + 1 if seen else 0)
                assert (params_d == round).all()
                seen.append(round)

        thread = threading.Thread(target=read)
        thread.start()
        for ticket in range(last + 1):
            worker._worker.put(ticket, np.zeros(dim, np.float32))  # and does not wait
            check = take(server)
            assert check.ticket == ticket
            server.reply(0, np.full(dim, ticket, np.float32))
        thread.join(30)
        assert not thread.is_alive()
        assert seen == sorted(seen)


@NEEDS_CORE
def test_who_waits_hears_of_the_end_and_of_the_answer_wherever_it_waits():
    with shared(2) as (server, workers):
        heard = [None, None]

        def wait(row):
            try:
                heard[row] = workers[row].receive(0, wait_s=20)
            except LinkError as error:
                heard[row] = str(error)

        threads = [threading.Thread(target=wait, args=(row,)) for row in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)  # both wait for what is for all: no one has taken yet
        workers[0].send(0, vector(0, 0, server))
        check_arrival(take(server), 0, 0, server)
        server.reply(0, vector(0, 9, server))
        threads[0].join(10)
        np.testing.assert_array_equal(heard[0].params_d, vector(0, 9, server))
        assert threads[1].is_alive()
        server.close()
        threads[1].join(10)
        assert "it has closed the link" in heard[1]


def test_all_that_is_there_is_served_in_the_order_of_the_rows():
    assert rows_are_served_in_turn(connect, 3, np.float32) == [*range(N)] * 6


def test_take_never_waits_and_an_answer_that_is_not_there_is_an_error():
    server, workers = memory.connect(N, 3, arrivals=True)
    assert server.take(1e9) is None
    assert workers[0].receive(0, wait_s=0.0) is None
    workers[0].send(0, vector(0, 0, server))
    with pytest.raises(LinkError, match="answer to its gradient 0, which was not given"):
        workers[0].receive(0)


def test_a_link_in_memory_of_rounds_takes_nothing_and_one_of_arrivals_collects_nothing():
    server, _ = memory.connect(N, 3)
    with pytest.raises(ValueError, match="takes no single gradients"):
        server.take(0)
    server, _ = memory.connect(N, 3, arrivals=True)
    with pytest.raises(ValueError, match="Take and reply"):
        server.collect(0)


@pytest.mark.parametrize("network", [Network(0.1), Network(delay_s=0.1)])
def test_no_network_loses_or_delays_single_gradients(network):
    with pytest.raises(ValueError, match="whole and at once"):
        memory.connect(N, 3, network, arrivals=True)
