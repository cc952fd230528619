"""What each rank of a soaked job does: `mpirun ... python -m tests.soak.ranks`, terms in SOAK."""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import json
import os
import resource
import signal
import sys
import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

import numpy as np

import lossympi.connection
from aggregathor import checkpoint, log
from aggregathor.cluster import ending
from aggregathor.cluster.config import Config
from aggregathor.cluster.job import Job
from aggregathor.cluster.ranks import TrainingEnded, start_ranks
from aggregathor.protocols.rounds import RefusedError
from lossympi.backend import choose_plane
from tests.soak.checks import RATE, Simulation
from tests.soak.hostile import Hostile
from tests.soak.plan import Fault, Terms, faults_of, gradient
from tests.soak.processes import begun_at

_FIRST = 1  # WIRE.md counts rounds from 1, links from 0
_STATUS_S = 0.2
_KEPT = 2000  # digests of models, by which a worker's is known again at the end


def main() -> None:
    """Runs the rank until the job ends."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # for who finds that it hangs
    terms = Terms.of_json(os.environ["SOAK"])
    ending.install_hook()
    log.install("warning")
    ranks = start_ranks()
    assert ranks is not None
    leave(terms, f"rank-{ranks.rank}.pid", [os.getpid(), begun_at(os.getpid())])
    job = Job(ranks, config_of(terms), secret=terms.seed)
    ending.watch(job)
    if job.is_server:
        Server(job, terms).run()
    else:
        work(job, terms)
    job.close()


def config_of(terms: Terms) -> Config:
    """Returns the configuration of the job."""
    options: dict[str, Any] = {"timeout_s": terms.timeout_s, "give_up_s": 60.0}
    if terms.transport == "udp":
        options |= {"floor_s": 0.02, "silence_s": 0.1}
    return Config(
        gar=terms.gar,
        f=terms.f,
        transport=terms.transport,
        link_args=options,
        seed=terms.seed,
        start_s=60.0,
        stop_after_s=60.0,
    )


def leave(terms: Terms, name: str, value: Any) -> None:
    """Writes a JSON file that is there as a whole or not at all."""
    path = terms.file(name)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value))
    part.rename(path)


def digest(params_d: np.ndarray) -> str:
    """Tells a model from others."""
    return hashlib.blake2b(params_d.tobytes(), digest_size=8).hexdigest()


def link_of(half: Any) -> Any:
    """Returns the link of a half, which only a test looks at."""
    return half._link


class Server:
    """Rank 0: makes the rounds, checks them, and stops and kills its workers."""

    def __init__(self, job: Job, terms: Terms) -> None:
        """Begins, or goes on from the checkpoint of the job before."""
        self._job, self._terms = job, terms
        self._params_d = np.zeros(terms.dim, np.float32)
        self._checkpoint = Path(terms.folder, "server", "soak.npz")
        self._checkpoint.parent.mkdir(mode=0o700, exist_ok=True)
        saved = checkpoint.read(self._checkpoint) if self._checkpoint.exists() else {}
        if saved:
            self._params_d = saved.pop("params")
        self._half = job.serve(terms.dim, lambda: self._params_d)
        self._simulation = Simulation(terms, job.setting, terms.seed, self._params_d)
        if saved:
            self._half.restore(saved)
            self._simulation.restore(saved)
        if terms.transport == "udp":
            leave(terms, "port", link_of(self._half)._endpoint.port)
        job.synchronise({"params": self._params_d})
        self._first = self._half.round
        self._faults = deque(faults_of(terms))
        self._processes = [
            int(json.loads(terms.file(f"rank-{rank}.pid").read_text())[0])
            for rank in job.ranks.topology.worker_ranks
        ]
        self._stopped: dict[int, int] = {}  # processes, by the round in which they go on
        self._is_disk_full = False
        self._counts: Counter[str] = Counter()
        self._models: deque[tuple[int, str]] = deque(maxlen=_KEPT)
        self._status = Status(terms, self._half)

    def run(self) -> None:
        """Makes the rounds of the job."""
        terms = self._terms
        for made in range(terms.rounds):
            self._status.made = made
            self._fail(made)
            self._round()
            if made % terms.checkpoint_every == terms.checkpoint_every - 1:
                self._save()
        self._go_on(terms.rounds + 1000)
        self._save()
        self._counts["rows"] = self._simulation.num_rows
        leave(
            terms,
            "server.json",
            {
                "counts": dict(self._counts),
                "models": dict(self._models),
            },
        )
        if terms.crashes:
            os.kill(os.getpid(), signal.SIGKILL)
        self._status.close()

    def _round(self) -> None:
        round = self._half.round
        try:
            report = self._half.collect()
            self._simulation.check(round, report, refused=False)
            self._params_d = self._params_d - RATE * report.grad_d
        except RefusedError as error:
            report = error.report
            self._simulation.check(round, report, refused=True)
            self._counts["refused"] += 1
        assert report.stats is not None
        self._counts[report.stats.closed_by] += 1
        self._simulation.publishes(self._params_d)
        self._models.append((round, digest(self._params_d)))
        self._half.publish(self._params_d)

    def _fail(self, made: int) -> None:
        """Begins the faults that are due, as far as they are the server's to make."""
        self._go_on(made)
        while self._faults and self._faults[0].round <= made:
            fault = self._faults.popleft()
            self._counts[fault.kind] += 1
            if fault.kind == "full disk":
                self._is_disk_full = True
            elif fault.kind in ("stop", "kill"):
                process = self._processes[fault.row]
                os.kill(process, signal.SIGSTOP if fault.kind == "stop" else signal.SIGKILL)
                if fault.kind == "stop":
                    self._stopped[process] = made + fault.rounds
            self._status.faults[fault.kind] = self._counts[fault.kind]

    def _go_on(self, made: int) -> None:
        for process, until in list(self._stopped.items()):
            if until <= made:
                os.kill(process, signal.SIGCONT)
                del self._stopped[process]

    def _save(self) -> None:
        """Writes the checkpoint; where the disk is full the one before must stay as it is."""
        arrays = {**self._half.state(), "params": self._params_d}
        if not self._is_disk_full:
            checkpoint.write(self._checkpoint, arrays)
            return
        self._is_disk_full = False
        before = self._checkpoint.read_bytes() if self._checkpoint.exists() else None
        _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
        try:
            checkpoint.write(self._checkpoint, arrays)
        except OSError:
            self._counts["refused checkpoints"] += 1
        else:
            raise AssertionError("a checkpoint was written where there was no room for it")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        after = self._checkpoint.read_bytes() if self._checkpoint.exists() else None
        assert before == after, "the checkpoint before was damaged"
        left = [path.name for path in self._checkpoint.parent.iterdir()]
        assert set(left) <= {self._checkpoint.name}, f"a full disk left {left} behind"


