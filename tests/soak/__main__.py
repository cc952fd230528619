"""Soaks real jobs in faults: `python -m tests.soak --help`; `make soak` for an hour of it.

Each job is an mpirun of a server and workers, with the halves of synchronous SGD over a link of
each transport. Workers are stopped, killed, late, and send garbage; the server's disk is full when
it writes a checkpoint, and it is killed itself, to go on from the checkpoint in the next job. Every
round is checked: honest rows and the model, bit for bit; and from outside that no rank hangs or
holds more and more memory, descriptors or threads.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.soak.driver import SoakError, Tally, soak
from tests.soak.plan import TRANSPORTS, Terms

_EVERY_S = 10.0  # between two lines of progress


def main() -> int:
    """Runs it; returns 1 if something was wrong."""
    arguments = _arguments()
    transports = arguments.transport or list(TRANSPORTS)
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory() as folder:
        for transport in transports:
            terms = Terms(
                seed=arguments.seed,
                job=arguments.first_job,
                transport=transport,
                num_workers=arguments.workers,
                rounds=arguments.per_job,
                folder=str(Path(arguments.folder or folder, transport)),
                drop=arguments.drop if transport == "udp" else 0.0,
            )
            try:
                tallies[transport] = soak(
                    terms,
                    rounds=arguments.rounds,
                    seconds=arguments.seconds / len(transports),
                    limit_s=arguments.limit,
                    say=_Progress(transport),
                )
            except SoakError as error:
                sys.stdout.write(f"{transport}: WRONG: {error}\n")
                return 1
            sys.stdout.write(f"{transport}: {tallies[transport].line()}\n")
    sys.stdout.write(f"nothing wrong with seed {arguments.seed}\n")
    return 0


class _Progress:
    """Writes a line now and then."""

    def __init__(self, transport: str) -> None:
        self._transport = transport
        self._next_s = time.monotonic() + _EVERY_S

    def __call__(self, line: str) -> None:
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _EVERY_S
            sys.stdout.write(f"{self._transport}: {line}\n")
            sys.stdout.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--transport", choices=TRANSPORTS, action="append", help="default: each")
    parser.add_argument("--rounds", type=int, default=100_000, help="with each transport, at most")
    parser.add_argument("--seconds", type=float, default=3600.0, help="in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first-job", type=int, default=0, help="whose faults come first")
    parser.add_argument("--per-job", type=int, default=20_000, help="rounds of a job, at most")
    parser.add_argument("--workers", type=int, default=7)
    parser.add_argument("--drop", type=float, default=0.02, help="share of datagrams that are lost")
    parser.add_argument("--limit", type=float, default=30.0, help="seconds that a round may take")
    parser.add_argument("--folder", help="to keep what the ranks leave")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
