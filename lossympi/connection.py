"""From MPI ranks to a link: they agree, exchange addresses and keys, and try the path."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from lossympi import addresses, mpi
from lossympi.backend import Plane, choose_plane, why_not_native
from lossympi.collectives import Collectives, describe_failures
from lossympi.doorbell import Doorbell
from lossympi.endpoint import Endpoint, Setup
from lossympi.float64_link import floats_per_value, of_dtype
from lossympi.link import LinkError, ServerLink, WorkerLink
from lossympi.machine import free_bytes
from lossympi.mpi_collectives import MpiCommunicator
from lossympi.options import Options
from lossympi.timeout import tolerated
from lossympi.topology import ROOT, Topology
from lossympi.udp_link import UdpServer, UdpWorker

TRANSPORTS = ("udp", "mpi", "shm", "auto")
PROBE_S = 2.0
START_S = 600.0
_UNKNOWN_SPEED_MBPS = 10_000
_PUBLIC_KEY_BYTES = 32
_BELL = re.compile(rb"\0[0-9a-f]{5}")  # as the kernel names sockets: no path to somebody else's


class ConnectError(LinkError):
    """The ranks cannot be joined; every rank raises it, with the same words."""


@dataclass(frozen=True)
class _Arguments:
    """Of ``connect``, checked; on every rank the same."""

    dim: int  # floats: those of float64 are two each
    transport: str
    options: Options


@dataclass(frozen=True)
class _Host:
    """What a rank's process finds where it runs."""

    name: str
    network: str
    free_bytes: int | None  # of its memory
    has_core: bool
    has_aes: bool


@dataclass(frozen=True)
class _Door:
    """Where a rank can be reached, and by which public key."""

    address: str
    port: int
    public_key: bytes


def connect(
    comm: Any,
    dim: int,
    *,
    transport: str = "udp",
    dtype: DTypeLike = np.float32,
    plane: str = "auto",
    start_s: float = START_S,
    **options: Any,
) -> ServerLink | WorkerLink:
    """Joins the ranks of an MPI communicator: rank 0 is the server, the others are workers.

    Collective: every rank calls it, with the same arguments. What ranks tell each other is plain
    data in messages to rank 0 and back, on a duplicate of the communicator. With transport="udp"
    MPI is used in here only, from the calling thread; gradients and parameters then travel over
    UDP, and gradients may lose datagrams. With transport="mpi" they travel over a duplicate of
    `comm`, whole. So they do with transport="shm", through memory that the ranks of one host share.

    Args:
      comm: an mpi4py communicator, of at least 2 ranks.
      dim: d, values in a gradient and in the parameters, 1..2^31 float32 or half as many float64.
      transport: "udp", "mpi", "shm", or "auto": "shm" where that works, else "mpi".
      dtype: of the values, float32 or float64; of float64 wire="float32" stands for its own bits.
      plane: of UDP: "native" (C++), "python", or "auto": native where it was built. May differ by
        rank.
      start_s: how many seconds a rank may come later than the others.
      options: see ``Options``; without UDP timeout_s, f, quorum, patience and give_up_s only. The
        environment may set LOSSYMPI_ADDRESS (this host's address, or a network like 10.0.0.0/8 in
        which it has one) on the server, and, for tests, LOSSYMPI_DROP (share of the datagrams to
        lose on arrival) and LOSSYMPI_DROP_SEED.
    Returns:
      A ``ServerLink`` on rank 0 and a ``WorkerLink`` elsewhere; see ``Topology``.
    Raises:
      ConnectError: arguments are wrong or differ between ranks, a rank does not come or sends what
        nobody asked for, a rank has no socket or route, or datagrams do not get through within
        2 s. Every rank that is there raises it, so none waits for another.
    Cost: at most ten exchanges of small messages with rank 0; over UDP 4 n d bytes on the server,
      8 d on a worker, over MPI 4 (n + 1 + 2 f) d, and 12 d; with shared memory 8 (n + 1) d on
      the host for all. If gradients are taken one by one 4 n d more. In float64 twice as much.
    """
    if hasattr(comm, "Idup"):  # one of MPI's, and not of who has made collectives from it already
        comm = MpiCommunicator.of(comm, start_s, ConnectError)
    if not hasattr(comm, "allgather"):
        raise ConnectError(f"comm is an mpi4py communicator, got {comm!r}. Pass MPI.COMM_WORLD.")
    ranks = Collectives(comm, ConnectError, describe=_describe)
    chosen: list[Plane] = []

    def check() -> _Arguments:
        if transport not in TRANSPORTS:
            known = ", ".join(TRANSPORTS)
            raise ValueError(f"a transport is one of {known}; got {transport!r}.")
        if transport == "udp":
            chosen.append(choose_plane(plane))
        elif plane != "auto":
            raise ValueError(
                f"a plane is of UDP, transport={transport!r} has none; got {plane!r}. Leave it out."
            )
        return _arguments(comm.size, _floats(dim, dtype), transport, dtype, options)

    arguments = ranks.together(check)
    terms = {"dim": dim, "dtype": np.dtype(dtype).name, "transport": transport}
    ranks.agree("arguments", terms | asdict(arguments.options))
    return of_dtype(_join(comm, ranks, arguments, chosen), dtype)


