import contextlib
import itertools
import os
import socket
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from lossympi import ConnectError, addresses, backend, connect, connection, mpi
from lossympi.plane import cipher as python_cipher
from lossympi.plane.endpoint import Endpoint as PythonEndpoint
from tests.lossympi.ranks import on_ranks

DIM = 1000


def on_rank(rank, value, other):
    """Returns a function that gives `value` on one rank and `other` on the rest."""
    return lambda comm: value if comm.rank == rank else other


def open_sockets():
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(link for link in links if "socket:" in link or "eventfd" in link)


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch):
    """Every socket is closed afterwards, and the environment is the test's."""
    for name in list(os.environ):
        if name.startswith(("LOSSYMPI_", "OMPI_", "PMI_", "SLURM_")):
            monkeypatch.delenv(name)
    before = open_sockets()
    yield
    assert open_sockets() == before


def words_of(outcomes):
    """Returns the error that all ranks have raised alike."""
    assert all(isinstance(outcome, ConnectError) for outcome in outcomes), outcomes
    assert len({str(outcome) for outcome in outcomes}) == 1, outcomes
    return str(outcomes[0])


def closed(links):
    for link in links:
        if isinstance(link, Exception):
            raise link
    for link in links:
        link.close()
    return links


@pytest.mark.parametrize("plane", ["native", "python"])
@pytest.mark.parametrize("auth", ["aead", "none"])
def test_ranks_are_joined(plane, auth):
    def play(comm):
        link = connect(comm, DIM, plane=plane, auth=auth)
        with contextlib.closing(link):
            if comm.rank == 0:
                stack_nd = link.collect(0).stack_nd
                link.broadcast(0, stack_nd.sum(axis=0))
                return stack_nd[:, 0].tolist()
            link.send(0, np.full(DIM, link.rank + 1, np.float32))
            return link.receive(0).params_d[0]

    assert on_ranks(3, play) == [[1.0, 2.0], 3.0, 3.0]


@pytest.mark.parametrize(
    ("rank", "arguments", "words"),
    [
        (1, {"dim": 999}, "rank 0 and rank 1 have dim=1000 and dim=999"),
        (1, {"dtype": "float64"}, "rank 0 and rank 1 have dtype='float32' and dtype='float64'"),
        (1, {"dim": 500, "dtype": "float64"}, "have dim=1000 and dim=500, dtype='float32' and"),
        (2, {"mtu": 1400}, "rank 0 and rank 2 have mtu=1500 and mtu=1400"),
        (0, {"auth": "none"}, "rank 0 and rank 1 have auth='none' and auth='aead'"),
        (1, {"wire": "float16", "quorum": 1}, "quorum=None and quorum=1, wire='float32' and wire="),
    ],
)
def test_all_must_pass_the_same(rank, arguments, words):
    args = on_rank(rank, arguments, {})
    outcomes = on_ranks(3, lambda comm: connect(comm, **{"dim": DIM, **args(comm)}))
    assert words in words_of(outcomes)
    assert "the same script" in words_of(outcomes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dim": 0}, "dim is 1..2^31 floats, got 0"),
        ({"dim": 2**31 + 1}, "dim is 1..2^31 floats"),
        ({"dim": 2**30 + 1, "dtype": np.float64}, "dim is 1..2^30 floats"),
        ({"dtype": "float16"}, "a link carries float32 or float64, got dtype='float16'"),
        ({"dtype": "words"}, "a link carries float32 or float64, got dtype='words'"),
        (
            {"wire": "bfloat16", "dtype": np.float64},
            "wire='bfloat16' halves float32, and float64 is to travel. Leave it out",
        ),
        ({"dim": 10.0}, "dim is 1..2^31 floats, got 10.0"),
        ({"plane": "fast"}, "a plane is auto, native or python; got 'fast'"),
        ({"quorum": 3}, "quorum is at most n = 2 workers, got 3"),
        ({"max_loss": 2}, "max_loss is a share in 0..1"),
        ({"dim": True}, "dim is 1..2^31 floats, got True"),
        (
            {"nonesuch": 1},
            "no option is called nonesuch. There are timeout_s, floor_s, f, max_loss, quorum, ",
        ),
        ({"timout": 3}, "no option is called timout. Did you mean timeout_s?"),
        ({"timeout_s": "3"}, "timeout_s is a number, got '3'"),
        ({"transport": "tcp"}, "a transport is one of udp, mpi, shm, auto; got 'tcp'"),
        ({"mtu": 1500.5}, "mtu is a whole number, got 1500.5"),
        ({"quorum": 1.5}, "quorum is a whole number, got 1.5"),
    ],
)
def test_what_is_wrong_on_one_rank_is_told_on_all(arguments, words):
    args = on_rank(1, arguments, {})
    said = words_of(on_ranks(3, lambda comm: connect(comm, **{"dim": DIM, **args(comm)})))
    assert said.startswith("rank 1 cannot connect: ")
    assert words in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"max_loss": 0, "auth": "none"},
            "there is no max_loss nor auth: the options of transport=",
        ),
        ({"patience": 0}, "patience is at least 1 round, got 0"),
        ({"quorum": 3}, "quorum is at most n = 2 workers, got 3"),
        ({"plane": "python"}, "transport='mpi' has none; got 'python'. Leave it out."),
    ],
)
def test_what_mpi_has_not_is_refused(arguments, words):
    args = on_rank(1, arguments, {})
    said = words_of(on_ranks(3, lambda comm: connect(comm, DIM, transport="mpi", **args(comm))))
    assert said.startswith("rank 1 cannot connect: ")
    assert words in said


