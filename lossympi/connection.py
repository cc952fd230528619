"""From MPI ranks to a link: they agree, exchange addresses and keys, and try the path."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeVar

from lossympi import addresses, mpi
from lossympi.doorbell import Doorbell
from lossympi.endpoint import Endpoint, Setup
from lossympi.link import LinkError, ServerLink, WorkerLink
from lossympi.machine import free_bytes
from lossympi.options import Options
from lossympi.planes import Plane, choose_plane, why_not_native
from lossympi.udp import UdpServer, UdpWorker

if TYPE_CHECKING:
    from lossympi.shared import Files

TRANSPORTS = ("udp", "mpi", "shm", "auto")
PROBE_S = 2.0
_UNKNOWN_SPEED_MBPS = 10_000
_T = TypeVar("_T")


class ConnectError(LinkError):
    """The ranks cannot be joined; every rank raises it, with the same words."""


@dataclass(frozen=True)
class _Hello:
    """What every rank tells every other first."""

    host: str
    network: str
    transport: str
    dim: int
    options: Options
    has_aes: bool
    free_bytes: int | None  # of this host's memory
    has_core: bool


@dataclass(frozen=True)
class _Door:
    """Where a rank can be reached, and by which public key."""

    address: str
    port: int
    public_key: bytes


def connect(
    comm: Any, dim: int, *, transport: str = "udp", plane: str = "auto", **options: Any
) -> ServerLink | WorkerLink:
    """Joins the ranks of an MPI communicator: rank 0 is the server, the others are workers.

    Collective: every rank calls it, with the same arguments. With transport="udp" MPI is used in
    here only, from the calling thread; gradients and parameters then travel over UDP, and gradients
    may lose datagrams. With transport="mpi" they travel over a duplicate of `comm`, whole. So they
    do with transport="shm", through memory that the ranks of one host share.

    Args:
      comm: an mpi4py communicator, of at least 2 ranks.
      dim: d, floats in a gradient and in the parameters, 1..2^31.
      transport: "udp", "mpi", "shm", or "auto": "shm" where that works, else "mpi".
      plane: of UDP: "native" (C++), "python", or "auto": native where it was built. May differ by
        rank.
      options: see ``Options``; without UDP timeout_s, quorum, patience and give_up_s only. The
        environment may set LOSSYMPI_ADDRESS (this host's address, or a network like 10.0.0.0/8 in
        which it has one) on the server, and, for tests, LOSSYMPI_DROP (share of the datagrams to
        lose on arrival) and LOSSYMPI_DROP_SEED.
    Returns:
      A ``ServerLink`` on rank 0 and a ``WorkerLink`` elsewhere; worker w is rank w + 1.
    Raises:
      ConnectError: arguments are wrong or differ between ranks, a rank has no socket or route, or
        datagrams do not get through within 2 s. Every rank raises it, so none waits for another.
    Cost: four MPI allgathers and a broadcast; over UDP 4 n d bytes on the server, 8 d on a worker,
      over MPI 4 (n + 1) d, and 12 d; with shared memory 8 (n + 1) d on the host for all.
    """
    if not hasattr(comm, "allgather"):
        raise ConnectError(f"comm is an mpi4py communicator, got {comm!r}. Pass MPI.COMM_WORLD.")
    together = _Together(comm)
    chosen: list[Plane] = []

    def greet() -> _Hello:
        if transport not in TRANSPORTS:
            known = ", ".join(TRANSPORTS)
            raise ValueError(f"a transport is one of {known}; got {transport!r}.")
        has_aes = False
        if transport == "udp":
            chosen.append(choose_plane(plane))
            has_aes = chosen[0].has_aes256gcm()
        elif plane != "auto":
            raise ValueError(
                f"a plane is of UDP, transport={transport!r} has none; got {plane!r}. Leave it out."
            )
        return _hello(comm.size, _dim(dim), transport, options, has_aes)

    hellos = together.each(greet)
    _check_same(hellos)
    _check_memory(hellos)
    if transport == "udp":
        return _join_udp(comm, together, hellos, chosen[0])
    if transport == "shm":
        return _join_shared(comm, together, hellos)
    if transport == "auto" and not _why_not_shared(hellos):
        try:
            return _join_shared(comm, together, hellos)
        except ConnectError:  # on every rank
            pass
    return _join_mpi(comm, together, hellos)


def _join_shared(comm: Any, together: _Together, hellos: list[_Hello]) -> ServerLink | WorkerLink:
    dim, options = hellos[comm.rank].dim, hellos[comm.rank].options
    reason = _why_not_shared(hellos)
    if reason:
        raise ConnectError(f"transport='shm' is for ranks that share memory, and {reason}.")
    from lossympi.shared import SharedServer, SharedWorker  # of Linux

    server: list[SharedServer] = []

    def make() -> Files | None:
        if comm.rank > 0:
            return None
        server.append(SharedServer(comm.size - 1, dim, options))
        return server[0].files

    files = together.each(make)[0]
    workers: list[SharedWorker] = []

    def join() -> None:
        if comm.rank > 0:
            assert files is not None
            workers.append(SharedWorker(files, comm.rank - 1, dim, options))

    try:
        together.each(join)
    finally:
        if server:
            server[0].hide()
    return server[0] if server else workers[0]


def _why_not_shared(hellos: list[_Hello]) -> str:
    """Returns why ranks cannot share memory, "" where nothing is known against it."""
    if not all(hello.has_core for hello in hellos):
        return f"the native code is missing on a rank: {why_not_native() or 'see its installation'}"
    if len({(hello.host, hello.network) for hello in hellos}) > 1:
        return f"there are several hosts: {', '.join(sorted({hello.host for hello in hellos}))}"
    return ""


def _join_mpi(comm: Any, together: _Together, hellos: list[_Hello]) -> ServerLink | WorkerLink:
    hello = hellos[comm.rank]
    together.each(_check_threads)
    own_comm = comm.Dup()  # the link's messages meet no others
    bell = Doorbell()
    names = together.each(lambda: bell.name)
    near = [
        name if other.network == hello.network else b""
        for name, other in zip(names, hellos, strict=True)
    ]
    bell.meet(near, waits_for=[0] if comm.rank else range(1, comm.size))

    def make() -> ServerLink | WorkerLink:
        from lossympi.lossless import MpiServer, MpiWorker  # which start MPI

        if comm.rank == 0:
            return MpiServer(own_comm, comm.size - 1, hello.dim, hello.options, bell)
        return MpiWorker(own_comm, comm.rank - 1, hello.dim, hello.options, bell)

    made: list[ServerLink | WorkerLink] = []
    together.each(lambda: made.append(make()))
    return made[0]


def _check_threads() -> None:
    MPI = mpi.import_mpi()
    if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        raise ValueError(
            "transport='mpi' calls MPI from whichever thread calls the link, one at a time, and "
            "MPI was started for a single one. Leave mpi4py.rc.threads and thread_level as they "
            "are, or set the latter to 'serialized'."
        )


def _join_udp(
    comm: Any, together: _Together, hellos: list[_Hello], chosen: Plane
) -> ServerLink | WorkerLink:
    mine = hellos[comm.rank]
    dim = mine.dim
    session = comm.bcast(secrets.randbits(32) if comm.rank == 0 else None)
    cipher = _cipher(mine.options, [hello.has_aes for hello in hellos])
    all_local = len({hello.network for hello in hellos}) == 1

    server = together.each(lambda: _server_address(comm.rank, all_local))[0]
    keys = b"", b""
    made: list[Endpoint] = []
    links: list[UdpServer | UdpWorker] = []

    def open_door() -> _Door:
        nonlocal keys
        if cipher != "none":
            keys = chosen.key_pair()
        address = server if comm.rank == 0 else addresses.address_towards(server)
        drop, drop_seed = _losses(os.environ)
        setup = Setup(
            rank=comm.rank,
            num_workers=comm.size - 1,
            address=address,
            session=session,
            dim=dim,
            wire=mine.options.wire,
            mtu=mine.options.mtu,
            cipher=cipher,
            drop=drop,
            drop_seed=drop_seed,
            receive_buffer=_receive_buffer(dim * (comm.size - 1 if comm.rank == 0 else 1)),
        )
        made.append(chosen.Endpoint(setup))
        return _Door(address, made[0].port, keys[0])

    try:
        doors = together.each(open_door)
        endpoint = made[0]

        def try_path() -> dict[int, int]:
            for rank in range(1, comm.size) if comm.rank == 0 else [0]:
                door = doors[rank]
                send_key, receive_key = b"", b""
                if cipher != "none":
                    public_key, secret_key = keys
                    receive_key, send_key = chosen.session_keys(
                        secret_key, public_key, door.public_key, comm.rank == 0
                    )
                endpoint.add_peer(rank, door.address, door.port, send_key, receive_key)
            endpoint.start()
            echoed = endpoint.probe(PROBE_S)
            # In here, so that a rank without the memory for it does not leave the others waiting.
            if comm.rank > 0:
                links.append(UdpWorker(endpoint, comm.rank - 1, dim, mine.options))
            else:
                rate_bps = mine.options.rate_bps or _rate_of(server)
                links.append(UdpServer(endpoint, comm.size - 1, dim, rate_bps, mine.options))
            return echoed

        echoed = together.each(try_path)
        _check_path(echoed, hellos, doors, mine.options.mtu)
    except BaseException:
        for each in made:
            each.close()
        raise
    return links[0]


class _Together:
    """Runs a step on every rank, so that the failure of one is the failure of all."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm

    def each(self, step: Callable[[], _T]) -> list[_T]:
        """Returns what the step gave on each rank.

        Raises:
          ConnectError: it failed somewhere.
        """
        result: _T | None = None
        error = ""
        try:
            result = step()
        except Exception as caught:  # whatever it is, the other ranks must hear of it
            error = f"{caught}" or type(caught).__name__
        everyones = self._comm.allgather((result, error))
        failed = {rank: error for rank, (_, error) in enumerate(everyones) if error}
        if failed:
            words = sorted(set(failed.values()))
            ranks = ", ".join(map(str, failed))
            raise ConnectError(f"rank {ranks} cannot connect: {' / '.join(words)}")
        return [result for result, _ in everyones]


