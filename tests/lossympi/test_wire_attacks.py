"""What datagrams of a worker, of a stranger, or forged ICMP can cost, on a virtual clock mostly."""

import subprocess
import sys
import time

import numpy as np
import pytest

from lossympi import backend
from lossympi.endpoint import ClosePolicy
from lossympi.plane import packet, protocol, send_queue
from lossympi.plane.packet import Header, Kind

core = backend.native()
PLANES = {"python": (protocol, send_queue)}
if core is not None:
    PLANES["native"] = (core, core)

SESSION, TAG, LONGEST = 7, 16, 1472
K = 352


@pytest.fixture(params=PLANES)
def plane(request):
    return PLANES[request.param]


class Server:
    """A server's protocol, and workers that say what the test wants."""

    def __init__(self, plane, n=2, dim=K * 40, longest=LONGEST):
        self.dim, self.c, self.n = dim, -(-dim // K), n
        layout = 0, n, SESSION, dim, K, "float32", longest, TAG
        self.protocol = plane[0].ServerProtocol(plane[0].PeerLayout(*layout))
        self.counter = 0
        self.stack_nd = np.zeros((n, dim), np.float32)

    def open(self, round, rate_kbps, max_loss=0.0, now=0.0):
        policy = ClosePolicy(1e9, 0.0, 1e9, max_loss, self.n, (True,) * self.n, rate_kbps)
        return self.protocol.open_round(round, self.stack_nd, policy, now)

    def hear(self, kind, round, seq=0, total=0, payload=b"", row=0, now=0.0):
        """Returns what it answers."""
        self.counter += 1
        header = Header(int(kind), row + 1, SESSION, round, seq, total, self.counter)
        verdict, _, to_send = self.protocol.handle(row, header, payload, now)
        assert verdict == "accepted"
        return to_send

    def replies(self, seconds, every, *args, row=0):
        """Returns what it answers to the same datagram over some time."""
        begun, replies = 100.0, []
        for at in range(int(seconds / every)):
            replies += self.hear(*args, row=row, now=begun + at * every)
        return replies


def bytes_of(replies):
    return sum(32 + len(reply[-1]) + TAG for reply in replies)


# NACK.


@pytest.mark.parametrize("rate_kbps", [1000, 100_000, 1_000_000])
def test_ends_buy_no_more_than_the_granted_rate(plane, rate_kbps):
    """48 bytes every 20 us, of who sends nothing else, for a second."""
    server = Server(plane, dim=K * 70_000)
    server.open(1, rate_kbps, now=99.0)
    replies = server.replies(1.0, 20e-6, Kind.END, 1, 1, server.c)
    assert {reply[1] for reply in replies} == {Kind.NACK}
    at_once = server.c / 8 + 8 * 48  # bytes of one answer, in 7 datagrams
    assert at_once * 0.9 < bytes_of(replies) <= rate_kbps * 125 * 1.0 + at_once


def test_nacks_cost_as_much_in_a_job_of_ten_thousand_as_in_one_of_ten(plane):
    """Of the last row; the best of some, as others use the processor."""

    def best_s(n):
        queue = plane[1].SendQueue(list(range(n)), 512, 1, True, 9.0, 0.0)
        times = []
        for _ in range(7):
            begun = time.perf_counter()
            for seq in range(512):
                queue.nacked(n - 1, seq)
                queue.heard(n - 1)
            times.append(time.perf_counter() - begun)
        return min(times)

    assert best_s(10_000) < 5 * best_s(10)


def served(plane, n=2, c=64, now=0.0):
    """Returns a queue whose rows have had everything, and an END."""
    queue = plane[1].SendQueue(list(range(n)), c, c, True, 9.0, now)
    queue.add_rest()
    ends = set()
    while len(ends) < n:
        what, *rest = queue.next(now)
        if what == "end":
            ends.add(rest[0])
    return queue


def test_no_more_nacks_are_looked_at_than_ends_asked_for(plane):
    queue = served(plane, n=1)
    assert queue.take_nack(0, 8)  # 64 bits
    assert not queue.take_nack(0, 1)
    now = 0.0
    for _ in range(30):
        action = queue.next(now)
        now = action[1] if action[0] == "wait" else now
    taken = 0
    while queue.take_nack(0, 8):
        taken += 1
    assert taken == 3  # not one for each of the many ENDs that nobody answered


def test_nacks_of_who_has_enough_or_is_not_served_are_not_looked_at(plane):
    queue = served(plane)
    assert not queue.take_nack(2, 1)
    assert not queue.take_nack(-1, 1)
    assert queue.take_nack(1, 1)
    queue.done(0, 0.0)
    assert not queue.take_nack(0, 1)
    queue.leave(1)
    assert not queue.take_nack(1, 1)
    early = plane[1].SendQueue([0], 64, 64, True, 9.0, 0.0)
    assert not early.take_nack(0, 1)  # no END has asked


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 63, 64, 65, 1000])
def test_a_bitmap_is_read_in_words(size):
    missing_c = np.random.default_rng(size).random(size) < 0.4
    for each in (packet, core) if core else (packet,):
        told = [
            each.read_nack(first, bitmap, size)
            for first, bitmap in each.nack_payloads(missing_c, 8)
        ]
        np.testing.assert_array_equal(np.concatenate([[], *told]), np.flatnonzero(missing_c))