def test_ranks_agree_on_the_transport():
    transport = on_rank(2, "mpi", "udp")
    said = words_of(on_ranks(3, lambda comm: connect(comm, DIM, transport=transport(comm))))
    assert "rank 0 and rank 2 have transport='udp' and transport='mpi'" in said


def test_mpi_that_was_started_for_one_thread_is_refused(monkeypatch):
    single = SimpleNamespace(Query_thread=lambda: 1, THREAD_SERIALIZED=2)
    monkeypatch.setattr(mpi, "import_mpi", lambda: single)
    said = words_of(on_ranks(2, lambda comm: connect(comm, DIM, transport="mpi")))
    assert "rank 0, 1 cannot connect: transport='mpi' calls MPI from whichever thread" in said


def test_numpy_s_numbers_are_numbers():
    options = {"timeout_s": np.float32(3), "mtu": np.int64(1400), "quorum": np.int32(1)}
    closed(on_ranks(2, lambda comm: connect(comm, np.int64(DIM), **options)))


def test_a_communicator_is_needed():
    with pytest.raises(ConnectError, match="comm is an mpi4py communicator, got None"):
        connect(None, DIM)


def test_what_a_host_has_no_memory_for_is_not_begun(monkeypatch):
    monkeypatch.setattr(connection, "free_bytes", lambda: 20 * DIM)
    closed(on_ranks(2, lambda comm: connect(comm, DIM)))  # 4 for the server, 8 for the worker
    said = words_of(on_ranks(3, lambda comm: connect(comm, DIM)))
    assert f"the ranks on {socket.gethostname()} need 0.0 GiB for vectors of 1000 floats" in said
    assert "Start fewer ranks there" in said


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("LOSSYMPI_DROP", "10%", "LOSSYMPI_DROP='10%': the share of the datagrams to lose"),
        ("LOSSYMPI_DROP", "1.5", "LOSSYMPI_DROP='1.5': "),
        ("LOSSYMPI_DROP", "nan", "LOSSYMPI_DROP='nan': "),
        ("LOSSYMPI_DROP_SEED", "-1", "LOSSYMPI_DROP_SEED='-1': the seed of the losses is a whole"),
        ("LOSSYMPI_DROP_SEED", "0.5", "LOSSYMPI_DROP_SEED='0.5': "),
        ("LOSSYMPI_DROP_SEED", str(2**64), "0..2^64-1"),
        ("LOSSYMPI_ADDRESS", "eth0", "LOSSYMPI_ADDRESS='eth0': an address is numeric IPv4"),
        ("LOSSYMPI_ADDRESS", "203.0.113.9", "LOSSYMPI_ADDRESS='203.0.113.9': this host has no"),
    ],
)
def test_the_environment_is_checked(name, value, words, monkeypatch):
    monkeypatch.setenv(name, value)
    assert words in words_of(on_ranks(2, lambda comm: connect(comm, DIM)))


