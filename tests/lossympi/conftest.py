import contextlib
import secrets
import socket
import threading
import time

import pytest

from lossympi import plane
from lossympi.backend import choose_plane
from lossympi.endpoint import ClosePolicy, Setup
from lossympi.plane.cipher import Sealer, tag_bytes
from lossympi.plane.packet import Header, pack, unpack

SESSION = 0x12345678
HOST = "127.0.0.1"


def keys_for(cipher):
    """Returns the keys of both directions of a pair."""
    return tuple(secrets.token_bytes(32) if cipher != "none" else b"" for _ in range(2))


class Raw:
    """A peer of an endpoint that sends what the test wants it to."""

    def __init__(self, endpoint, cipher, rank):
        self.rank = rank
        self.counter = 0
        self.tag_bytes = tag_bytes(cipher)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((HOST, 0))
        send_key, receive_key = keys_for(cipher)
        self.seal = Sealer(cipher, send_key)
        self.to = (HOST, endpoint.port)
        endpoint.add_peer(rank, HOST, self.socket.getsockname()[1], receive_key, send_key)

    def make(self, kind, round, seq=0, total=0, payload=b"", **change):
        """Returns a datagram; `change` puts other values into its header, before it is sealed."""
        counter = change.pop("counter", None)
        if counter is None:
            self.counter += 1
            counter = self.counter
        header = Header(kind, self.rank, SESSION, round, seq, total, counter)
        body = pack(header._replace(**change)) + payload
        return body + self.seal.tag(counter, body)

    def send(self, *args, **change):
        self.socket.sendto(self.make(*args, **change), self.to)

    def get(self, kind, timeout_s=2.0):
        """Returns the header and the payload of the next datagram of a kind."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
            data = self.socket.recv(65536)
            header = unpack(data)
            if header.kind == kind:
                return header, data[32 : len(data) - self.tag_bytes]

    def is_told_nothing(self, *kinds, within_s=0.03):
        """Returns whether none of these kinds comes."""
        with contextlib.suppress(TimeoutError):
            deadline = time.monotonic() + within_s
            while True:
                self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
                if unpack(self.socket.recv(65536)).kind in kinds:
                    return False
        return True


class Job:
    """Makes endpoints that know each other, and closes them all."""

    def __init__(self, planes):
        self._planes = planes
        self._open = contextlib.ExitStack()

    def endpoint(self, rank, num_workers, dim, **setup):
        made = self._planes[min(rank, 1)].Endpoint(
            Setup(rank, num_workers, HOST, SESSION, dim, **setup)
        )
        self._open.callback(made.close)
        return made

    def connected(self, num_workers, dim, cipher="none", drop=0.0, **setup):
        """Returns the server and its workers, started."""
        ranks = range(num_workers + 1)
        setup = {"cipher": cipher, "drop": drop, **setup}
        server, *workers = (self.endpoint(rank, num_workers, dim, **setup) for rank in ranks)
        for rank, worker in enumerate(workers, 1):
            up, down = keys_for(cipher)
            worker.add_peer(0, HOST, server.port, up, down)
            server.add_peer(rank, HOST, worker.port, down, up)
        for endpoint in (server, *workers):
            endpoint.start()
        return server, workers

    def raw(self, endpoint, cipher, rank):
        raw = Raw(endpoint, cipher, rank)
        self._open.callback(raw.socket.close)
        return raw

    def close(self):
        self._open.close()


class Background:
    """A call on a thread of its own, and what it returned."""

    def __init__(self, function, *args):
        self._thread = threading.Thread(target=self._run, args=(function, *args), daemon=True)
        self._thread.start()

    def _run(self, function, *args):
        self._result = function(*args)

    def result(self, timeout_s=10.0):
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the call hangs"
        return self._result


# Of the server and of the workers: the planes have the same bytes on the wire.
PLANES = {
    "python": (plane, plane),
    "native": (choose_plane("native"),) * 2,
    "native server": (choose_plane("native"), plane),
    "native workers": (plane, choose_plane("native")),
}


@pytest.fixture(params=PLANES)
def job(request):
    job = Job(PLANES[request.param])
    yield job
    job.close()


@pytest.fixture
def python_job():
    """For what looks into the Python plane; the native one has tests in C++ for it."""
    job = Job(PLANES["python"])
    yield job
    job.close()


@pytest.fixture
def background():
    return Background


@pytest.fixture
def until():
    def wait(is_so, timeout_s=2.0):
        deadline = time.monotonic() + timeout_s
        while not is_so():
            assert time.monotonic() < deadline, "it never came to be"
            time.sleep(0.0005)

    return wait


@pytest.fixture
def policy():
    """Returns a function that makes a policy: two live rows, anything may be lost."""

    def make(**change):
        rule = {
            "deadline_s": 5.0,
            "grace_s": 0.01,
            "quiet_s": 1.0,
            "max_loss": 1.0,
            "quorum": 2,
            "live_n": (True, True),
            "rate_kbps": 1_000_000,
        }
        return ClosePolicy(**{**rule, **change})

    return make