# Other replies.

ASKING = {
    "PROBE": (Kind.PROBE, 0, 0, 0, bytes(LONGEST - 48)),
    "short PROBE": (Kind.PROBE, 0, 0, 0, b""),
    "READY": (Kind.READY, 2),
    "READY of a closed round": (Kind.READY, 1),
    "END": (Kind.END, 1, 1, 40),
}


@pytest.mark.parametrize("name", ASKING)
def test_who_asks_without_end_is_not_always_answered(plane, name):
    """Four seconds of a datagram every 0.1 ms."""
    server = Server(plane)
    server.open(1, 1000, now=1.0)
    server.protocol.abandon_round()
    server.open(2, 1000, now=2.0)
    replies = server.replies(4.0, 1e-4, *ASKING[name])
    assert 16384 - LONGEST < bytes_of(replies) <= 16384 + 4.0 * 48 / 0.00025 + LONGEST
    # Others do not wait for it, and it is answered again when it asks as it should.
    assert len(server.hear(*ASKING[name], row=1, now=104.0)) == 1
    assert len(server.hear(*ASKING[name], now=105.0)) == 1


def test_a_path_of_long_datagrams_can_be_probed(plane):
    server = Server(plane, longest=65507)
    probe = Kind.PROBE, 0, 0, 0, bytes(65507 - 48)
    replies = server.replies(2.0, 0.02, *probe)  # as probes come
    assert len(replies) >= 8


# ECHO.


def test_only_who_got_the_probe_can_echo_it(plane):
    server = Server(plane)
    server.protocol.forget_echoes([5, 2**32 - 1])
    probes = server.protocol.probe()
    assert [(probe[0], probe[3]) for probe in probes] == [(0, 5)] * 2 + [(1, 2**32 - 1)] * 2
    full = bytes(LONGEST - 48)

    def echo(seq, row, counter):
        header = Header(int(Kind.ECHO), row + 1, SESSION, 0, seq, 0, counter)
        return server.protocol.handle(row, header, full, 1.0)[0]

    assert echo(2**32 - 1, 0, 1) == "malformed"  # the other's
    assert echo(0, 0, 2) == "malformed"
    assert server.protocol.longest_echo(0) == 0
    assert echo(5, 0, 1) == "accepted"
    assert echo(5, 0, 1) == "replayed"
    assert server.protocol.longest_echo(0) == LONGEST
    assert not server.protocol.all_echoed()
    assert echo(2**32 - 1, 1, 1) == "accepted"
    assert server.protocol.all_echoed()
    server.protocol.forget_echoes([6, 7])
    assert echo(5, 0, 9) == "malformed"
    assert not server.protocol.all_echoed()