def test_an_empty_environment_is_none(monkeypatch):
    for name in ("LOSSYMPI_DROP", "LOSSYMPI_DROP_SEED", "LOSSYMPI_ADDRESS"):
        monkeypatch.setenv(name, "")
    closed(on_ranks(2, lambda comm: connect(comm, DIM)))


def test_losses_and_their_seed_reach_the_endpoint(monkeypatch):
    monkeypatch.setenv("LOSSYMPI_DROP", "0.25")
    monkeypatch.setenv("LOSSYMPI_DROP_SEED", str(2**64 - 1))
    setups = spy_on_setups(monkeypatch)
    closed(on_ranks(2, lambda comm: connect(comm, DIM, plane="python")))
    assert {(setup.drop, setup.drop_seed) for setup in setups} == {(0.25, 2**64 - 1)}


def spy_on_setups(monkeypatch):
    setups = []
    make = PythonEndpoint.__init__

    def spy(self, setup):
        setups.append(setup)
        make(self, setup)

    monkeypatch.setattr(PythonEndpoint, "__init__", spy)
    return setups


def test_wire_mtu_and_rate_reach_the_link(monkeypatch):
    setups = spy_on_setups(monkeypatch)
    options = {"wire": "bfloat16", "mtu": 1280, "rate_bps": 5e6}
    server, _ = closed(on_ranks(2, lambda comm: connect(comm, DIM, plane="python", **options)))
    assert {(setup.wire, setup.mtu, setup.dim) for setup in setups} == {("bfloat16", 1280, DIM)}
    assert int(server._rate.bps / 1000) == 5000


@pytest.mark.parametrize(
    ("auth", "slow_rank", "cipher"),
    [
        ("none", None, "none"),
        ("aead", None, "aes256gcm"),
        ("aead", 0, "chacha20poly1305"),
        ("aead", 2, "chacha20poly1305"),
    ],
)
def test_cipher(auth, slow_rank, cipher, monkeypatch):
    setups = spy_on_setups(monkeypatch)
    asked = threading.local()
    monkeypatch.setattr(
        "lossympi.plane.has_aes256gcm", lambda: getattr(asked, "rank", None) != slow_rank
    )

    def join(comm):
        asked.rank = comm.rank
        return connect(comm, DIM, plane="python", auth=auth)

    closed(on_ranks(3, join))
    assert {setup.cipher for setup in setups} == {cipher}
    assert len({setup.session for setup in setups}) == 1


def test_each_pair_has_keys_of_its_own(monkeypatch):
    keys = []
    add_peer = PythonEndpoint.add_peer

    def spy(self, rank, address, port, send_key, receive_key):
        keys.append((send_key, receive_key))
        add_peer(self, rank, address, port, send_key, receive_key)

    monkeypatch.setattr(PythonEndpoint, "add_peer", spy)
    closed(on_ranks(3, lambda comm: connect(comm, DIM, plane="python")))
    assert len(keys) == 4
    assert len({key for pair in keys for key in pair}) == 4  # two directions of two pairs
    assert {pair[::-1] for pair in keys} == set(keys)


