"""The faults of AggregaThor's first LossyMPI, each with a test that it would fail."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from lossympi import fill
from lossympi.plane.packet import Kind, encode_floats

K = 352
DIM = 2 * K + 3
C = 3
GUARD = np.float32(-12345.0)
RATE_KBPS = 1_000_000
IP_MTU_DISCOVER, IP_PMTUDISC_PROBE = 10, 3


def payload(seq, value):
    return np.full(min(K, DIM - seq * K), value, np.float32).tobytes()


def of_seq(seq):
    return slice(seq * K, min(DIM, seq * K + K))


@pytest.fixture(params=["none", "aes256gcm"])
def hosted(request, job, background, policy):
    """A server with two raw workers; `collect` runs a round on it while `during` feeds it."""

    class Hosted:
        def __init__(self):
            self.server = job.endpoint(0, 2, DIM, cipher=request.param)
            self.raws = [job.raw(self.server, request.param, rank) for rank in (1, 2)]
            self.server.start()

        def collect(self, round, stack_nd, during):
            call = background(self.server.collect, round, stack_nd, policy(grace_s=0.0))
            self.raws[0].get(Kind.GRANT)
            during()
            for raw in self.raws:
                raw.send(Kind.END, round, 1, C)
            return call.result()

    return Hosted()


def test_a_nan_fill_writes_nan_not_zero_bytes(hosted):
    """It cleared the bytes of a hole: a zero gradient passed for a missing one."""
    stack_nd = np.zeros((2, DIM), np.float32)
    closed = hosted.collect(1, stack_nd, lambda: hosted.raws[0].send(5, 1, 0, C, payload(0, 7)))
    fill(stack_nd, closed.arrived_nc, "nan", floats_per_datagram=K)
    assert (stack_nd[0, of_seq(0)] == 7).all()
    assert np.isnan(stack_nd[0, K:]).all()
    assert np.isnan(stack_nd[1]).all()


def test_the_hole_is_filled_not_the_cursor_and_nothing_stale_shows(hosted):
    """It filled where it had read up to, so a hole kept what the round before had left there."""
    stack_nd = np.zeros((2, DIM), np.float32)

    def all_of_it():
        for raw in hosted.raws:
            for seq in range(C):
                raw.send(Kind.DATA, 1, seq, C, payload(seq, 10 * raw.rank + seq))

    assert hosted.collect(1, stack_nd, all_of_it).arrived_nc.all()

    def with_holes():
        for raw, hole in zip(hosted.raws, (1, 2), strict=True):
            for seq in {0, 1, 2} - {hole}:
                raw.send(Kind.DATA, 2, seq, C, payload(seq, 100 * raw.rank + seq))

    closed = hosted.collect(2, stack_nd, with_holes)
    np.testing.assert_array_equal(closed.arrived_nc, [[1, 0, 1], [1, 1, 0]])
    fill(stack_nd, closed.arrived_nc, "nan", floats_per_datagram=K)
    for row, hole in enumerate((1, 2)):
        for seq in range(C):
            wanted = np.nan if seq == hole else 100 * (row + 1) + seq
            np.testing.assert_array_equal(stack_nd[row, of_seq(seq)], np.float32(wanted))


def test_a_position_out_of_range_writes_nothing(hosted, until):
    """It believed the position in a datagram, and wrote where that pointed to."""
    around_nd = np.full((4, DIM), GUARD, np.float32)
    positions = [C - 1, C, C + 1, 2 * C - 1, 2 * C, 2**16, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]
    # A multiplication by the floats of a datagram that overflows 32 bits comes back to the row.
    positions += [2**32 // K + more for more in (0, 1, 2)]
    sent = 0

    def attack():
        nonlocal sent
        for position in positions:
            for total in {C, min(position + 1, 2**32 - 1)}:
                for size in {0, 1, 4, 12, 4 * K}:
                    if (position, total, size) == (C - 1, C, 12):
                        continue  # this one is right
                    hosted.raws[0].send(Kind.DATA, 1, position, total, b"\x7f" * size)
                    sent += 1
        until(lambda: hosted.server.counters()[1]["malformed"] == sent)

    closed = hosted.collect(1, around_nd[1:3], attack)
    assert sent > 90
    assert not closed.arrived_nc.any()
    assert (around_nd == GUARD).all()


def test_an_old_gradient_is_not_accepted_in_a_later_round(hosted, until):
    """Its datagrams named no round: what was recorded once was a gradient for ever."""
    stack_nd = np.full((2, DIM), GUARD, np.float32)
    raw = hosted.raws[0]
    recorded = [raw.make(Kind.DATA, 1, seq, C, payload(seq, 6)) for seq in range(C)]

    def replay():
        for datagram in recorded:
            raw.socket.sendto(datagram, raw.to)

    assert hosted.collect(1, stack_nd, replay).arrived_nc[0].all()
    stack_nd[:] = GUARD

    def replay_twice():
        for _ in range(2):
            replay()
        # A record with the round made new does not pass where there is a key.
        for datagram in recorded if raw.tag_bytes else ():
            raw.socket.sendto(datagram[:8] + bytes([2]) + datagram[9:], raw.to)
        until(lambda: hosted.server.counters()[1]["late"] == 2 * C)
        if raw.tag_bytes:
            until(lambda: hosted.server.counters()[1]["forged"] == C)

    closed = hosted.collect(2, stack_nd, replay_twice)
    assert not closed.arrived_nc.any()
    assert (stack_nd == GUARD).all()


def socket_of(port):
    """Returns a copy of this process's UDP socket that is bound to a port."""
    for name in os.listdir("/proc/self/fd"):
        try:
            found = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        if found.family == socket.AF_INET and found.getsockname()[1] == port:
            return found
        found.close()
    raise AssertionError(f"no socket on port {port}")


