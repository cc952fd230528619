"""MPI for threads: a communicator whose ranks are threads of one process, and may die.

It has what ``aggregathor.cluster`` and ``lossympi.connect`` use of mpi4py, and nothing that
pickles. Messages keep their order; of a rank that is dead nothing comes any more, and who asks gets
MPI's exception, as with ULFM.
"""

import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

DEADLINE_S = 60.0


class Exception_(RuntimeError):
    """What MPI raises where a rank is dead."""


class Status:
    """Of a message that was probed."""

    count = 0

    def Get_count(self, datatype):
        return self.count


class AnyComm:
    """The class of communicators, as far as their attributes go."""

    @staticmethod
    def Create_keyval():
        return "key"


class MPI:
    """The module's names."""

    Exception = Exception_
    Status = Status
    BYTE = "byte"
    Comm = AnyComm
    THREAD_SERIALIZED, THREAD_MULTIPLE = 2, 3
    finalized = 0

    @staticmethod
    def Query_thread():
        return MPI.THREAD_MULTIPLE

    @classmethod
    def Finalize(cls):
        cls.finalized += 1


class World:
    """What the ranks share: messages under way, and who is dead."""

    def __init__(self, size):
        self.size = size
        self.changed = threading.Condition()
        # (context, source, destination): [(tag, bytes)], or a length of what never comes whole
        self.messages = defaultdict(list)
        self.dead = set()
        self.takes_nothing = set()  # ranks; what is sent to them never leaves

    def comm(self, rank):
        return Comm(self, rank, (0,))

    def kill(self, rank):
        with self.changed:
            self.dead.add(rank)
            self.changed.notify_all()


class Comm:
    """One rank's end."""

    def __init__(self, world, rank, context):
        self.world, self.rank, self.size = world, rank, world.size
        self._context = context
        self._num_made = 0
        self._attributes = {}

    def Dup(self):
        self._num_made += 1
        return Comm(self.world, self.rank, (*self._context, self._num_made))

    def Idup(self):
        """As MPI's: it is made once all ranks have begun to make it."""
        made = self.Dup()
        for rank in range(self.size):
            if rank not in self.world.dead:
                self.Isend(b"", rank, ("duplicate", made._context))
        missing = set(range(self.size))

        def test():
            for rank in list(missing):
                if self._find(rank, ("duplicate", made._context), take=True) is not None:
                    missing.discard(rank)
            return not missing

        return made, Request(test)

    def Get_attr(self, key):
        return self._attributes.get(key)

    def Set_attr(self, key, value):
        self._attributes[key] = value

    def begin(self, length, dest, tag=0):
        """Begins a message that never comes whole, as of a rank that stops in the middle."""
        with self.world.changed:
            self.world.messages[self._context, self.rank, dest].append((tag, length))

    def Isend(self, message, dest, tag=0):
        with self.world.changed:
            if dest in self.world.dead:
                raise Exception_(f"rank {dest} is dead")
            self.world.messages[self._context, self.rank, dest].append((tag, bytes(message)))
            self.world.changed.notify_all()

        def test():
            if dest not in self.world.takes_nothing:
                return True
            if dest in self.world.dead:
                raise Exception_(f"rank {dest} is dead")
            return False

        return Request(test)

    def Irecv(self, buffer, source, tag=0):
        def test():
            message = self._find(source, tag, take=True)
            if message is None:
                return False
            _write(buffer, message)
            return True

        return Request(test)

    def Improbe(self, source, tag, status):
        message = self._find(source, tag, take=True)
        if message is None:
            return None
        status.count = message if isinstance(message, int) else len(message)
        return Matched(message)

    def Iprobe(self, source, tag=0):
        return self._find(source, tag, take=False) is not None

    def Probe(self, source, tag, status):
        until = time.monotonic() + DEADLINE_S
        while (message := self._find(source, tag, take=False)) is None:
            assert time.monotonic() < until, "nothing came"
            time.sleep(1e-3)
        status.count = len(message)

    def Recv(self, buffer, source, tag=0):
        Request(self.Irecv(buffer, source, tag).test).Wait()

    def _find(self, source, tag, take):
        """The first message of a rank with a tag, None for none; raises where it is dead."""
        with self.world.changed:
            waiting = self.world.messages[self._context, source, self.rank]
            for at, (found, message) in enumerate(waiting):
                if found == tag:
                    if take:
                        del waiting[at]
                    return message
            if source in self.world.dead:
                raise Exception_(f"rank {source} is dead")
            return None


class Matched:
    """A message that was probed for, and that nobody else can receive."""

    def __init__(self, message):
        self._message = message

    def Irecv(self, into):
        if isinstance(self._message, int):
            return Request(lambda: False)
        _write(into[0] if into[1] else bytearray(), self._message)
        return Request(lambda: True)


def _write(buffer, message):
    view = memoryview(buffer).cast("B")
    if len(message) > len(view):
        raise Exception_("message truncated")
    view[: len(message)] = message


class Request:
    """A message that is under way."""

    def __init__(self, test):
        self.test = test
        self._is_done = False

    def Test(self):
        self._is_done = self._is_done or self.test()
        return self._is_done

    def Wait(self):
        until = time.monotonic() + DEADLINE_S
        while not self.Test():
            assert time.monotonic() < until, "nothing came"
            time.sleep(1e-3)


def install(monkeypatch):
    """Lets what asks for MPI's module get this one; returns what ranks were killed, to be filled.

    All ranks are one process, which must outlive them.
    """
    killed = []
    monkeypatch.setattr("lossympi.mpi.import_mpi", lambda: MPI)
    monkeypatch.setattr(MPI, "finalized", 0)
    monkeypatch.setattr(
        "aggregathor.cluster.processes.signal.pidfd_send_signal",
        lambda *args: killed.append(args),
    )
    # A test in which a rank does not end fails soon.
    monkeypatch.setattr("aggregathor.cluster.ranks._GOODBYE_S", DEADLINE_S / 3)
    return killed


def on_all_ranks(size, run, world=None):
    """Runs ``run(comm)`` on a thread for each rank; returns what each returned or raised."""
    world = world or World(size)

    def on_one(rank):
        try:
            return run(world.comm(rank))
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(on_one, range(size), timeout=DEADLINE_S))