@pytest.mark.parametrize("plane", ["native", "python"])
def test_a_public_key_that_two_ranks_send_is_refused_by_all(plane, monkeypatch):
    """With equal keys the server would use a nonce twice."""
    chosen = backend.choose_plane(plane)
    copied = chosen.key_pair()
    pairs = threading.local()
    key_pair = chosen.key_pair
    monkeypatch.setattr(chosen, "key_pair", lambda: copied if pairs.rank in (2, 3) else key_pair())

    def join(comm):
        pairs.rank = comm.rank
        return connect(comm, DIM, plane=plane)

    said = words_of(on_ranks(4, join))
    assert said.startswith("rank 2, 3 cannot connect: its public key is another rank's too")


@pytest.mark.parametrize(
    ("session", "worker", "key"),
    [
        (0, 1, "8ff408eb03164be26fc2cc4551403f73d001dd0d9334863a189c6a1cb55bd580"),
        (0x12345678, 1, "9300a992a33a90de70892f363b92431c6d1b75fd1d4136685d86980d7c9a60f2"),
        (0x12345678, 2, "d4aaf0b8513393f4a84383d22b4b2f843e38b904afa7aab4db8aee77797062c9"),
        (2**32 - 1, 2**16 - 1, "2fdabdb74dd8db0174b859bdcbe36b50f6cb5f9765540ed2a11feee233eccd42"),
    ],
)
def test_keys_are_bound_to_session_and_rank(session, worker, key):
    """BLAKE2b with a key, of 32 bytes: vectors for who writes another plane."""
    assert connection.bound_key(bytes(range(32)), session, worker).hex() == key


def test_with_equal_public_keys_two_ranks_would_still_have_other_keys():
    secret_key, public_key = backend.choose_plane("python").key_pair()[::-1]
    _, theirs = backend.choose_plane("python").key_pair()[::-1]
    keys = backend.choose_plane("python").session_keys(secret_key, public_key, theirs, True)
    bound = {connection.bound_key(key, 7, rank) for key in keys for rank in (1, 2)}
    assert len(bound) == 4


# What a worker says of itself.


def lying(rank, place, value):
    """Returns a function that runs a rank whose messages have another value at a place."""

    class Liar:
        def __init__(self, comm):
            self.rank, self.size = comm.rank, comm.size
            self._comm = comm

        def allgather(self, message):
            what, (result, words) = message if message[0] == "results" else (None, (None, None))
            if self.rank == rank and isinstance(result, dict) and place in result:
                message = [what, [{**result, place: value}, words]]
            return self._comm.allgather(message)

    return lambda comm: connect(Liar(comm), DIM, plane="python")


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("address", "224.0.0.251", "224.0.0.251 is not the address of one host"),
        ("address", "0.0.0.0", "0.0.0.0 is not the address of one host"),
        ("address", "255.255.255.255", "255.255.255.255 is not the address of one host"),
        ("address", "240.0.0.1", "240.0.0.1 is not the address of one host"),
        ("address", "192.0.2.7", "192.0.2.7 and the server's 127.0.0.1 cannot reach each other"),
        ("address", "::1", "an address is numeric IPv4, got '::1'"),
        ("address", "localhost", "an address is numeric IPv4, got 'localhost'"),
        ("address", 2130706433, "its result.address must be text, got 2130706433"),
        ("port", 53, "a port is 1024..65535, got 53"),
        ("port", 65536, "a port is 1024..65535, got 65536"),
        ("port", True, "its result.port must be whole, got True"),
        ("port", -1, "a port is 1024..65535, got -1"),
        ("public_key", "00" * 31, "a public key has 32 bytes, got 31"),
        ("public_key", "", "a public key has 32 bytes, got 0"),
        ("public_key", [], "its result.public_key must be hexadecimal, got []"),
        ("name", {"a": 1}, "its result.name must be text, got {'a': 1}"),
        ("free_bytes", "none", "its result.free_bytes must be whole, got 'none'"),
        ("has_core", 1, "its result.has_core must be true or false, got 1"),
        ("0", "1500", "its result['0'] must be whole, got '1500'"),
    ],
)
def test_what_a_worker_says_of_itself_is_checked(place, value, words):
    said = words_of(on_ranks(3, lying(2, place, value)))
    assert said.startswith(f"rank 2 cannot connect: {words}")


