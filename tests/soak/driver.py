"""Starts soaked jobs one after the other, watches each from outside, and judges what they leave."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.mpi.launch import ONE_HOST, ROOT, environment
from tests.soak.plan import Terms, faults_of
from tests.soak.processes import Holdings, begun_at, state_of
from tests.warm.start import python as warm_python

_LOOK_S = 0.25
_START_S, _END_S = 120.0, 60.0  # that a job may take to begin, and to end
_STACKS_S = 2.0  # for ranks to say where they are
_MOST_SAID = 12_000  # characters of what the ranks have said


class SoakError(AssertionError):
    """A job did not do what it must."""


@dataclass
class Tally:
    """What the jobs of a transport have done.

    Attributes:
      counts: rounds by what closed them, and faults by kind.
      growth_kib: the most that a rank's memory grew in a job.
    """

    jobs: int = 0
    rounds: int = 0
    seconds: float = 0.0
    growth_kib: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def line(self) -> str:
        """Returns it in one line."""
        counted = ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()))
        return (
            f"{self.rounds} rounds in {self.jobs} jobs, {self.rounds / self.seconds:.0f} rounds/s, "
            f"memory +{max(0, self.growth_kib) / 1024:.1f} MiB at most; {counted}"
        )


class Watched:
    """A job that runs, seen from outside."""

    def __init__(self, terms: Terms, limit_s: float, say: Callable[[str], None]) -> None:
        """Starts it; `limit_s` is how long a round may take."""
        self._terms, self._limit_s, self._say = terms, limit_s, say
        self._holdings = [Holdings() for _ in range(terms.num_workers + 1)]
        self._status: dict[str, Any] = {}
        self._output = terms.file("output.txt")
        variables = environment(
            SOAK=terms.to_json(),
            TF_NUM_INTRAOP_THREADS="1",
            TF_NUM_INTEROP_THREADS="1",
            TF_CPP_MIN_LOG_LEVEL="2",
            OMP_NUM_THREADS="1",
        )
        if terms.drop:
            variables |= {"LOSSYMPI_DROP": str(terms.drop), "LOSSYMPI_DROP_SEED": str(terms.seed)}
        words = (*ONE_HOST, "--with-ft", "ulfm", "-n", str(terms.num_workers + 1))
        with self._output.open("w") as output:
            self._process = subprocess.Popen(
                [*words, *warm_python(), "-m", "tests.soak.ranks"],
                cwd=ROOT,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def watch(self) -> None:
        """Waits until the job has ended.

        Raises:
          SoakError: it hangs.
        """
        made, since = -1, time.monotonic()
        try:
            while self._process.poll() is None:
                time.sleep(_LOOK_S)
                self._read_status()
                now_made = self._status.get("made", -1)
                for rank, holdings in enumerate(self._holdings):
                    if (process := self._process_of(rank)) is not None and now_made >= 0:
                        holdings.look(process, now_made)
                self._say(self._progress())
                if now_made != made:
                    made, since = now_made, time.monotonic()
                elif time.monotonic() - since > self._allowed_s(made):
                    raise SoakError(self._hang(made))
        finally:
            self._kill()

    def judge(self, tally: Tally) -> None:
        """Adds the job to a tally.

        Raises:
          SoakError: it failed, or holds more and more.
        """
        terms, status = self._terms, self._process.returncode
        found = terms.file("server.json")
        if not found.exists() or (status != 0 and not terms.crashes):
            raise SoakError(f"the job failed, mpirun returned {status}:\n{self._said()}")
        result = json.loads(found.read_text())
        if not terms.crashes:
            self._judge_workers(result["models"])
        leaks = [
            f"rank {rank} holds {leak} more at the end"
            for rank, holdings in enumerate(self._holdings)
            for leak in holdings.leaks()
        ]
        if leaks:
            raise SoakError("; ".join(leaks))
        tally.jobs += 1
        tally.rounds += terms.rounds
        tally.counts.update(result["counts"])
        tally.growth_kib = max(tally.growth_kib, *(each.growth_kib() for each in self._holdings))

    def _judge_workers(self, models: dict[str, str]) -> None:
        """Every worker that was not killed has a late model of the server, bit for bit."""
        killed = {fault.row for fault in faults_of(self._terms) if fault.kind == "kill"}
        for row in set(range(self._terms.num_workers)) - killed:
            path = self._terms.file(f"worker-{row}.json")
            if not path.exists():
                raise SoakError(f"worker {row} has left nothing:\n{self._said()}")
            found = json.loads(path.read_text())
            if models.get(str(found["round"])) != found["digest"]:
                raise SoakError(f"worker {row} ends with another model than the server's: {found}")

    def _allowed_s(self, made: int) -> float:
        if made < 0:
            return _START_S
        return _END_S if made >= self._terms.rounds - 1 else self._limit_s

    def _progress(self) -> str:
        made, faults = self._status.get("made", -1), self._status.get("faults", {})
        samples = self._holdings[0].samples
        rss = f"{samples[-1].rss_kib >> 10} MiB" if samples else "not known"
        counted = ", ".join(f"{count} {kind}" for kind, count in faults.items()) or "none"
        of = f"{made + 1} of {self._terms.rounds}"
        return f"job {self._terms.job}: round {of}, faults: {counted}; server {rss}"

    def _hang(self, made: int) -> str:
        """Returns who waits for whom, and where each rank is."""
        processes = [self._process_of(rank) for rank in range(self._terms.num_workers + 1)]
        states = []
        for rank, process in enumerate(processes):
            states.append(f"{rank}:{state_of(process)}")
            if process is not None and state_of(process) not in ("gone", "Z", "T"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGUSR1)
        time.sleep(_STACKS_S)
        waits_for = self._status.get("waits_for")
        return (
            f"nothing goes on in round {made} of the job since {self._allowed_s(made):.0f} s; the "
            f"server waits for rows {waits_for}; ranks and their states: {' '.join(states)}; "
            f"where they are:\n{self._said()}"
        )

    def _said(self) -> str:
        return self._output.read_text()[-_MOST_SAID:]

    def _read_status(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._status = json.loads(self._terms.file("status.json").read_text())

    def _process_of(self, rank: int) -> int | None:
        """Returns a rank's process, if it is there still: numbers are given again."""
        try:
            process, begun = json.loads(self._terms.file(f"rank-{rank}.pid").read_text())
            return process if begun_at(process) == begun else None
        except (OSError, ValueError):
            return None

    def _kill(self) -> None:
        """Ends what is left of the job."""
        for rank in range(self._terms.num_workers + 1):
            process = self._process_of(rank)
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


