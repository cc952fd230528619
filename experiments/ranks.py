"""A run under mpirun: rank 0 is the server, which writes and reports; the others are workers."""

from __future__ import annotations

import atexit
import dataclasses
import os
from typing import TYPE_CHECKING, Any

from aggregathor import settings
from aggregathor.errors import UserError
from lossympi import LinkError, mpi

if TYPE_CHECKING:
    from aggregathor.cluster.job import Job
    from aggregathor.cluster.ranks import Ranks
    from experiments.config import Config

# Long enough that, on slow machines too, only workers that died or were stopped miss a round.
LINK_ARGS = {"timeout_s": 60.0}


def settle(workers: int, is_given: bool, transport: str) -> dict[str, Any]:
    """Returns the fields of a ``Config`` that depend on how this process was started.

    Args:
      workers: what the flag says.
      is_given: whether the user gave it.
      transport: "" if not given.

    Raises:
      UserError: the flags do not fit.
    """
    launch = mpi.launch_of(os.environ)
    if launch is None or launch.size < 2:
        if transport:
            raise UserError(
                f"--transport={transport} links ranks, and this process was started alone: it "
                f"simulates. Leave it out, or start `mpirun -n {workers + 1} python -m experiments "
                "...`."
            )
        return {}
    if is_given and workers != launch.size - 1:
        raise UserError(
            f"--workers={workers} and {launch.size} ranks, one of them the server: leave "
            f"--workers out, or start {workers + 1} ranks"
        )
    return {"workers": launch.size - 1, "transport": transport or "auto"}


def join(config: Config) -> Job | None:
    """Joins this process to the others that mpirun has started; collective.

    Returns:
      None if it was started alone.

    Raises:
      UserError: on every rank.
    """
    from aggregathor.cluster import ending
    from aggregathor.cluster.ranks import start_ranks

    ranks = start_ranks()
    if ranks is None:
        return None
    try:
        job = job_of(config, ranks)
    except UserError:
        atexit.register(ranks.shutdown, "")  # after rank 0 has written why
        raise
    ending.watch(job)
    return job


def job_of(config: Config, ranks: Ranks) -> Job:
    """Returns the job of a run; collective.

    Raises:
      UserError: on every rank.
    """
    from aggregathor.cluster import config as cluster
    from aggregathor.cluster.job import Job
    from aggregathor.cluster.meeting import Meeting

    Meeting(ranks, cluster.Config.start_s).agree("flags", dataclasses.asdict(config))
    if config.loss > 0:
        os.environ["LOSSYMPI_DROP"] = str(config.loss)
        os.environ["LOSSYMPI_DROP_SEED"] = str(config.seed)
    setting = config.setting()
    told = cluster.Config(
        transport=config.transport, link_args=LINK_ARGS, **settings.shared(setting)
    )
    return Job(ranks, told, secret=setting.seed)  # as in a simulation


def work_until_the_end(config: Config, job: Job) -> int:
    """Does a worker's part of a run; returns the exit status. The server reports the results.

    Raises:
      UserError: on every rank.
    """
    from aggregathor.cluster.ranks import TrainingEnded
    from aggregathor.log import tell_error
    from experiments.run import worker_of

    worker = worker_of(config, job)
    try:
        worker.run(config.steps)
    except TrainingEnded:
        return 0
    except LinkError as error:
        tell_error(str(error))
        return 1
    except UserError as error:  # of the attack, which can check its parameters only now
        tell_error(f"rank {job.ranks.rank}: {error}")
        job.ranks.comm.Abort(2)
    return 0