def test_two_ranks_have_no_door_in_common():
    door = connection._Door("127.0.0.1", 5000, b"")
    with pytest.raises(ConnectError, match=r"rank 0, 1 cannot connect: 127.0.0.1:5000 is another"):
        connection._check_doors([door, door], "127.0.0.1", 0)


def test_a_loopback_is_no_door_to_a_server_elsewhere():
    with pytest.raises(ValueError, match="cannot reach each other"):
        addresses.check_door("127.0.0.1", 5000, "10.0.0.1")
    addresses.check_door("10.0.0.2", 5000, "10.0.0.1")


def test_the_name_of_a_host_is_printable_in_what_is_told(monkeypatch):
    monkeypatch.setattr(connection, "PROBE_S", 0.1)
    monkeypatch.setenv("LOSSYMPI_DROP", "1")
    said = words_of(on_ranks(2, lying(1, "name", "\x1b[2Jhost\naggregathor: all is well")))
    assert "worker 0 (\\x1b[2Jhost\n  aggregathor: all is well, " in said


# Addresses.

TWO_NETWORKS = {"lo": "127.0.0.1", "eth0": "192.168.1.5", "ib0": "10.0.0.5"}


@pytest.mark.parametrize(
    ("own", "default", "chosen", "all_local", "address"),
    [
        (TWO_NETWORKS, "eth0", None, True, "127.0.0.1"),
        (TWO_NETWORKS, "eth0", None, False, "192.168.1.5"),
        (TWO_NETWORKS, "ib0", None, False, "10.0.0.5"),
        (TWO_NETWORKS, "", None, False, "192.168.1.5"),
        (TWO_NETWORKS, "lo", None, False, "192.168.1.5"),
        (TWO_NETWORKS, "eth0", "10.0.0.0/8", False, "10.0.0.5"),
        (TWO_NETWORKS, "eth0", "10.0.0.0/8", True, "10.0.0.5"),
        (TWO_NETWORKS, "eth0", "10.0.0.5", False, "10.0.0.5"),
        (TWO_NETWORKS, "eth0", "10.0.0.6", False, "this host has no address in 10.0.0.6/32"),
        (TWO_NETWORKS, "eth0", "fe80::/16", False, "this host has no address in fe80::/16"),
        (TWO_NETWORKS, "eth0", "ib0", False, "an address is numeric IPv4"),
        ({"lo": "127.0.0.1"}, "", None, False, "no IPv4 address that other hosts could reach"),
        ({}, "", None, False, "no IPv4 address"),
    ],
)
def test_server_address(own, default, chosen, all_local, address, monkeypatch):
    monkeypatch.setattr(addresses, "own_addresses", lambda: own)
    monkeypatch.setattr(addresses, "_default_device", lambda: default)
    if " " in address:
        with pytest.raises(ValueError, match=address):
            addresses.server_address(chosen, all_local)
    else:
        assert addresses.server_address(chosen, all_local) == address


@pytest.mark.parametrize("elsewhere", [None, 0, 1])
def test_only_ranks_of_one_network_use_the_loopback(elsewhere, monkeypatch):
    here = threading.local()
    asked = []

    def server_address(chosen, all_local):
        asked.append((chosen, all_local))
        return "127.0.0.1"

    monkeypatch.setattr(addresses, "server_address", server_address)
    monkeypatch.setattr(
        addresses, "network_of_this_process", lambda: f"boot/{here.rank == elsewhere}"
    )

    def join(comm):
        here.rank = comm.rank
        return connect(comm, DIM)

    closed(on_ranks(3, join))
    assert asked == [(None, elsewhere is None)]


