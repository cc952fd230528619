"""``mpirun -n 5 python -m experiments.arrival_rate``: updates/s of ``async`` beside ``average``.

Real ranks on one host, over MPI: rank 0 is the server, the others compute, which here is to
multiply matrices, and send a gradient of d values. In a round of ``average`` all n workers compute
a gradient each, so its steps/s times n are compared with the updates/s of ``async``; first with
equal workers, then with one that computes ten times as much. Both take turns; figures are medians.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aggregathor.errors import UserError
from experiments.command import import_tensorflow, run_command
from experiments.goals import HEADER, Goal
from experiments.machine import describe_machine
from experiments.measuring import write_report

DIMS = (90_000, 1_756_426)
SLOW = 10  # times as much work
_SIDE = 256  # of the matrices
_RATE = np.float32(1e-6)
# slow: (must, stretch)
GOALS = {False: (1.0, 1.2), True: (3.0, 3.6)}


class Rate(NamedTuple):
    """Gradients that were used a second, medians; and the median of the ratios turn by turn."""

    dim: int
    slow: bool
    average: float
    asynchronous: float
    ratio: float


def serve(link: Any, protocol: str, seconds: float) -> float:
    """Server: trains for so long after a first step; returns the gradients used a second."""
    from aggregathor.protocols.aggregation import Aggregation
    from aggregathor.protocols.arrivals import ArrivalsServer
    from aggregathor.protocols.plain import Plain
    from aggregathor.protocols.rounds import RoundsServer
    from aggregathor.protocols.server import ServerHalf
    from aggregathor.protocols.setting import Setting

    params_d, step_d = np.zeros((2, link.dim), np.float32)
    half: ServerHalf
    if protocol == "async":
        half, used = ArrivalsServer(link, Plain(), lambda: params_d), 1
    else:
        aggregation = Aggregation(Setting(num_workers=link.num_workers), link.dim)
        half, used = RoundsServer(link, aggregation, lambda: params_d), link.num_workers
    steps, begun_s = 0, 0.0
    while not steps or time.perf_counter() < begun_s + seconds:
        grad_d = half.aggregate().grad_d
        assert grad_d is not None
        params_d -= np.multiply(grad_d, _RATE, out=step_d)
        half.publish(params_d)
        begun_s = begun_s or time.perf_counter()
        steps += 1
    rate = used * (steps - 1) / (time.perf_counter() - begun_s)
    half.close()
    return rate


def work(link: Any, matrices: int) -> None:
    """Worker: computes and sends until the server ends."""
    from aggregathor.protocols.worker import WorkerHalf
    from lossympi import LinkError

    half = WorkerHalf(link)
    grad_d = np.ones(link.dim, np.float32)
    factor = np.ones((_SIDE, _SIDE), np.float32) / _SIDE
    try:
        while True:
            product = factor
            for _ in range(matrices):
                product = product @ factor
            grad_d[0] = product[0, 0]
            half.exchange(grad_d)
    except LinkError:
        half.close()


def measure(comm: Any, dim: int, slow: bool, args: argparse.Namespace) -> Rate:
    """Trains in turn by both; collective. The rates are the server's."""
    import lossympi

    rates: dict[str, list[float]] = {"average": [], "async": []}
    is_slow = slow and comm.rank == comm.size - 1
    for _ in range(args.turns):
        for protocol, found in rates.items():
            link = lossympi.connect(comm.Dup(), dim, transport="mpi", timeout_s=30.0)
            if comm.rank == 0:
                found.append(serve(link, protocol, args.seconds))
            else:
                work(link, args.matrices * (SLOW if is_slow else 1))
            comm.Barrier()
    if comm.rank:
        return Rate(dim, slow, 0.0, 0.0, 0.0)
    average, asynchronous = (np.array(each) for each in rates.values())
    medians = (np.median(average), np.median(asynchronous), np.median(asynchronous / average))
    return Rate(dim, slow, *map(float, medians))


def report(rates: list[Rate], n: int, command: str) -> str:
    """Returns the tables as Markdown."""
    lines = [
        f"`{command}`, {describe_machine()}, {datetime.date.today().isoformat()}.",
        "",
        f"n={n} workers, over MPI.",
        "",
        "| d | workers | average, gradients/s | async, updates/s |",
        "| ---: | --- | ---: | ---: |",
    ]
    for each in rates:
        who = f"one {SLOW} times slower" if each.slow else "equal"
        lines.append(f"| {each.dim:,} | {who} | {each.average:.1f} | {each.asynchronous:.1f} |")
    lines += ["", *HEADER]
    for each in rates:
        who = f"one worker {SLOW} times slower" if each.slow else "equal workers"
        name = f"async's updates/s over average's steps/s times n, {who}, d={each.dim:,}"
        lines.append(Goal(name, *GOALS[each.slow], each.ratio, "ratio", more_is_better=True).row())
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """Measures; rank 0 prints the tables and writes them. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.arrival_rate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dims", type=int, nargs="+", default=list(DIMS), help="d (%(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a turn (%(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="of both (%(default)s)")
    parser.add_argument("--matrices", type=int, default=8, help="a gradient takes (%(default)s)")
    parser.add_argument("--output", default="results", help="folder (%(default)s)")
    args = parser.parse_args(argv)
    if min(args.turns, args.matrices, *args.dims) < 1 or args.seconds <= 0:
        raise UserError("--dims, --turns, --matrices and --seconds are above 0")
    import_tensorflow()
    from lossympi import mpi

    comm = mpi.import_mpi().COMM_WORLD
    if comm.size < 3:
        raise UserError("at least 2 workers are needed: mpirun -n 5 python -m ...")
    rates = [measure(comm, dim, slow, args) for slow in (False, True) for dim in args.dims]
    if comm.rank:
        return 0
    words = ["mpirun", "-n", str(comm.size), "python", "-m", "experiments.arrival_rate", *argv]
    text = report(rates, comm.size - 1, shlex.join(words))
    write_report("arrival_rate", text, Path(args.output))
    return 0


if __name__ == "__main__":
    sys.exit(run_command("arrival_rate", lambda: main(sys.argv[1:])))
