"""What a run can be told, beside what all trainings have: the flags are made of these fields."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from aggregathor import settings
from aggregathor.settings import setting


@dataclass(frozen=True)
class Settings(settings.Simulation):
    """A run. Each field is a flag of ``python -m experiments``."""

    experiment: str = setting("digits", "what to train: a file of experiments/tasks.")
    _: KW_ONLY
    model: str | None = setting(
        None, "the network: see experiments/models.py; any of keras.applications.", kind=str
    )
    f: int | None = setting(  # type: ignore[assignment]
        None, settings.fields(settings.Training)["f"].metadata["help"], kind=int
    )
    workers: int = setting(
        11, "n, how many workers there are; under mpirun all ranks but the first."
    )
    optimizer: str = setting("sgd", "the server's optimizer, such as sgd or adam.")
    learning_rate: float = setting(0.1, "the optimizer's learning rate.")
    momentum: float = setting(0.0, "momentum, 0 <= momentum < 1.")
    momentum_at: str = setting("server", "where momentum is kept: worker or server.")
    batch_size: int = setting(32, "examples a worker draws in a step.")
    steps: int = setting(500, "steps to make.")
    transport: str = setting(
        "",
        "under mpirun: shm or mpi (they lose nothing), udp (LossyMPI), or auto (the default: shm "
        "if all ranks are on one host, else mpi).",
    )
    partition: str = setting("sampling", "how the data are divided: sampling, shards or dirichlet.")
    alpha: float = setting(
        1.0, "for --partition=dirichlet: the smaller, the more the workers' data differ."
    )
    validation_share: float = setting(
        0.0,
        "share of the training set, 0..1, that the server alone has and no worker draws of, for "
        "rules such as zeno, which judge gradients by it.",
        later=True,
    )
    schedule: str = setting(
        "",
        "a schedule.csv of a training without rounds: a simulation follows it and computes the "
        "same.",
        later=True,
    )
    seed: int = setting(0, "seed of all randomness.")
    eval_every: int = setting(50, "steps between evaluations on the test set.")
    checkpoint_every: int = setting(500, "steps between checkpoints.")
    data_dir: str = setting("", "where tensorflow-datasets keeps its data; else TFDS_DATA_DIR.")