def test_address_of_this_host_is_taken(monkeypatch):
    outward = [a for a in addresses.own_addresses().values() if not a.startswith("127.")]
    if not outward:
        pytest.skip("this host has the loopback only")
    monkeypatch.setenv("LOSSYMPI_ADDRESS", outward[0])
    setups = spy_on_setups(monkeypatch)
    closed(on_ranks(2, lambda comm: connect(comm, DIM, plane="python", mtu=1280)))
    assert {setup.address for setup in setups} == {outward[0]}


# What fails on the way.


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_without_a_socket_ends_all(rank, monkeypatch):
    make = PythonEndpoint.__init__

    def fail(self, setup):
        if setup.rank == rank:
            raise OSError("Too many open files")
        make(self, setup)

    monkeypatch.setattr(PythonEndpoint, "__init__", fail)
    said = words_of(on_ranks(3, lambda comm: connect(comm, DIM, plane="python")))
    assert said == f"rank {rank} cannot connect: Too many open files"


def test_a_rank_without_a_route_ends_all(monkeypatch):
    def fail(server):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(addresses, "address_towards", fail)
    said = words_of(on_ranks(3, lambda comm: connect(comm, DIM)))
    assert said == "rank 1, 2 cannot connect: Network is unreachable"


def without_cryptography(monkeypatch):
    def fail():
        raise python_cipher._absent()

    monkeypatch.setattr(python_cipher, "_x25519", fail)


def test_a_rank_without_ciphers_ends_all(monkeypatch):
    without_cryptography(monkeypatch)
    plane = on_rank(1, "python", "native")
    said = words_of(on_ranks(3, lambda comm: connect(comm, DIM, plane=plane(comm))))
    assert said.startswith("rank 1 cannot connect: tags and keys need the package cryptography")


def test_without_authentication_no_ciphers_are_needed(monkeypatch):
    without_cryptography(monkeypatch)
    closed(on_ranks(2, lambda comm: connect(comm, DIM, plane="python", auth="none")))


def test_a_server_without_memory_ends_all(monkeypatch):
    def fail(shape):
        raise MemoryError(f"no room for {shape}")

    monkeypatch.setattr("lossympi.udp_link.aligned_zeros", fail)
    said = words_of(on_ranks(3, lambda comm: connect(comm, DIM)))
    assert said == "rank 0 cannot connect: no room for (2, 1000)"


@pytest.mark.parametrize("plane", ["native", "python"])
def test_blocked_datagrams_are_told(plane, monkeypatch):
    monkeypatch.setattr(connection, "PROBE_S", 0.1)
    monkeypatch.setenv("LOSSYMPI_DROP", "1")
    said = words_of(on_ranks(3, lambda comm: connect(comm, DIM, plane=plane)))
    for worker in (0, 1):
        where = f"worker {worker} ({socket.gethostname()}, 127.0.0.1:"
        assert f"no UDP datagram came back between {where}" in said
    assert f"and the server ({socket.gethostname()}, 127.0.0.1:" in said
    assert "within 0.1 s: a firewall may block UDP, or LOSSYMPI_ADDRESS should name another" in said


def test_the_path_is_given_two_seconds(monkeypatch):
    monkeypatch.setenv("LOSSYMPI_DROP", "1")
    begun = time.monotonic()
    said = words_of(on_ranks(2, lambda comm: connect(comm, DIM)))
    assert "within 2 s" in said
    assert 1.9 < time.monotonic() - begun < 6


def test_a_path_for_short_datagrams_only_is_told(monkeypatch):
    probe = PythonEndpoint.probe
    monkeypatch.setattr(PythonEndpoint, "probe", lambda self, s: dict.fromkeys(probe(self, s), 100))
    said = words_of(on_ranks(2, lambda comm: connect(comm, DIM, plane="python")))
    assert "datagrams of 1500 bytes do not get through" in said
    assert "pass a lower mtu" in said


# One rank alone.


