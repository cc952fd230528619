"""A run on ranks of which some fail.

mpirun -n 7 python tests/experiments/fault_ranks.py FOLDER FAULT SYSTEM TRANSPORT LOSS STEPS
"""

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from experiments.command import import_tensorflow

WORKERS = 6
COMMON = {"workers": WORKERS, "batch_size": 8, "eval_every": 10, "learning_rate": 0.2}
SYSTEMS = {
    "zeno": {"gar": "zeno", "f": 4, "gar_args": {"b": 4, "n_r": 16}, "validation_share": 0.1},
    "repetition": {"protocol": "draco", "f": 1, "protocol_args": {"code": "repetition"}},
    "cyclic": {"protocol": "draco", "f": 1},
    "attacked": {"gar": "median", "f": 2, "byzantine": 2, "attack": "little"},
}
DIES_AT = 4  # of a worker's gradients
# What each fault does, by row.
FAULTS = {"killed": {5: "killed"}, "garbage": {5: "garbage"},
    "too many": {4: "killed", 5: "killed"}, "first killed": {0: "killed"}}  # fmt: skip
MOST = {"garbage": {"zeno": {2: "garbage", 3: "garbage", 4: "garbage", 5: "garbage"}}}


def faults_of(fault, system):
    """Which worker does what: Zeno bears more than half of them."""
    return MOST.get(fault, {}).get(system, FAULTS[fault])


def main(folder, fault, system, transport, loss, steps):
    import_tensorflow()
    from aggregathor.cluster.ranks import TrainingEnded, start_ranks
    from experiments import ranks as experiment_ranks
    from experiments.config import Config
    from experiments.run import run, worker_of
    from lossympi import LinkError

    experiment_ranks.LINK_ARGS = {"timeout_s": 2.0}
    ranks = start_ranks()
    config = Config(**COMMON, **SYSTEMS[system], transport=transport, loss=loss, steps=steps)
    job = experiment_ranks.job_of(config, ranks)
    if job.is_server:
        failure = run(config, folder, job=job).failure
        (folder / "failure.json").write_text(json.dumps(failure))
    else:
        worker = worker_of(config, job)
        row = ranks.rank - 1
        does = faults_of(fault, system).get(row)
        compute, rng = worker._compute, np.random.default_rng(row)

        def fail(step):
            sent = compute(step)
            if does == "killed" and step >= DIES_AT:
                os.kill(os.getpid(), signal.SIGKILL)
            if does == "killed":
                return sent
            return rng.integers(0, 2**32, len(sent), np.uint32).view(np.float32)

        if does is not None:
            worker._compute = fail
        with suppress(TrainingEnded, LinkError):
            worker.run(config.steps)
    job.close()


if __name__ == "__main__":
    folder, fault, system, transport, loss, steps = sys.argv[1:]
    main(Path(folder), fault, system, transport, float(loss), int(steps))
