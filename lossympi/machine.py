"""What a host offers to a link, as facts; ``doctor`` judges them.

Every function takes what it cannot own: the root of /proc and /sys, or the text a tool wrote.
None raises for what is missing: that is a finding.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from pathlib import Path

from lossympi import addresses, mpi
from lossympi.backend import choose_plane, why_not_native
from lossympi.endpoint import Setup

ROOT = Path("/")
RECEIVE_BUFFER = Setup.receive_buffer
SEND_BUFFER = 4 << 20  # as udp_socket.cc asks
ECHO_BYTES = 1472  # of UDP payload: a packet of 1500
TIMEOUT_S = 20.0  # a first import from a cold network disk is slow
ECHO_TIMEOUT_S = 1.0

_CLOCKS = "sys/devices/system/clocksource/clocksource0"
# Linux's numbers, which Python's socket module lacks in part.
_IP_MTU_DISCOVER, _IP_PMTUDISC_DO = 10, 2
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_UDP_SEGMENT, _UDP_GRO = 103, 104
_OFFLOADS = ("tx-udp-segmentation", "generic-receive-offload")


@dataclass(frozen=True)
class Device:
    """A network device.

    Attributes:
      name: such as eth0.
      address: its IPv4 address.
      mtu: bytes of an IP packet, None if not told.
      speed_mbps: None if not told, as of a virtual device.
      offloads: "on", "off" or "off [fixed]" of some; empty without ethtool.
    """

    name: str
    address: str
    mtu: int | None = None
    speed_mbps: int | None = None
    offloads: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Buffer:
    """How much the kernel keeps for a socket.

    Attributes:
      asked: bytes that a link asks for.
      granted: bytes that it gets.
      limit: net.core.rmem_max or wmem_max, None if not told.
      forced: whether this process may exceed the limit.
    """

    asked: int
    granted: int
    limit: int | None
    forced: bool


@dataclass(frozen=True)
class Host:
    """What was found. A version is "" where there is nothing, an error is "" where all is well.

    Attributes:
      name: of the host.
      python: version.
      package: version of the distribution that holds this module.
      plane: "native" or "python".
      plane_reason: why it is not the native one.
      has_aes: whether AES-256-GCM is cheap on this processor.
      crypto: the library that makes tags and keys.
      crypto_error: why there are no keys.
      mpi4py: version.
      mpi_library: name and version of what mpi4py loads.
      mpi_error: why it loads nothing.
      mpirun: name and version of what is on PATH, or beside this Python.
      mpirun_path: where.
      has_srun: whether Slurm's launcher is on PATH.
      receive: the socket's buffer for what comes.
      send: for what goes.
      has_gso: whether the kernel cuts one message into datagrams.
      has_gro: whether it joins datagrams into one message.
      devices: with an IPv4 address, the loopback left out.
      echo_s: how long a datagram took to 127.0.0.1 and back, None if it did not come.
      echo_error: why it did not.
      congestion: TCP's congestion control, for comparison.
      clock: the kernel's clock source.
      clocks: those that it could use.
      clock_resolution_s: of CLOCK_MONOTONIC.
      cpus: how many this host has.
      usable_cpus: how many of them this process may run on.
      is_root: whether it runs as root.
      yields: whether Open MPI leaves the CPU to others while it waits.
    """

    name: str
    python: str
    package: str
    plane: str
    plane_reason: str
    has_aes: bool
    crypto: str
    crypto_error: str
    mpi4py: str
    mpi_library: str
    mpi_error: str
    mpirun: str
    mpirun_path: str
    has_srun: bool
    receive: Buffer
    send: Buffer
    has_gso: bool
    has_gro: bool
    devices: tuple[Device, ...]
    echo_s: float | None
    echo_error: str
    congestion: str
    clock: str
    clocks: tuple[str, ...]
    clock_resolution_s: float
    cpus: int
    usable_cpus: int
    is_root: bool
    yields: bool


def inspect_host(library: str | None = None) -> Host:
    """Looks at everything that a link uses on this host; some tenths of a second.

    Args:
      library: the MPI library's version where MPI runs in this process, so that mpirun does not
        matter any more; None to try the library in another process, and to look for mpirun.
    """
    plane_reason = why_not_native()
    has_aes, crypto, crypto_error = try_keys("python" if plane_reason else "native")
    mpi_library, mpi_error = (library, "") if library is not None else try_library()
    mpirun, mpirun_path = ("", "") if library is not None else find_mpirun()
    has_gso, has_gro = try_segmentation()
    echo_s, echo_error = try_echo()
    return Host(
        name=socket.gethostname(),
        python=platform.python_version(),
        package=installed("aggregathor"),
        plane="python" if plane_reason else "native",
        plane_reason=plane_reason,
        has_aes=has_aes,
        crypto=crypto,
        crypto_error=crypto_error,
        mpi4py=installed("mpi4py"),
        mpi_library=mpi_library,
        mpi_error=mpi_error,
        mpirun=mpirun,
        mpirun_path=mpirun_path,
        has_srun=shutil.which("srun") is not None,
        receive=try_buffer(RECEIVE_BUFFER, socket.SO_RCVBUF, _SO_RCVBUFFORCE, "rmem_max"),
        send=try_buffer(SEND_BUFFER, socket.SO_SNDBUF, _SO_SNDBUFFORCE, "wmem_max"),
        has_gso=has_gso,
        has_gro=has_gro,
        devices=read_devices(),
        echo_s=echo_s,
        echo_error=echo_error,
        congestion=read("proc/sys/net/ipv4/tcp_congestion_control"),
        clock=read(f"{_CLOCKS}/current_clocksource"),
        clocks=tuple(read(f"{_CLOCKS}/available_clocksource").split()),
        clock_resolution_s=time.get_clock_info("monotonic").resolution,
        cpus=os.cpu_count() or 1,
        usable_cpus=len(os.sched_getaffinity(0)),
        is_root=os.geteuid() == 0,
        yields=os.environ.get("OMPI_MCA_mpi_yield_when_idle") in ("1", "true"),  # noqa: SIM112
    )


def read(path: str, root: Path = ROOT) -> str:
    """Returns what a file of the kernel's says, "" if it is not there."""
    try:
        return (root / path).read_text().strip()
    except OSError:
        return ""