def test_an_echo_that_nobody_asked_for_counts_for_nothing(plane):
    server = Server(plane)
    header = Header(int(Kind.ECHO), 1, SESSION, 0, 0, 0, 1)
    assert server.protocol.handle(0, header, bytes(LONGEST - 48), 1.0)[0] == "malformed"


@pytest.mark.parametrize("address", ["224.0.0.1", "239.1.2.3", "255.255.255.255", "0.0.0.0"])
def test_a_peer_is_one_host(job, address):
    server = job.endpoint(0, 1, 10)
    with pytest.raises(ValueError, match="a peer needs the address of one host"):
        server.add_peer(1, address, 9, b"", b"")


# A host whose network is not as it should be, in a network namespace of its own.

PRIVATE_NETWORK = """
import ctypes, fcntl, socket, struct, subprocess, sys, threading
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(CLONE_NEWNET) and libc.unshare(CLONE_NEWUSER | CLONE_NEWNET):
    sys.exit(77)
try:
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        up = struct.pack("16sh", b"lo", 0x41) + bytes(20)
        fcntl.ioctl(any_socket, 0x8914, up)  # SIOCSIFFLAGS
except PermissionError:
    sys.exit(77)

import numpy as np
from lossympi.endpoint import ClosePolicy, Setup
from lossympi.backend import choose_plane

def endpoints(n, dim):
    return [choose_plane("{plane}").Endpoint(Setup(rank, n, "127.0.0.1", 1, dim))
            for rank in range(n + 1)]
"""

FORGED_ICMP = """
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF

def forge(sender, receiver):
    '''Fragmentation needed, next hop 576 bytes, for a datagram that was sent.'''
    here = socket.inet_aton("127.0.0.1")
    quoted = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 1500, 1, 0x4000, 64, 17, 0, here, here)
    quoted += struct.pack("!HHHH", sender, receiver, 1480, 0)
    icmp = struct.pack("!BBHHH", 3, 4, 0, 0, 576) + quoted
    icmp = icmp[:2] + struct.pack("!H", checksum(icmp)) + icmp[4:]
    raw.sendto(icmp, ("127.0.0.1", 0))

server, worker = ends = endpoints(1, 100_000)
for rank in (0, 1):
    ends[rank].add_peer(1 - rank, "127.0.0.1", ends[1 - rank].port, b"", b"")
for _ in range(3):  # some believe it only once a route is known
    forge(server.port, worker.port)
    forge(worker.port, server.port)
for end in ends:
    end.start()
vector_d = np.ones(100_000, np.float32)
policy = ClosePolicy(9.0, 0.01, 1.0, 0.0, 1, (True,), 10**6)
def work():
    assert worker.send(1, vector_d, 0.0, 9.0)
thread = threading.Thread(target=work)
thread.start()
for rank in (0, 1):
    forge(server.port, worker.port)
    forge(worker.port, server.port)
print(server.collect(1, np.zeros((1, 100_000), np.float32), policy).reason)
thread.join()
print(server.broadcast(1, vector_d, (True,), 10**6, 9.0, 1.0))
print(worker.receive(1, 9.0)[0])
print([end.counters()[1 - rank]["unsent"] for rank, end in enumerate(ends)])
for end in ends:
    end.close()
"""