def _join(
    comm: Any, ranks: Collectives, arguments: _Arguments, chosen: list[Plane]
) -> ServerLink | WorkerLink:
    transport = arguments.transport
    hosts = ranks.each(lambda: _host(chosen[0] if chosen else None), _Host)
    _check_memory(hosts, arguments)
    if transport == "udp":
        return _join_udp(comm, ranks, arguments, hosts, chosen[0])
    if transport == "shm":
        return _join_shared(comm, ranks, arguments, hosts)
    if transport == "auto" and not _why_not_shared(hosts):
        try:
            return _join_shared(comm, ranks, arguments, hosts)
        except ConnectError:  # on every rank
            pass
    return _join_mpi(comm, ranks, arguments, hosts)


def _describe(failures: Mapping[int, str]) -> str:
    """Returns such as "rank 1, 2 cannot connect: no room"."""
    return describe_failures(failures, " cannot connect")


def _join_shared(
    comm: Any, ranks: Collectives, arguments: _Arguments, hosts: list[_Host]
) -> ServerLink | WorkerLink:
    dim, options = arguments.dim, arguments.options
    reason = _why_not_shared(hosts)
    if reason:
        raise ConnectError(f"transport='shm' is for ranks that share memory, and {reason}.")
    from lossympi.shm_link import Files, SharedServer, SharedWorker  # of Linux

    topology = Topology.of_size(comm.size)
    is_server = topology.is_server(comm.rank)
    server: list[SharedServer] = []

    def make() -> Files | None:
        if not is_server:
            return None
        server.append(SharedServer(topology.workers, dim, options))
        return server[0].files

    files = ranks.each(make, Files | None)[ROOT]

    def join() -> ServerLink | WorkerLink:
        if is_server:
            return server[0]
        assert files is not None
        return SharedWorker(files, topology.row_of(comm.rank), dim, options)

    try:
        return ranks.together(join)
    finally:
        if server:
            server[0].hide()


def _why_not_shared(hosts: list[_Host]) -> str:
    """Returns why ranks cannot share memory, "" where nothing is known against it."""
    if not all(host.has_core for host in hosts):
        return f"the native code is missing on a rank: {why_not_native() or 'see its installation'}"
    if len({(host.name, host.network) for host in hosts}) > 1:
        return f"there are several hosts: {', '.join(sorted({host.name for host in hosts}))}"
    return ""


