"""Ranks that are threads of one process, with what `connect` and collectives use of mpi4py."""

import threading

TIMEOUT_S = 20.0


class FakeComm:
    """A communicator between threads."""

    def __init__(self, rank, size, shared):
        self.rank, self.size = rank, size
        self._barrier, self._slots = shared

    def allgather(self, value):
        self._slots[self.rank] = value
        self._barrier.wait(TIMEOUT_S)
        everyones = list(self._slots)
        self._barrier.wait(TIMEOUT_S)  # before anybody writes again
        return everyones


def on_ranks(size, call):
    """Returns what `call(comm)` returned or raised on each of the ranks."""
    shared = threading.Barrier(size), [None] * size
    outcomes = [None] * size

    def run(rank):
        try:
            outcomes[rank] = call(FakeComm(rank, size, shared))
        except Exception as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive(), "a rank waits for another"
    return outcomes