NO_PATH = """
ip = lambda *words: subprocess.run(["ip", *words], check=True, capture_output=True)
try:
    ip("route", "add", "prohibit", "10.0.2.0/24")  # EACCES
    ip("route", "add", "unreachable", "10.0.3.0/24")  # EHOSTUNREACH
    ip("route", "add", "blackhole", "10.0.4.0/24")  # EINVAL, as of a device without GSO
except (FileNotFoundError, subprocess.CalledProcessError):
    sys.exit(77)

n, dim = 5, 100_000
server, worker = ends = endpoints(n, dim)[:2]
server.add_peer(1, "127.0.0.1", worker.port, b"", b"")
for rank, address in enumerate(("10.0.1.1", "10.0.2.1", "10.0.3.1", "10.0.4.1"), 2):
    server.add_peer(rank, address, 9, b"", b"")  # the first has no route at all: ENETUNREACH
worker.add_peer(0, "127.0.0.1", server.port, b"", b"")
for end in ends:
    end.start()
vector_d = np.ones(dim, np.float32)
policy = ClosePolicy(0.2, 0.01, 1.0, 1.0, 1, (True,) + (False,) * 4, 10**6)
def work():
    assert worker.send(1, vector_d, 1.0, 9.0)
thread = threading.Thread(target=work)
thread.start()
print(server.collect(1, np.zeros((n, dim), np.float32), policy).reason)
thread.join()
print(server.broadcast(1, vector_d, (True,) * n, 10**7, 9.0, 0.1).tolist())
print(worker.receive(1, 9.0)[0])
counters = server.counters()
print([counters[rank]["unsent"] > 280 for rank in range(1, n + 1)], counters[1]["unsent"])
for end in ends:
    end.close()
"""


def run_in_private_network(script, plane):
    script = (PRIVATE_NETWORK + script).replace("{plane}", plane)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("this user may not make a network namespace")
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize("plane", PLANES)
def test_a_forged_icmp_is_not_believed(plane):
    said = run_in_private_network(FORGED_ICMP, plane)
    assert said == ["complete", "[ True]", "1", "[0, 0]"]


@pytest.mark.parametrize("plane", PLANES)
def test_a_worker_without_a_path_is_lost_and_counted_and_the_others_go_on(plane):
    said = run_in_private_network(NO_PATH, plane)
    assert said[:3] == ["complete", str([True, False, False, False, False]), "1"]
    assert said[3] == f"{[False, True, True, True, True]} 0"


# Strangers, and the lock.


def test_strangers_are_dropped_before_they_take_room(job, until, policy):
    server = job.endpoint(0, 1, 10, receive_buffer=20_000)
    raw, stranger = job.raw(server, "none", 1), job.raw(job.endpoint(0, 1, 10), "none", 1)
    server.start()
    for _ in range(5000):
        stranger.socket.sendto(bytes(1400), raw.to)
    raw.send(Kind.READY, 1)
    until(lambda: server.counters()[1]["accepted"] == 1)  # there was room for it
    assert server.counters()[-1]["foreign"] == 5000
    assert server.counters()[-1]["overflow"] == 0


def test_what_finds_the_buffer_full_is_overflow(job, policy):
    """Of a peer, and before the thread reads."""
    server = job.endpoint(0, 1, 10, receive_buffer=20_000)
    raw = job.raw(server, "none", 1)
    for _ in range(500):
        raw.send(Kind.PROBE, 0, 0, 0, bytes(1000))
    counts = server.counters()
    assert counts[-1]["overflow"] > 300
    assert counts[-1]["foreign"] == 0
    server.start()
    raw.send(Kind.READY, 1)


def test_a_round_that_failed_to_open_is_not_open(python_job, policy, monkeypatch):
    """The caller may free the stack. lossympi_threads_test.cc tries the native one."""
    server = python_job.endpoint(0, 1, 10)
    raw = python_job.raw(server, "none", 1)
    server.start()

    def fail(datagrams):
        raise MemoryError

    stack_nd = np.zeros((1, 10), np.float32)
    with monkeypatch.context() as patch:
        patch.setattr(server, "_send_all", fail)
        with pytest.raises(MemoryError):
            server.collect(1, stack_nd, policy(live_n=(True,), quorum=1))
    raw.send(Kind.DATA, 1, 0, 1, np.ones(10, np.float32).tobytes())
    raw.send(Kind.READY, 1)
    assert raw.get(Kind.DONE)[0].round == 1
    assert server.counters()[1]["late"] == 1
    assert not stack_nd.any()