def read_number(path: str, root: Path = ROOT) -> int | None:
    """Returns the number that a file of the kernel's holds, None if it is not there."""
    said = read(path, root)
    return int(said) if said.isdigit() else None


def free_bytes(root: Path = ROOT) -> int | None:
    """Returns the bytes of memory that programs can still have; None where none are told."""
    for line in read("proc/meminfo", root).splitlines():
        name, _, kib = line.partition(":")
        if name == "MemAvailable":
            return int(kib.split()[0]) << 10
    return None


def read_devices(root: Path = ROOT, own: dict[str, str] | None = None) -> tuple[Device, ...]:
    """Returns the devices that have an address in `own`, the loopback left out."""
    own = addresses.own_addresses() if own is None else own
    return tuple(
        Device(
            name,
            address,
            addresses.device_fact(name, "mtu", root),
            addresses.device_fact(name, "speed", root),
            parse_offloads(run(["ethtool", "-k", name])[0]),
        )
        for name, address in own.items()
        if not address.startswith("127.")
    )


def parse_offloads(said: str) -> dict[str, str]:
    """Returns, of what ``ethtool -k`` wrote, what concerns UDP: "on", "off" or "off [fixed]"."""
    pairs = (line.strip().partition(": ") for line in said.splitlines())
    return {name: value for name, _, value in pairs if name in _OFFLOADS}