@pytest.mark.parametrize("rank", [0, 1])
def test_fragmentation_is_forbidden(job, rank):
    """It sent 65000 bytes at once: forty-five fragments, and losing one lost them all."""
    endpoint = job.endpoint(rank, 1, 1)
    with socket_of(endpoint.port) as found:
        assert found.getsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER) == IP_PMTUDISC_PROBE


@pytest.mark.parametrize("cipher", ["none", "aes256gcm"])
@pytest.mark.parametrize("mtu", [576, 1500, 9000])
@pytest.mark.parametrize("wire", ["float32", "bfloat16"])
def test_no_datagram_is_longer_than_the_mtu(job, background, mtu, wire, cipher):
    dim = 9000
    worker = job.endpoint(1, 1, dim, mtu=mtu, wire=wire, cipher=cipher)
    raw = job.raw(worker, cipher, 0)
    worker.start()
    call = background(worker.send, 1, np.ones(dim, np.float32), 1.0, 2.0)
    raw.send(Kind.GRANT, 1, RATE_KBPS)
    sizes, got = [], b""
    while not sizes or sizes[-1] != 32 + raw.tag_bytes:  # END: a header and a tag
        datagram = raw.socket.recv(65536)
        if datagram[1] in (Kind.DATA, Kind.END):
            sizes.append(len(datagram))
            got += datagram[32 : len(datagram) - raw.tag_bytes]
    assert call.result()
    assert mtu - 28 - 64 - 16 < max(sizes) <= mtu - 28  # as long as may be, and no longer
    assert got == encode_floats(np.ones(dim, np.float32), wire)


SMALL_PATH = """
import ctypes, fcntl, socket, struct, sys
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(CLONE_NEWNET) and libc.unshare(CLONE_NEWUSER | CLONE_NEWNET):
    sys.exit(77)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    for request, value in ((0x8922, struct.pack("16si", b"lo", 1300)),  # SIOCSIFMTU
                           (0x8914, struct.pack("16sh", b"lo", 0x41))):  # SIOCSIFFLAGS: up
        try:
            fcntl.ioctl(any_socket, request, value + bytes(20))
        except PermissionError:
            sys.exit(77)

import numpy as np
from lossympi.endpoint import Setup
from lossympi.backend import choose_plane

ends = [choose_plane("{plane}").Endpoint(Setup(rank, 1, "127.0.0.1", 1, 1000)) for rank in (0, 1)]
for rank in (0, 1):
    ends[rank].add_peer(1 - rank, "127.0.0.1", ends[1 - rank].port, b"", b"")
for end in ends:
    end.start()
print(ends[0].probe(0.1))
print(ends[0].broadcast(1, np.ones(1000, np.float32), (True,), 10**6, 0.1, 0.1))
print(ends[0].counters()[1]["unsent"] >= 3)
print(ends[1].receive(1, 0.0))
names, values = [line.split() for line in open("/proc/net/snmp") if line.startswith("Ip:")]
print(values[names.index("FragCreates")])
for end in ends:
    end.close()
"""


@pytest.mark.parametrize("plane", ["python", "native"])
def test_what_is_too_long_for_the_path_is_lost_never_fragmented(plane):
    """In a network of its own whose loopback carries 1300 bytes, with an MTU of 1500."""
    script = SMALL_PATH.replace("{plane}", plane)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("this user may not make a network namespace")
    assert done.stderr == ""
    probed, sent, unsent, received, fragments = done.stdout.splitlines()
    assert probed == "{1: 100}"  # the short probe came, the long one did not
    assert (sent, unsent) == ("[False]", "True")
    assert (received, fragments) == ("None", "0")


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("dim", [1, 352, 353, 100_003])
def test_n_and_d_are_arguments(job, background, policy, n, dim):
    """They were constants of the source: another model was another build."""
    server, workers = job.connected(n, dim)
    grads_nd = np.random.default_rng(n + dim).standard_normal((n, dim)).astype(np.float32)
    stack_nd = np.zeros((n, dim), np.float32)
    live_n = (True,) * n

    def work(worker, grad_d):
        sent = worker.send(1, grad_d, 0.0, 9.0)
        return sent, worker.receive(1, 9.0)[1].copy()

    calls = [background(work, *each) for each in zip(workers, grads_nd, strict=True)]
    slow = policy(live_n=live_n, quorum=n, max_loss=0.0, deadline_s=9.0, rate_kbps=RATE_KBPS // n)
    closed = server.collect(1, stack_nd, slow)
    assert closed.arrived_nc.shape == (n, -(-dim // K))
    np.testing.assert_array_equal(stack_nd, grads_nd)
    assert server.broadcast(1, grads_nd[-1].copy(), live_n, RATE_KBPS, 9.0, 9.0).all()
    for call in calls:
        sent, model_d = call.result()
        assert sent
        np.testing.assert_array_equal(model_d, grads_nd[-1])
