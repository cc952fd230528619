"""Runs without rounds on the ranks of one job, or simulations that follow their schedules.

mpirun -n 6 python tests/experiments/arrival_ranks.py FOLDER [killed | "too few"] [TRANSPORT]
python tests/experiments/arrival_ranks.py FOLDER SCHEDULES
"""

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from experiments.command import import_tensorflow

COMMON = {"workers": 5, "batch_size": 8, "steps": 60, "eval_every": 30, "checkpoint_every": 30}
# What ranks are linked by is "mpi" where neither a run nor the command says it.
RUNS = {
    "async": {"protocol": "async", "momentum": 0.9, "transport": "shm"},
    "basgd": {
        "protocol": "basgd", "gar": "median", "byzantine": 1, "attack": "random-disturbance",
        "protocol_args": {"reassign_s": 0.02},
    },
    "zeno++": {
        "protocol": "zeno++", "byzantine": 3, "attack": "sign-flip", "validation_share": 0.1,
        "protocol_args": {"batch": 32}, "transport": "udp",
    },
    "kardam": {
        "protocol": "kardam", "byzantine": 1, "attack": "label-flip", "optimizer": "adam",
        "protocol_args": {"dampening": "exponential"},
    },
    "dropout": {"protocol": "async", "model": "phocas-cnn", "batch_size": 4, "steps": 20,
        "eval_every": 10, "transport": "shm"},
}  # fmt: skip
RESUMED = ("basgd", "dropout")
# Runs in which the last rank dies at its gradient 4.
DEADLY = {
    "killed": {"protocol": "basgd", "gar": "median", "f": 1, "steps": 120},
    "too few": {
        "protocol": "basgd", "gar": "median", "f": 1, "steps": 10**6,
        "protocol_args": {"buffers": 5},
    },
}  # fmt: skip
DIES_AT = 4
STOP_AFTER_S = 3.0


def main(folder, schedules=None, deadly=None, over=None):
    import_tensorflow()
    from aggregathor.cluster import config as cluster
    from aggregathor.cluster.ranks import TrainingEnded, start_ranks
    from experiments import ranks as experiment_ranks
    from experiments.config import Config
    from experiments.run import run, worker_of
    from lossympi import LinkError

    usual = cluster.Config

    class Hasty(usual):
        def __init__(self, **given):
            usual.__init__(self, stop_after_s=STOP_AFTER_S, **given)

    cluster.Config = Hasty

    ranks = start_ranks()
    is_alone = ranks is None
    last = None if is_alone else ranks.comm.size - 1

    def train(name, dies=False, transport="mpi", **given):
        where = "" if is_alone else over or transport
        given = {**given, "fill": "zero"}  # of what UDP loses
        schedule = str(schedules / name / "schedule.csv") if is_alone else ""
        config = Config(**{**COMMON, **given}, transport=where, schedule=schedule)
        job = None if is_alone else experiment_ranks.job_of(config, ranks)
        if job is None or job.is_server:
            failure = run(config, folder / name, job=job).failure
            (folder / name / "failure.json").write_text(json.dumps(failure))
        else:
            worker = worker_of(config, job)
            if dies and ranks.rank == last:
                compute = worker._workers.compute

                def die(ticket):
                    if ticket == DIES_AT:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return compute(ticket)

                worker._workers.compute = die
            with suppress(TrainingEnded, LinkError):  # the latter as there are more runs
                worker.run(config.steps)
        if job is not None:  # which a process does at its end
            job.halves[-1].close()
        return job

    job = None
    if deadly is not None:
        job = train(deadly, dies=True, **DEADLY[deadly])
    else:
        for name, given in RUNS.items():
            if name in RESUMED and not is_alone:
                half = given.get("steps", COMMON["steps"]) // 2
                train(name, **{**given, "steps": half})
            job = train(name, **given)
    if job is not None:
        job.close()


if __name__ == "__main__":
    folder, *rest = sys.argv[1:]
    over = rest.pop() if rest and rest[-1] in ("mpi", "shm", "udp") else None
    if rest and rest[0] in DEADLY:
        main(Path(folder), deadly=rest[0], over=over)
    else:
        main(Path(folder), *map(Path, rest), over=over)