def try_buffer(asked: int, option: int, force: int, limit: str, root: Path = ROOT) -> Buffer:
    """Asks for a buffer as a link does: beyond the limit where this process may, else up to it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        forced = True
        try:
            udp.setsockopt(socket.SOL_SOCKET, force, asked)
        except OSError:  # it needs CAP_NET_ADMIN
            forced = False
            udp.setsockopt(socket.SOL_SOCKET, option, asked)
        granted = udp.getsockopt(socket.SOL_SOCKET, option) // 2  # the kernel tells twice as much
    return Buffer(asked, granted, read_number(f"proc/sys/net/core/{limit}", root), forced)


def try_segmentation() -> tuple[bool, bool]:
    """Returns whether the kernel cuts messages into datagrams, and whether it joins them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:

        def accepts(option: int, value: int) -> bool:
            try:
                udp.setsockopt(socket.IPPROTO_UDP, option, value)
            except OSError:
                return False
            return True

        return accepts(_UDP_SEGMENT, ECHO_BYTES), accepts(_UDP_GRO, 1)


def try_echo(address: str = "127.0.0.1") -> tuple[float | None, str]:
    """Sends a datagram of 1472 bytes to another socket of this host and back.

    Returns:
      How long that took, in seconds, and "", or None and why it failed.
    """
    message = os.urandom(ECHO_BYTES)
    try:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there,
        ):
            for udp in (here, there):
                udp.settimeout(ECHO_TIMEOUT_S)
                udp.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
                udp.bind((address, 0))
            begun = time.perf_counter()
            here.sendto(message, there.getsockname())
            came, source = there.recvfrom(2 * ECHO_BYTES)
            there.sendto(came, source)
            back = here.recv(2 * ECHO_BYTES)
            took_s = time.perf_counter() - begun
    except OSError as error:
        return None, str(error)
    return (took_s, "") if back == message else (None, "what came back was not what was sent")


def try_keys(plane: str) -> tuple[bool, str, str]:
    """Returns whether there is AES in hardware, the library of tags and keys, and why no keys."""
    try:
        chosen = choose_plane(plane)
        has_aes = chosen.has_aes256gcm()
        secret_of = [chosen.key_pair() for _ in range(2)]
        (public, secret), (peer, _) = secret_of
        chosen.session_keys(secret, public, peer, True)
    except Exception as error:  # whatever a broken library raises is what is to be told
        return False, "", f"{error}" or type(error).__name__
    if plane == "python":
        return has_aes, f"cryptography {installed('cryptography')}", ""
    return has_aes, library_in(read("proc/self/maps"), "libsodium") or "libsodium", ""


def library_in(maps: str, name: str) -> str:
    """Returns the file name of the library whose name begins so, of those in /proc/PID/maps."""
    paths = (line.split()[-1] for line in maps.splitlines() if name in line)
    return next((Path(path).name for path in paths if Path(path).name.startswith(name)), "")


def try_library() -> tuple[str, str]:
    """Loads the MPI library in another process, without starting MPI: it may abort or hang.

    Returns:
      Its name and version and "", or "" and why it does not load.
    """
    code = (
        "import sys; sys.path[:] = sys.argv[1:]\n"
        "try:\n"
        "    import mpi4py; mpi4py.rc.initialize = mpi4py.rc.finalize = False\n"
        "    from mpi4py import MPI; print(MPI.Get_library_version())\n"
        "except (ImportError, RuntimeError) as error: sys.exit(' '.join(str(error).split()))"
    )
    said, error = run([sys.executable, "-c", code, *sys.path])
    return ("", mpi.no_library(error)) if error else (mpi.short_version(said), "")


def find_mpirun() -> tuple[str, str]:
    """Returns version and path of the mpirun on PATH, or beside this Python; "" without any."""
    path = shutil.which("mpirun") or shutil.which("mpirun", path=sysconfig.get_path("scripts"))
    if path is None:
        return "", ""
    said, error = run([path, "--version"])
    return mpi.short_version(said) or error or "of an unknown version", path


def installed(package: str) -> str:
    """Returns the version of an installed package, "" if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def run(command: list[str]) -> tuple[str, str]:
    """Returns what a command wrote, and what went wrong ("" for nothing)."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return "", f"{command[0]} took longer than {TIMEOUT_S:g} s"
    except OSError as error:
        return "", str(error)
    if done.returncode == 0:
        return done.stdout, ""
    last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "")
    return done.stdout, last.strip() or f"{command[0]} ended with status {done.returncode}"