def _dim(dim: Any) -> int:
    if isinstance(dim, Integral) and not isinstance(dim, bool) and 1 <= int(dim) <= 2**31:
        return int(dim)
    raise ValueError(f"dim is 1..2^31 floats, got {dim!r}. Pass the model's size.")


def _hello(size: int, dim: int, transport: str, options: dict[str, Any], has_aes: bool) -> _Hello:
    if size < 2:
        raise ValueError(mpi.why_alone(os.environ, mpi.loaded_library()))
    checked = Options.of(options) if transport == "udp" else Options.of_lossless(options)
    if checked.quorum is not None and checked.quorum > size - 1:
        raise ValueError(f"quorum is at most n = {size - 1} workers, got {checked.quorum}.")
    network = addresses.network_of_this_process()
    host = socket.gethostname()
    has_core = not why_not_native()
    return _Hello(host, network, transport, dim, checked, has_aes, free_bytes(), has_core)


def _check_same(hellos: list[_Hello]) -> None:
    first = hellos[0]
    for rank, other in enumerate(hellos):
        differences = first.options.differences(other.options)
        for name in ("dim", "transport"):
            if getattr(first, name) != getattr(other, name):
                differences[name] = getattr(first, name), getattr(other, name)
        if differences:
            words = ", ".join(f"{k}={a!r} and {k}={b!r}" for k, (a, b) in differences.items())
            raise ConnectError(
                f"all ranks must pass the same; rank 0 and rank {rank} passed {words}. "
                "Do all hosts run the same script and version?"
            )