def test_alone_it_tells_how_to_start():
    said = words_of(on_ranks(1, lambda comm: connect(comm, DIM)))
    assert "MPI started 1 process" in said
    assert "`mpirun -n 5 python ...`" in said


@pytest.mark.parametrize(
    ("variables", "library", "words"),
    [
        (
            {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"},
            "MPICH 4.2.0",
            [
                "Open MPI's mpirun started 4",
                "(MPICH 4.2.0) belongs to another MPI",
                "MPI4PY_LIBMPI",
            ],
        ),
        (
            {"PMI_SIZE": "3"},
            "Open MPI v5.0.11",
            ["MPICH's mpirun", "started 3", "(Open MPI v5.0.11) belongs to another MPI"],
        ),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "MPICH 4.2.0", ["srun started 8", "srun --mpi=pmix"]),
        ({"SLURM_STEP_NUM_TASKS": "1"}, "MPICH 4.2.0", ["MPI started 1 process"]),
        ({"PMI_SIZE": "many"}, "MPICH 4.2.0", ["MPI started 1 process"]),
    ],
)
def test_alone_under_another_mpi_it_names_both(variables, library, words, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(mpi, "loaded_library", lambda: library)
    said = words_of(on_ranks(1, lambda comm: connect(comm, DIM)))
    for part in words:
        assert part in said


def play_once(comm, **arguments):
    link = connect(comm, DIM, **arguments)
    with contextlib.closing(link):
        if comm.rank == 0:
            got = link.collect(0)
            link.broadcast(0, got.stack_nd.sum(axis=0))
            return type(link).__name__, got.stack_nd[:, 0].tolist()
        link.send(0, np.full(DIM, link.rank + 1, np.float32))
        return type(link).__name__, link.receive(0).params_d[0]


def of_another_container(*_):
    raise ValueError("it runs in another container")


needs_core = pytest.mark.skipif(bool(backend.why_not_native()), reason=backend.why_not_native())


@needs_core
@pytest.mark.parametrize("arguments", [{"transport": "shm"}, {"plane": "python"}], ids=str)
def test_float64_arrives_with_all_its_bits(arguments):
    value = np.float64(1 + 1e-12)

    def play(comm):
        with contextlib.closing(connect(comm, DIM, dtype=np.float64, **arguments)) as link:
            if comm.rank == 0:
                got = link.collect(0)
                link.broadcast(0, np.full(DIM, value))
                assert got.stack_nd.shape == (2, DIM)
                return got.stack_nd[:, -1].tolist()
            link.send(0, np.full(DIM, link.rank + value))
            return link.receive(0).params_d[-1]

    assert on_ranks(3, play) == [[value, 1 + value], value, value]


@needs_core
@pytest.mark.parametrize("transport", ["shm", "auto"])
def test_ranks_of_one_host_share_memory(transport):
    assert on_ranks(3, lambda comm: play_once(comm, transport=transport)) == [
        ("SharedServer", [1.0, 2.0]),
        ("SharedWorker", 3.0),
        ("SharedWorker", 3.0),
    ]


@needs_core
@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("host", "there are several hosts: "),
        ("core", "the native code is missing on a rank"),
        ("file", "rank 1, 2 cannot connect: it runs in another container"),
    ],
)
def test_where_memory_cannot_be_shared_auto_takes_mpi(missing, words, monkeypatch):
    if missing == "host":
        names = itertools.count()
        monkeypatch.setattr(socket, "gethostname", lambda: f"host-{next(names)}")
    elif missing == "core":
        monkeypatch.setattr(connection, "why_not_native", lambda: "it was not built")
    else:
        monkeypatch.setattr("lossympi.shm_link._open_file", of_another_container)
    monkeypatch.setattr(connection, "_join_mpi", lambda comm, *_: "MPI")

    def play(transport):
        return lambda comm: connect(comm, DIM, transport=transport)

    assert words in words_of(on_ranks(3, play("shm")))
    assert on_ranks(3, play("auto")) == ["MPI"] * 3