def soak(
    terms: Terms,
    *,
    rounds: int,
    seconds: float,
    limit_s: float,
    say: Callable[[str], None] = lambda _: None,
) -> Tally:
    """Makes jobs until there were so many rounds or seconds; every second one ends in a crash.

    Args:
      terms: of the first job; `rounds` of it is the most that a job makes.
      rounds: in all.
      seconds: after which no job is started; a job that runs is shortened as it was planned.
      limit_s: how long a round may take.
      say: is told how far it is.
    Raises:
      SoakError: something is wrong; the message has the command that shows it again.
    """
    tally = Tally()
    Path(terms.folder).mkdir(parents=True, exist_ok=True)
    while tally.rounds < rounds and (tally.jobs == 0 or tally.seconds < seconds):
        begun = time.monotonic()
        made = min(terms.rounds, rounds - tally.rounds)
        if tally.jobs:  # as many as there is time for
            left = int(tally.rounds / tally.seconds * (seconds - tally.seconds))
            made = min(made, max(left, min(made, 500)))
        job = replace(terms, rounds=made, crashes=terms.job % 2 == 1)
        try:
            watched = Watched(job, limit_s, say)
            watched.watch()
            tally.seconds += time.monotonic() - begun
            watched.judge(tally)
        except SoakError as error:
            raise SoakError(f"{error}\nagain: {again(job)}") from None
        terms = replace(terms, job=terms.job + 1)
    return tally


def again(terms: Terms) -> str:
    """Returns the command that makes a job with the same faults, from its own beginning."""
    return (
        f"{Path(sys.executable).name} -m tests.soak --transport {terms.transport} --seed "
        f"{terms.seed} --first-job {terms.job} --rounds {terms.rounds} --per-job {terms.rounds} "
        f"--workers {terms.num_workers} --drop {terms.drop}"
    )
