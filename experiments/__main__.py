"""``python -m experiments --experiment=mnist --gar=bulyan --byzantine=2 --attack=little ...``.

Started by mpirun on several ranks, it trains on them; alone, it simulates.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags, logging

from aggregathor import log
from experiments.command import import_tensorflow, run_command, tell
from experiments.ranks import join, settle, work_until_the_end

if TYPE_CHECKING:
    from experiments.config import Config
    from experiments.run import Result

DEFAULTS = {
    "experiment": ("digits", "what to train: a file of experiments/tasks"),
    "model": (None, "the network: see experiments/models.py; any of keras.applications"),
    "gar": (
        "average",
        'rule, or composition such as "bucketing(s=2)+krum": see `aggregathor gars`',
    ),
    "f": (None, "Byzantine workers that the rule must tolerate; by default --byzantine"),
    "workers": (11, "n, how many workers there are; under mpirun all ranks but the first"),
    "byzantine": (0, "how many of the workers attack"),
    "attack": ("", "what the Byzantine workers do: see `aggregathor attacks`"),
    "optimizer": ("sgd", "the server's optimizer: sgd, adam, ..."),
    "learning_rate": (0.1, "the optimizer's learning rate"),
    "momentum": (0.0, "momentum, 0 <= momentum < 1"),
    "momentum_at": ("server", "where momentum is kept: worker or server"),
    "batch_size": (32, "examples a worker draws in a step"),
    "steps": (500, "steps to make"),
    "l1": (0.0, "penalty on the sum of absolute weights"),
    "l2": (0.0, "penalty on the sum of squared weights"),
    "transport": (
        "",
        "under mpirun: shm or mpi (they lose nothing), udp (LossyMPI), or auto (the default: shm "
        "if all ranks are on one host, else mpi)",
    ),
    "loss": (
        0.0,
        "share of the datagrams that the network loses; under mpirun, with --transport=udp only",
    ),
    "fill": ("nan", "what replaces lost coordinates: nan, zero, random or previous"),
    "partition": ("sampling", "how the data are divided: sampling, shards or dirichlet"),
    "alpha": (1.0, "for --partition=dirichlet: the smaller, the more the workers' data differ"),
    "seed": (0, "seed of all randomness"),
    "eval_every": (50, "steps between evaluations on the test set"),
    "checkpoint_every": (500, "steps between checkpoints"),
    "data_dir": ("", "where tensorflow-datasets keeps its data; else TFDS_DATA_DIR"),
}
PAIRS = {
    "gar_args": "the rule's parameters, as name=value; repeat for more",
    "attack_args": "the attack's parameters, as name=value; repeat for more",
}


def define_flags() -> None:
    """Defines a flag for each field of ``Config``, and those that say where to write."""
    for name, (default, text) in DEFAULTS.items():
        kind = int if name == "f" else type(default)
        define: Callable[..., object] = flags.DEFINE_string
        if kind is int:
            define = flags.DEFINE_integer
        elif kind is float:
            define = flags.DEFINE_float
        define(name, default, text)
    for name, text in PAIRS.items():
        flags.DEFINE_multi_string(name, [], text)
    flags.DEFINE_string("output", None, "folder of the results; by default one under results/")
    flags.DEFINE_boolean("overwrite", False, "delete what an earlier run left in that folder")


def main(_: list[str]) -> int:
    """Runs one experiment; returns the exit status."""
    values = flags.FLAGS.flag_values_dict()
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    log.install()
    settled = settle(values["workers"], bool(flags.FLAGS["workers"].present), values["transport"])
    import_tensorflow()
    from aggregathor.arguments import parse_arguments
    from experiments.config import Config
    from experiments.run import run

    given = {field.name: values[field.name] for field in dataclasses.fields(Config)}
    for name in PAIRS:
        given[name] = parse_arguments(f"--{name}", values[name])
    config = Config(**given | settled)
    config.check()
    job = join(config)
    if job is not None and not job.is_server:
        return work_until_the_end(config, job)
    folder = Path(values["output"] or f"results/{default_folder(config)}")
    result = run(config, folder, overwrite=values["overwrite"], job=job)
    sys.stdout.write(f"{summary(result)}; results in {folder}\n")
    if result.stopped_by is not None:
        sys.stderr.write(
            f"stopped at step {result.steps} of {config.steps} and saved; "
            "the same command goes on from there\n"
        )
        return 128 + result.stopped_by
    if result.failure:
        sys.stderr.write(f"experiments: training could not go on: {result.failure}\n")
        return 1
    return 0


def summary(result: Result) -> str:
    """Returns such as "accuracy 0.9600, top-3 0.9900 at step 300, 120.5 steps/s"."""
    last = result.metrics[-1]
    already = f"already at step {result.steps}: " if result.began_at == result.steps > 0 else ""
    rate = "" if math.isnan(result.steps_per_s) else f", {result.steps_per_s:.1f} steps/s"
    return (
        f"{already}accuracy {last['accuracy']:.4f}, top-3 {last['top3']:.4f} "
        f"at step {last['step']:.0f}{rate}"
    )


def default_folder(config: Config) -> str:
    """Returns a name such as "mnist-krum-little-seed0-1f0c9a2b", another for each configuration."""
    attack = config.attack or "no-attack"
    return f"{config.experiment}-{config.rule_slug()}-{attack}-seed{config.seed}-{config.digest()}"


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses flags; what is wrong with them ends the process with status 2, without a traceback."""
    try:
        rest = flags.FLAGS(arguments)
        if len(rest) > 1:
            raise flags.Error(f"unexpected argument {rest[1]!r}: flags begin with --")
    except BrokenPipeError:  # the reader of --help, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (flags.Error, OSError) as error:
        sys.exit(fail(error))
    except SystemExit:  # of --help, with status 1
        sys.exit(0)
    return rest


def fail(error: Exception) -> int:
    """Prints what is wrong and returns the exit status of a user's mistake."""
    return tell(f"experiments: error: {error}", 2)


def command() -> int:
    """Parses the flags and runs; returns the exit status where absl does not exit with it."""
    define_flags()
    app.run(main, flags_parser=parse_flags)
    return 0


if __name__ == "__main__":
    sys.exit(run_command("experiments", command))
