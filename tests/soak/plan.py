"""What goes wrong in a job, and when: a function of seeds, so that a job can be seen again.

Faults are named by the round, counted from the job's first, before which they begin. What a round
does meanwhile, and in what order things happen within it, the machine decides.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

TRANSPORTS = ("shm", "mpi", "udp")
# Each needs n >= 2f + 3, at most, which 7 workers and f = 2 give, and takes NaN for missing.
RULES = (
    *("median", "trimmed-mean", "meamed", "phocas", "krum", "multi-krum", "geometric-median"),
    *("bucketing+median", "nnm+trimmed-mean"),
)
# 20,011 floats are more than a round aggregates at once: columns are aggregated as they come.
DIMS = (7, 2_000, 20_011)
# Rounds before the first fault and after the last, and between two on average; at most a fifth of
# the job.
_QUIET, _GAP = 50, 60
# Kinds of faults that a worker may recover from, and how likely each is.
_KINDS = {"stop": 0.3, "late": 0.2, "garbage": 0.25, "flood": 0.1, "full disk": 0.15}


@dataclass(frozen=True)
class Terms:
    """What all ranks of a job must know.

    Attributes:
      seed: of all jobs.
      job: number of this one.
      transport: of ``TRANSPORTS``.
      num_workers: n; f is the most that the rules tolerate of n = 2f + 3.
      rounds: of this job.
      folder: where the ranks leave what they find, and the checkpoint.
      drop: share of the datagrams that UDP loses.
      crashes: whether the server is killed at the end, in place of ending well.
    """

    seed: int
    job: int
    transport: str
    num_workers: int
    rounds: int
    folder: str
    drop: float = 0.0
    crashes: bool = False
    timeout_s: float = 0.25
    checkpoint_every: int = 200

    @property
    def f(self) -> int:
        """How many workers may be faulty at a time."""
        return (self.num_workers - 3) // 2

    @property
    def gar(self) -> str:
        """The rule, the same in all jobs: it may keep a state."""
        return str(np.random.default_rng([self.seed, 1]).choice(RULES))

    @property
    def dim(self) -> int:
        """d, the same in all jobs."""
        return int(np.random.default_rng([self.seed, 2]).choice(DIMS))

    @property
    def hostile_row(self) -> int:
        """The worker that sends garbage and floods, one of the f."""
        return self.num_workers - 1

    def to_json(self) -> str:
        """Returns what ``of_json`` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def of_json(cls, text: str) -> Terms:
        """Returns what ``to_json`` wrote."""
        return cls(**json.loads(text))

    def file(self, name: str) -> Path:
        """Returns the place of a file of this job."""
        return Path(self.folder, f"job-{self.job}-{name}")


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Attributes:
      round: of the job, before which it begins.
      kind: kill, stop, late, garbage, flood, or full disk.
      row: whose fault it is; -1 is the server.
      rounds: how many it lasts.
      share: of what it depends on, 0..1: of the deadline for a late worker.
    """

    round: int
    kind: str
    row: int
    rounds: int
    share: float


def faults_of(terms: Terms) -> list[Fault]:
    """Returns the faults of a job, in their order: never more than f faulty workers at a time."""
    random = np.random.default_rng([terms.seed, terms.job, TRANSPORTS.index(terms.transport)])
    faults: list[Fault] = []
    free_at = 0  # the round from which on no worker is faulty but the hostile one
    quiet, gap = min(_QUIET, terms.rounds // 5), min(_GAP, terms.rounds // 10)
    killed = terms.f > 1 and random.random() < 0.7
    # Late in the job: from then on no other worker may fail.
    kill_at = int(terms.rounds * random.uniform(0.8, 0.95)) if killed else terms.rounds
    last = terms.rounds - quiet  # so that all have come back at the end
    round = quiet
    while True:
        round += 1 + int(random.exponential(gap))
        if round >= last:
            break
        kind = str(random.choice(list(_KINDS), p=list(_KINDS.values())))
        row, rounds = terms.hostile_row, 1 + int(random.exponential(10))
        if kind in ("stop", "late"):
            row = int(random.integers(terms.num_workers - 1))
            rounds = min(rounds, 3) if kind == "late" else rounds
            if round < free_at or round + rounds >= min(kill_at, last):
                continue
            free_at = round + rounds + 1
        elif kind == "full disk":
            row, rounds = -1, 1
        elif kind == "flood":
            rounds = 1
        faults.append(Fault(round, kind, row, rounds, float(random.random())))
    if killed:
        row = int(random.integers(terms.num_workers - 1))
        faults.append(Fault(kill_at, "kill", row, 0, float(random.random())))
    return sorted(faults, key=lambda fault: fault.round)


def gradient(terms: Terms, row: int, round: int, params_d: np.ndarray) -> np.ndarray:
    """Returns what an honest worker sends in a round, float32 [d]: anyone can compute it again."""
    noise_d = _noise(terms.seed, row, terms.dim)
    return np.float32(0.5) * params_d + np.roll(noise_d, round % terms.dim)


_noises: dict[tuple[int, int, int], np.ndarray] = {}


def _noise(*key: int) -> np.ndarray:
    if key not in _noises:
        _noises[key] = np.random.default_rng(key).standard_normal(key[-1], np.float32)
    return _noises[key]
