"""Times LossyMPI against MPI and TCP: mpirun -n 5 python -m lossympi.bench --drop=0.1."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mpi4py import MPI

from lossympi import ConnectError
from lossympi.bench.peers import measure_mpi, measure_tcp
from lossympi.bench.report import as_text, describe_machine
from lossympi.bench.udp import collectives_of, measure_udp
from lossympi.topology import ROOT, Topology

_MEASURES = {"udp": measure_udp, "tcp": measure_tcp, "mpi": measure_mpi}  # a stuck MPI stays stuck


class _Parser(argparse.ArgumentParser):
    """Speaks on rank 0 only."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if MPI.COMM_WORLD.rank == ROOT:
            super()._print_message(message, file)


def main() -> int:
    """Measures on all ranks; prints and writes on rank 0; returns the exit status."""
    arguments = _parse()
    comm = MPI.COMM_WORLD
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "date": datetime.date.today().isoformat(),
        "command": _command(comm.size),
        "workers": Topology.of_size(comm.size).workers,
        "hosts": collectives_of(comm).allgather(socket.gethostname(), str),
        "options": {k: v for k, v in vars(arguments).items() if k != "json"},
    }
    stuck = False
    for name, measure in _MEASURES.items():
        if name in arguments.only:
            try:
                with _progress(name, arguments.rounds, comm.rank) as tell:
                    result[name] = measure(comm, arguments, tell)
            except ConnectError as error:  # every rank has it
                return _fail(str(error))
            stuck = stuck or (name == "mpi" and result[name]["too_late"])
    if comm.rank == ROOT:
        sys.stdout.write(as_text(result))
        sys.stdout.flush()
        if arguments.json:
            arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    if stuck:  # an operation that was begun cannot be called off, and the end would wait for it
        if comm.rank != ROOT:
            time.sleep(10)  # rank 0 still reports what it measured, and then ends us too
        comm.Abort(3)
    return 0


def _parse() -> argparse.Namespace:
    parser = _Parser(prog="python -m lossympi.bench", description=__doc__)
    add = parser.add_argument
    add("--floats", type=int, default=1_750_000, help="in a vector (%(default)s)")
    add("--rounds", type=int, default=30, help="(%(default)s)")
    add("--drop", type=float, default=0.0, help="share of LossyMPI's datagrams lost on arrival")
    add("--json", type=Path, metavar="FILE", help="write all samples there")
    add("--auth", default="aead", help="aead or none (%(default)s)")
    add("--rate-bps", type=float, help="of the server (nine tenths of its card's speed)")
    add("--timeout", type=float, default=2.0, help="cap of t_B, seconds (%(default)s)")
    add("--max-loss", type=float, default=1.0, help="share that may stay lost (%(default)s)")
    add("--wire", default="float32", help="float32, float16 or bfloat16 (%(default)s)")
    add("--plane", default="auto", help="native, python or auto (%(default)s)")
    add("--mtu", type=int, default=1500, help="bytes (%(default)s)")
    add("--only", default="udp,mpi,tcp", metavar="LIST", help="of %(default)s")
    add("--limit", type=float, default=60.0, help="seconds for each of MPI and TCP (%(default)s)")
    add("--gil", action="store_true", help="the server's process runs pure Python all the time")
    add("--silent", action="store_true", help="the last worker neither sends nor receives")
    add("--quick", action="store_true", help="few rounds of little: does it work?")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.floats, arguments.rounds = 35_200, 5
    arguments.only = arguments.only.split(",")
    unknown = sorted(set(arguments.only) - set(_MEASURES))
    if unknown:
        parser.error(f"--only lists some of {', '.join(_MEASURES)}; got {', '.join(unknown)}")
    if arguments.rounds < 1:
        parser.error(f"--rounds is at least 1, got {arguments.rounds}")
    if not 1 <= arguments.floats <= 2**31:
        parser.error(f"--floats is 1..2^31, got {arguments.floats}")
    if not 0 <= arguments.drop < 1:
        parser.error(f"--drop is a share in 0..1, got {arguments.drop}; pass 0.1 for 10%")
    if not arguments.limit > 0:
        parser.error(f"--limit is above 0 s, got {arguments.limit}")
    if arguments.json and not arguments.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no folder {arguments.json.absolute().parent}; make it")
    size = MPI.COMM_WORLD.size
    if size < 2 + arguments.silent:
        needed = "2 workers, one of them silent" if arguments.silent else "a worker"
        parser.error(
            f"a server and {needed} are needed, and MPI started {size} rank"
            f"{'s' * (size > 1)}: mpirun -n 5 python -m lossympi.bench"
        )
    return arguments


def _command(size: int) -> str:
    return shlex.join(["mpirun", "-n", str(size), "python", "-m", "lossympi.bench", *sys.argv[1:]])


def _fail(words: str) -> int:
    if MPI.COMM_WORLD.rank == ROOT:
        sys.stderr.write(f"lossympi.bench: error: {words}\n")
    return 2


@contextlib.contextmanager
def _progress(name: str, rounds: int, rank: int) -> Iterator[Callable[[int], None]]:
    """Gives what to call after each round: it moves a line, on rank 0 and on a terminal only."""
    with contextlib.ExitStack() as stack:
        try:  # mpirun's own: the streams of a rank tell nothing about it
            terminal = stack.enter_context(open("/dev/tty", "w")) if rank == ROOT else None
        except OSError:
            terminal = None
        if terminal is None:
            yield lambda done: None
            return
        from rich.console import Console
        from rich.progress import Progress

        bar = stack.enter_context(Progress(console=Console(file=terminal), transient=True))
        task = bar.add_task(name, total=rounds)
        yield lambda done: bar.update(task, completed=done)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    if status:  # all ranks have it
        MPI.Finalize()
        os._exit(status)