class Status:
    """Tells who watches the job, from a thread, how far it is and for whom it waits.

    Attributes:
      made: rounds.
      faults: how many of each kind.
    """

    def __init__(self, terms: Terms, half: Any) -> None:
        """Starts the thread."""
        self.made = 0
        self.faults: dict[str, int] = {}
        self._terms, self._half = terms, half
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="soak-status", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends it."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(_STATUS_S):
            waits_for = self._half.waiting_for()
            status = {"made": self.made, "waits_for": waits_for, "faults": self.faults}
            with contextlib.suppress(OSError):  # the disk may be full just now
                leave(self._terms, "status.json", status)


def work(job: Job, terms: Terms) -> None:
    """A worker: sends gradients until the server has had enough, and has its own faults."""
    row = job.ranks.row
    is_hostile = row == terms.hostile_row
    if is_hostile:
        # The plane in Python lets it send what it likes under its own key.
        lossympi.connection.choose_plane = lambda _: choose_plane("python")
    params_d = np.zeros(terms.dim, np.float32)
    half = job.work(terms.dim, lambda: params_d)
    params_d = job.synchronise({"params": params_d})["params"]
    first = half.round
    hostile = None
    if is_hostile:
        port = json.loads(terms.file("port").read_text()) if terms.transport == "udp" else 0
        hostile = Hostile(link_of(half), terms.transport, port)
    faults = [fault for fault in faults_of(terms) if fault.row == row]
    try:
        while True:
            made = half.round - first
            grad_d = gradient(terms, row, half.round, params_d)
            for fault in faults:
                if fault.round <= made < fault.round + fault.rounds:
                    grad_d = misbehave(terms, fault, hostile, half.round, grad_d)
            params_d = half.exchange(grad_d)
    except TrainingEnded:
        found = {"round": half.round - 1, "digest": digest(params_d)}
        leave(terms, f"worker-{row}.json", found)


def misbehave(
    terms: Terms, fault: Fault, hostile: Hostile | None, round: int, grad_d: np.ndarray
) -> np.ndarray:
    """Does in a round what a fault is; returns the gradient that is sent."""
    if fault.kind == "late":
        time.sleep(1.5 * fault.share * terms.timeout_s)
    if hostile is None:
        return grad_d
    random = np.random.default_rng([terms.seed, terms.job, round])
    on_wire = round + (_FIRST if terms.transport == "udp" else 0)
    if fault.kind == "flood":
        hostile.flood(random, on_wire)
        return grad_d
    hostile.garbage(random, on_wire)
    return hostile.spoil(random, grad_d)


if __name__ == "__main__":
    try:
        main()
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        os._exit(3)  # not in MPI's own exit, which would wait for the others