def _join_mpi(
    comm: Any, ranks: Collectives, arguments: _Arguments, hosts: list[_Host]
) -> ServerLink | WorkerLink:
    dim, options = arguments.dim, arguments.options
    topology = Topology.of_size(comm.size)
    ranks.together(_check_threads)
    own_comm = comm.Dup()  # the link's messages meet no others
    bell = Doorbell()
    names = ranks.each(lambda: bell.name, bytes)
    near = [
        name if host.network == hosts[comm.rank].network and _BELL.fullmatch(name) else b""
        for name, host in zip(names, hosts, strict=True)
    ]
    bell.meet(near, waits_for=topology.peers_of(comm.rank))

    def make() -> ServerLink | WorkerLink:
        from lossympi.mpi_link import MpiServer, MpiWorker  # which start MPI

        if topology.is_server(comm.rank):
            return MpiServer(own_comm, topology, dim, options, bell)
        return MpiWorker(own_comm, topology, dim, options, bell)

    return ranks.together(make)


def _check_threads() -> None:
    MPI = mpi.import_mpi()
    if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        raise ValueError(
            "transport='mpi' calls MPI from whichever thread calls the link, one at a time, and "
            "MPI was started for a single one. Leave mpi4py.rc.threads and thread_level as they "
            "are, or set the latter to 'serialized'."
        )


def _join_udp(
    comm: Any, ranks: Collectives, arguments: _Arguments, hosts: list[_Host], chosen: Plane
) -> ServerLink | WorkerLink:
    dim, options = arguments.dim, arguments.options
    topology = Topology.of_size(comm.size)
    is_server = topology.is_server(comm.rank)
    session = ranks.bcast(secrets.randbits(32), int)
    cipher = _cipher(options, [host.has_aes for host in hosts])
    all_local = len({host.network for host in hosts}) == 1

    server = ranks.each(lambda: _server_address(all_local) if is_server else "", str)[ROOT]
    keys = b"", b""
    made: list[Endpoint] = []
    links: list[UdpServer | UdpWorker] = []

    def open_door() -> _Door:
        nonlocal keys
        if cipher != "none":
            keys = chosen.key_pair()
        address = server if is_server else addresses.address_towards(server)
        drop, drop_seed = _losses(os.environ)
        setup = Setup(
            rank=comm.rank,
            num_workers=topology.workers,
            address=address,
            session=session,
            dim=dim,
            wire=options.wire,
            mtu=options.mtu,
            cipher=cipher,
            drop=drop,
            drop_seed=drop_seed,
            receive_buffer=_receive_buffer(dim * len(topology.peers_of(comm.rank))),
        )
        made.append(chosen.Endpoint(setup))
        return _Door(address, made[0].port, keys[0])

    try:
        doors = ranks.each(open_door, _Door)
        _check_doors(doors, server, 0 if cipher == "none" else _PUBLIC_KEY_BYTES)
        endpoint = made[0]

        def try_path() -> dict[int, int]:
            for rank in topology.peers_of(comm.rank):
                door = doors[rank]
                send_key, receive_key = b"", b""
                if is_server:
                    addresses.address_towards(door.address)  # raises for one of a broadcast
                if cipher != "none":
                    public_key, secret_key = keys
                    worker = rank if is_server else comm.rank
                    receive_key, send_key = (
                        bound_key(key, session, worker)
                        for key in chosen.session_keys(
                            secret_key, public_key, door.public_key, is_server
                        )
                    )
                endpoint.add_peer(rank, door.address, door.port, send_key, receive_key)
            endpoint.start()
            echoed = endpoint.probe(PROBE_S)
            # In here, so that a rank without the memory for it does not leave the others waiting.
            if is_server:
                rate_bps = options.rate_bps or _rate_of(server)
                links.append(UdpServer(endpoint, topology.workers, dim, rate_bps, options))
            else:
                row = topology.row_of(comm.rank)
                links.append(UdpWorker(endpoint, row, dim, options))
            return echoed

        echoed = ranks.each(try_path, dict[int, int])
        _check_path(topology, echoed, hosts, doors, options.mtu)
    except BaseException:
        for each in made:
            each.close()
        raise
    return links[0]


