"""Runs on the ranks of one job, or simulates what shall be the same.

mpirun -n 6 python tests/experiments/ranks.py FOLDER
python tests/experiments/ranks.py FOLDER
"""

import json
import sys
from contextlib import suppress
from pathlib import Path

from experiments.command import import_tensorflow

COMMON = {"workers": 5, "batch_size": 8, "steps": 8, "eval_every": 4, "checkpoint_every": 4}
RUNS = {
    "little": {"gar": "multi-krum", "byzantine": 1, "attack": "little", "momentum": 0.9},
    "labels": {
        "gar": "median", "byzantine": 2, "attack": "label-flip", "momentum": 0.9,
        "momentum_at": "worker", "partition": "dirichlet", "l1": 1e-3, "l2": 1e-3,
    },
    "any row": {"gar": "phocas", "f": 2, "attack": "gambler", "attack_args": {"probability": 0.1}},
    "local": {"gar": "geometric-median", "byzantine": 2, "attack": "gaussian", "optimizer": "adam"},
    "judged": {
        "gar": "zeno", "byzantine": 3, "attack": "label-flip", "gar_args": {"b": 4},
        "validation_share": 0.1, "momentum": 0.5,
    },
    "asks the rule": {"gar": "krum", "byzantine": 1, "attack": "hidden-coordinate"},
    "remembers": {
        "gar": "trimmed-mean", "byzantine": 2, "attack": "mimic", "fill": "previous",
        "attack_args": {"follow": "direction"}, "momentum": 0.5, "momentum_at": "worker",
    },
    "dropout": {"gar": "median", "model": "phocas-cnn", "batch_size": 4},
    "cyclic": {
        "protocol": "draco", "byzantine": 1, "attack": "constant", "byzantine_moves": True,
        "model": "phocas-cnn", "batch_size": 4,
    },
    "repetition": {
        "protocol": "draco", "protocol_args": {"code": "repetition"}, "byzantine": 2,
        "attack": "label-flip", "optimizer": "adam",
    },
}  # fmt: skip
RESUMED = ("remembers", "dropout", "judged", "cyclic")
TOO_MANY = {"gar": "krum", "f": 1, "byzantine": 3, "attack": "nan", "steps": 4}  # the last run


def main(folder):
    import_tensorflow()
    from aggregathor.cluster.ranks import TrainingEnded, start_ranks
    from experiments.config import Config
    from experiments.ranks import job_of
    from experiments.run import run, worker_of

    ranks = start_ranks()

    def train(name, **given):
        config = Config(**{**COMMON, **given}, transport="" if ranks is None else "mpi")
        job = None if ranks is None else job_of(config, ranks)
        if job is None or job.is_server:
            failure = run(config, folder / name, job=job).failure
            (folder / name / "failure.json").write_text(json.dumps(failure))
            return job
        worker = worker_of(config, job)
        with suppress(TrainingEnded):
            worker.run(config.steps)
        return job

    for name, given in RUNS.items():
        if name in RESUMED and ranks is not None:
            train(name, **{**given, "steps": COMMON["steps"] // 2})
        train(name, **given)
    job = train("too many", **TOO_MANY)
    if job is not None:
        job.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
