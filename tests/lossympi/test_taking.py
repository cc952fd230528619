"""``take`` and ``reply`` of the in-memory link; ``tests/mpi/test_taking.py`` has the others."""

import numpy as np
import pytest

from lossympi import LinkError, Network, memory
from tests.lossympi.taking import CONTRACT, N, rows_are_served_in_turn, vector


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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dim", [1, 1000])
@pytest.mark.parametrize("check", CONTRACT)
def test_the_contract(check, dim, dtype):
    check(connect, dim, dtype)


def test_all_that_is_there_is_served_in_the_order_of_the_rows():
    assert rows_are_served_in_turn(connect, 3, np.float32) == [*range(N)] * 6


def test_take_never_waits_and_an_answer_that_is_not_there_is_an_error():
    server, workers = memory.connect(N, 3, arrivals=True)
    assert server.take(1e9) is None
    assert workers[0].receive(0, wait_s=0.0) is None
    workers[0].send(0, vector(0, 0, server))
    with pytest.raises(LinkError, match="answer to its gradient 0, which was not given"):
        workers[0].receive(0)


def test_a_link_of_rounds_takes_nothing_and_one_of_arrivals_collects_nothing():
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