def bound_key(key: bytes, session: int, worker: int) -> bytes:
    """Returns the key of one direction between the server and a worker, 32 bytes (``WIRE.md``).

    Args:
      key: of that direction, as ``session_keys`` returns it.
      session: of the job.
      worker: its rank. So no two ranks have the same keys, whatever public keys they sent.
    """
    what = b"lossympi1" + session.to_bytes(4, "little") + worker.to_bytes(2, "little")
    return hashlib.blake2b(what, key=key, digest_size=32).digest()


def _check_doors(doors: list[_Door], server: str, key_bytes: int) -> None:
    """Raises unless each rank's door can be its own: the server sends there without being asked."""
    failures = {}
    count = Counter((door.address, door.port) for door in doors)
    keys = Counter(door.public_key for door in doors)
    for rank, door in enumerate(doors):
        try:
            addresses.check_door(door.address, door.port, server)
        except ValueError as error:
            failures[rank] = f"{error}"
        if count[door.address, door.port] > 1:
            failures[rank] = f"{door.address}:{door.port} is another rank's too"
        if len(door.public_key) != key_bytes:
            failures[rank] = f"a public key has {key_bytes} bytes, got {len(door.public_key)}"
        elif key_bytes and keys[door.public_key] > 1:
            failures[rank] = "its public key is another rank's too: each draws one of its own"
    if failures:
        raise ConnectError(_describe(failures))


def _floats(dim: Any, dtype: DTypeLike) -> int:
    """Returns how many floats a vector has."""
    each = floats_per_value(dtype)
    if isinstance(dim, Integral) and not isinstance(dim, bool) and 1 <= int(dim) <= 2**31 // each:
        return int(dim) * each
    most = "2^31" if each == 1 else "2^30"
    raise ValueError(f"dim is 1..{most} floats, got {dim!r}. Pass the model's size.")


def _arguments(
    size: int, dim: int, transport: str, dtype: DTypeLike, options: dict[str, Any]
) -> _Arguments:
    if size < 2:
        raise ValueError(mpi.why_alone(os.environ, mpi.loaded_library()))
    checked = Options.of(options) if transport == "udp" else Options.of_lossless(options)
    if checked.wire != "float32" and floats_per_value(dtype) > 1:
        raise ValueError(
            f"wire={checked.wire!r} halves float32, and {np.dtype(dtype).name} is to travel. Leave "
            "it out, or train in float32."
        )
    n = Topology.of_size(size).workers
    if checked.quorum is not None and checked.quorum > n:
        raise ValueError(f"quorum is at most n = {n} workers, got {checked.quorum}.")
    if checked.f is not None and checked.f >= n:
        raise ValueError(f"f is below n = {n} workers, got {checked.f}.")
    return _Arguments(dim, transport, checked)


def _host(plane: Plane | None) -> _Host:
    """Looks around; which ciphers there are matters where there is a plane."""
    return _Host(
        name=socket.gethostname(),
        network=addresses.network_of_this_process(),
        free_bytes=free_bytes(),
        has_core=not why_not_native(),
        has_aes=plane is not None and plane.has_aes256gcm(),
    )