def _check_memory(hellos: list[_Hello]) -> None:
    """Raises if the ranks of a host would allocate more than it has: one would be killed for it."""
    wanted: dict[str, int] = {}
    for rank, hello in enumerate(hellos):
        n = len(hellos) - 1
        on_server, on_worker = {
            "udp": (n, 2),
            "mpi": (n + 1, 3),
        }.get(hello.transport, (2 * (n + 1), 2))
        floats = hello.dim * (on_server if rank == 0 else on_worker)
        wanted[hello.host] = wanted.get(hello.host, 0) + 4 * floats
    for host, wanted_bytes in wanted.items():
        free = [h.free_bytes for h in hellos if h.host == host and h.free_bytes is not None]
        if free and wanted_bytes > min(free):
            raise ConnectError(
                f"the ranks on {host} need {wanted_bytes / 2**30:.1f} GiB for vectors of "
                f"{hellos[0].dim} floats, and {min(free) / 2**30:.1f} GiB are free. "
                "Start fewer ranks there, or train a smaller model."
            )


def _cipher(options: Options, has_aes: list[bool]) -> str:
    if options.auth == "none":
        return "none"
    return "aes256gcm" if all(has_aes) else "chacha20poly1305"


def _server_address(rank: int, all_local: bool) -> str:
    if rank > 0:
        return ""
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
    echoed: list[dict[int, int]], hellos: list[_Hello], doors: list[_Door], mtu: int
) -> None:
    """Raises unless the longest datagram came back, on every path and from both its ends."""
    words = []
    for worker in range(1, len(echoed)):
        longest = min(echoed[0][worker], echoed[worker][0])
        where = (
            f"worker {worker - 1} ({hellos[worker].host}, {doors[worker].address}:"
            f"{doors[worker].port}) and the server ({hellos[0].host}, {doors[0].address}:"
            f"{doors[0].port})"
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
