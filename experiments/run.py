"""One training run: train, evaluate, record, save, resume."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from aggregathor import files
from aggregathor.cluster.job import Job
from aggregathor.errors import UserError
from aggregathor.protocols.aggregation import RuleError
from aggregathor.protocols.registry import PROTOCOLS
from aggregathor.trainer.distributed import Server, Worker
from aggregathor.trainer.distributed_arrivals import ServerOfArrivals, WorkerOfArrivals
from aggregathor.trainer.sampling import Batches, batches
from aggregathor.trainer.schedule import read_schedule
from aggregathor.trainer.simulated_arrivals import SimulatedArrivals
from aggregathor.trainer.simulation import Simulation
from aggregathor.trainer.training import Training
from experiments import models, tasks
from experiments.config import Config
from experiments.dataset import Dataset, hold_out
from experiments.evaluation import cross_entropy, evaluator
from experiments.plots import plot_accuracy
from experiments.progress import Progress
from experiments.recorder import Recorder, cannot_write, writing

# All that a run writes into its folder; what else lies there is the user's.
FILES = ("config.json", "metrics.csv", "workers.csv", "schedule.csv", "accuracy.png")
FOLDERS = ("checkpoints", "events")


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
      steps: how many steps have been made in all.
      metrics: one dict a row of metrics.csv, in order.
      steps_per_s: rate of this process's steps without evaluations; nan where it made none.
      stopped_by: the signal that ended it early, or None.
      failure: why training could not go on: the rule had too few gradients; "" if it could.
      began_at: the step that this process went on from.
      is_finite: whether the model is; else nothing of it is left.
    """

    steps: int
    metrics: list[dict[str, float]]
    steps_per_s: float
    stopped_by: signal.Signals | None
    failure: str
    began_at: int = 0
    is_finite: bool = True

    @property
    def accuracy(self) -> float:
        """The last top-1 accuracy, 0..1."""
        return self.metrics[-1]["accuracy"]

    @property
    def curve(self) -> tuple[list[float], list[float]]:
        """Steps and accuracies, for a plot."""
        return [m["step"] for m in self.metrics], [m["accuracy"] for m in self.metrics]


def run(
    config: Config,
    folder: Path,
    *,
    dataset: Dataset | None = None,
    overwrite: bool = False,
    job: Job | None = None,
) -> Result:
    """Trains as ``config`` says and leaves the results in ``folder``.

    A folder that holds an unfinished run of the same configuration is continued from its last
    checkpoint that can be read, bit for bit. Ctrl-C (or SIGTERM) ends a simulation after the step
    at hand and saves.

    Args:
      config: what to do; checked here.
      folder: is made; see ``FILES`` and ``FOLDERS``.
      dataset: the experiment's data, where the caller has loaded it already.
      overwrite: delete what an earlier run left in the folder.
      job: of this process where it is the server of real workers, see ``worker_of``; a
        simulation if not given. mpirun ends the processes on Ctrl-C and waits for nothing.

    Raises:
      UserError: see ``Config.check``; or the folder cannot be written, or holds another run.
    """
    training, dataset = _begin(config, dataset, job)
    _prepare(folder, config, overwrite)  # now that nothing of what the run needs is missing
    recorder = Recorder(folder, training)
    began_at = training.steps
    stopping = _stop_on_signal() if job is None else nullcontext(lambda: None)
    with recorder, stopping as stopped_by, _enough_memory(config):
        steps_per_s, failure = _train(training, config, dataset, recorder, stopped_by)
    title = f"{config.experiment}, {config.workers} workers, {config.byzantine} Byzantine"
    is_finite = all(np.isfinite(values).all() for values in training.model.get_weights())
    ended = (steps_per_s, stopped_by(), failure, began_at, is_finite)
    result = Result(training.steps, recorder.metrics, *ended)
    with writing(folder):
        plot_accuracy({config.label(): result.curve}, folder / "accuracy.png", title)
    return result


def worker_of(config: Config, job: Job) -> Worker | WorkerOfArrivals:
    """Returns this process's part of what ``run`` does on the server: its ``run`` comes next.

    Raises:
      UserError: as there.
    """

    def build() -> Worker | WorkerOfArrivals:
        with _enough_memory(config):
            loaded = _load(config, None)
            common = (job, config.setting(), loaded.model, cross_entropy, loaded.batches)
            if PROTOCOLS[config.protocol].takes:
                return WorkerOfArrivals(*common)
            return Worker(*common, config.saves_at)

    worker = job.meeting.together(build)
    worker.connect()
    return worker


def _begin(config: Config, dataset: Dataset | None, job: Job | None) -> tuple[Training, Dataset]:
    """Returns a simulation, or the server of the job, and the data."""
    takes = PROTOCOLS[config.protocol].takes
    if job is None:
        with _enough_memory(config):
            loaded = _load(config, dataset)
            simulation = _simulation_of_arrivals if takes else _simulation_of_rounds
            return simulation(config, loaded), loaded.dataset

    def build() -> tuple[Server | ServerOfArrivals, Dataset]:
        with _enough_memory(config):
            loaded = _load(config, dataset)
            common = (
                *(job, config.setting(), loaded.model, cross_entropy),
                *(config.make_optimizer(), loaded.batches),
            )
            if takes:
                return ServerOfArrivals(*common, loaded.validation), loaded.dataset
            return Server(*common, config.saves_at, loaded.validation), loaded.dataset

    server, data = job.meeting.together(build)
    server.connect()
    return server, data