def _check_memory(hosts: list[_Host], arguments: _Arguments) -> None:
    """Raises if the ranks of a host would allocate more than it has: one would be killed for it."""
    topology, dim = Topology.of_size(len(hosts)), arguments.dim
    n = topology.workers
    stopped = tolerated(arguments.options.f, n)  # which keep a gradient and a model each
    on_server, on_worker = {  # vectors
        "udp": (n, 2),
        "mpi": (n + 1 + 2 * stopped, 3),
    }.get(arguments.transport, (2 * (n + 1), 2))
    wanted: dict[str, int] = {}
    for rank, host in enumerate(hosts):
        vectors = on_server if topology.is_server(rank) else on_worker
        wanted[host.name] = wanted.get(host.name, 0) + 4 * dim * vectors
    for name, wanted_bytes in wanted.items():
        free = [h.free_bytes for h in hosts if h.name == name and h.free_bytes is not None]
        if free and wanted_bytes > min(free):
            raise ConnectError(
                f"the ranks on {name} need {wanted_bytes / 2**30:.1f} GiB for vectors of {dim} "
                f"floats, and {min(free) / 2**30:.1f} GiB are free. Start fewer ranks there, or "
                "train a smaller model."
            )


def _cipher(options: Options, has_aes: list[bool]) -> str:
    if options.auth == "none":
        return "none"
    return "aes256gcm" if all(has_aes) else "chacha20poly1305"


def _server_address(all_local: bool) -> str:
    chosen = os.environ.get("LOSSYMPI_ADDRESS") or None
    try:
        return addresses.server_address(chosen, all_local)
    except ValueError as error:
        if chosen is None:
            raise
        raise ValueError(f"LOSSYMPI_ADDRESS={chosen!r}: {error}") from None


def _losses(environment: Mapping[str, str]) -> tuple[float, int]:
    """Returns what share of the datagrams to lose, and the seed of that."""
    share, seed = environment.get("LOSSYMPI_DROP"), environment.get("LOSSYMPI_DROP_SEED")
    try:
        drop = float(share or 0)
    except ValueError:
        drop = float("nan")
    if not 0 <= drop <= 1:
        raise ValueError(
            f"LOSSYMPI_DROP={share!r}: the share of the datagrams to lose is in 0..1. "
            "Set it to 0.1 for 10%, or unset it."
        )
    try:
        drop_seed = int(seed or 0)
    except ValueError:
        drop_seed = -1
    if not 0 <= drop_seed < 2**64:
        raise ValueError(
            f"LOSSYMPI_DROP_SEED={seed!r}: the seed of the losses is a whole number in "
            "0..2^64-1. Set it to one, or unset it."
        )
    return drop, drop_seed


def _check_path(
    topology: Topology,
    echoed: list[dict[int, int]],
    hosts: list[_Host],
    doors: list[_Door],
    mtu: int,
) -> None:
    """Raises unless the longest datagram came back, on every path and from both its ends."""
    words = []
    [server] = topology.server_ranks
    for rank, sizes in enumerate(echoed):
        if set(sizes) != set(topology.peers_of(rank)):
            raise ConnectError(_describe({rank: f"it tells of paths to ranks {sorted(sizes)}"}))
    for worker in topology.worker_ranks:
        longest = min(echoed[server][worker], echoed[worker][server])
        where = (
            f"worker {topology.row_of(worker)} ({hosts[worker].name}, {doors[worker].address}:"
            f"{doors[worker].port}) and the server ({hosts[server].name}, "
            f"{doors[server].address}:{doors[server].port})"
        )
        if longest == 0:
            words.append(
                f"no UDP datagram came back between {where} within {PROBE_S:g} s: a firewall may "
                "block UDP, or LOSSYMPI_ADDRESS should name another network of the server"
            )
        elif longest < mtu:
            words.append(
                f"datagrams of {mtu} bytes do not get through between {where}, short ones do: "
                "pass a lower mtu"
            )
    if words:
        raise ConnectError("; ".join(words))


def _rate_of(address: str) -> float:
    speed = addresses.device_fact(addresses.device_of(address), "speed")
    return 0.9e6 * (speed or _UNKNOWN_SPEED_MBPS)


def _receive_buffer(floats: int) -> int:
    """Returns bytes that hold all of a round, should this rank not be scheduled while it comes.

    The kernel doubles them, for what it needs beside a datagram of 1500 bytes.
    """
    return min(max(32 << 20, 4 * floats), 512 << 20)