def _simulation_of_rounds(config: Config, loaded: _Loaded) -> Training:
    return Simulation(
        config.setting(),
        loaded.model,
        cross_entropy,
        config.make_optimizer(),
        loaded.batches,
        loaded.validation,
    )


def _simulation_of_arrivals(config: Config, loaded: _Loaded) -> Training:
    schedule = read_schedule(Path(config.schedule)) if config.schedule else []
    if config.schedule and len(schedule) < config.steps:
        raise UserError(
            f"{config.schedule} has {len(schedule)} arrivals: --steps={len(schedule)} at the most, "
            f"got {config.steps}"
        )
    return SimulatedArrivals(
        config.setting(),
        loaded.model,
        cross_entropy,
        config.make_optimizer(),
        loaded.batches,
        loaded.validation,
        schedule,
    )


class _Loaded(NamedTuple):
    """What a training is made of; the data set is without what is held out for validation."""

    model: keras.Model
    batches: Batches
    dataset: Dataset
    validation: tuple[np.ndarray, np.ndarray] | None


def _load(config: Config, dataset: Dataset | None) -> _Loaded:
    config.check()
    task = tasks.task(config.experiment)
    dataset = dataset or task.load(config.data_dir)
    dataset, held_out = hold_out(dataset, config.validation_share, config.seed)
    keras.utils.set_random_seed(config.seed)
    drawn = batches(
        dataset.train_images,
        dataset.train_labels,
        num_workers=config.workers,
        batch_size=config.batch_size,
        partition=config.partition,
        alpha=config.alpha,
        seed=config.seed,
    )
    model = models.of_task(task, config.model, dataset)
    validation = (held_out.train_images, held_out.train_labels) if held_out else None
    return _Loaded(model, drawn, dataset, validation)


def _train(
    training: Training,
    config: Config,
    dataset: Dataset,
    recorder: Recorder,
    stopped_by: Callable[[], signal.Signals | None],
) -> tuple[float, str]:
    """Makes the steps that are left, evaluates and saves in between.

    Returns:
      Steps per second, and why training could not go on ("" if it could).
    """
    evaluate = evaluator(training.model, dataset)
    if not recorder.metrics:
        recorder.evaluated(training.steps, float("nan"), *evaluate())
    durations_s = []
    failure = ""
    with Progress(config.label(), training.steps, config.steps) as progress:
        while training.steps < config.steps and stopped_by() is None:
            begin_s = time.perf_counter()
            try:
                report = training.step()
            except RuleError as error:
                failure = str(error)
                if recorder.metrics[-1]["step"] != training.steps:
                    recorder.evaluated(training.steps, float("nan"), *evaluate())
                break
            durations_s.append(time.perf_counter() - begin_s)
            recorder.record(report.step, report.round)
            if report.step % config.eval_every == 0 or report.step == config.steps:
                recorder.evaluated(report.step, report.loss, *evaluate())
                recorder.workers(report.step, report.round)
            if config.saves_at(report.step):
                recorder.save(report.step)
            progress.show(report.step, recorder.metrics[-1]["accuracy"])
    if training.is_whole:
        recorder.save(training.steps)
    # The first step of a process traces its functions, which is no part of the rate.
    counted_s = durations_s[1:]
    return (len(counted_s) / sum(counted_s) if counted_s else float("nan")), failure


def _prepare(folder: Path, config: Config, overwrite: bool) -> None:
    """Makes the folder and writes ``config.json``, unless another run is in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            for name in FILES:
                (folder / name).unlink(missing_ok=True)
            for name in FOLDERS:
                shutil.rmtree(folder / name, ignore_errors=True)
        for name in FOLDERS:
            (folder / name).mkdir(exist_ok=True)
        path = folder / "config.json"
        if path.exists():
            differences = config.differences(Config.read(path))
            if differences:
                raise UserError(
                    f"{folder} holds a run of another configuration ({'; '.join(differences)}). "
                    "Name another --output, or --overwrite this one."
                )
        with files.replacing(path) as file:
            file.write(config.to_json().encode())
    except OSError as error:
        raise cannot_write(folder, error) from None


@contextmanager
def _enough_memory(config: Config) -> Iterator[None]:
    try:
        yield
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{config.workers} workers with batches of {config.batch_size} need more memory than "
            f"there is: {reason}. Lower --batch_size or --workers."
        ) from None


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], signal.Signals | None]]:
    """Turns the first Ctrl-C or SIGTERM into a wish to stop; a second one acts as usual."""
    received: list[signal.Signals] = []
    signals = (signal.SIGINT, signal.SIGTERM)

    def note(number: int, _: object) -> None:
        received.append(signal.Signals(number))
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {each: signal.signal(each, note) for each in signals}
    try:
        yield lambda: received[0] if received else None
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
