"""``python -m experiments --experiment=mnist --gar=bulyan --byzantine=2 --attack=little ...``.

Started by mpirun on several ranks, it trains on them; alone, it simulates.
"""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Callable
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags, logging

from aggregathor import log, settings
from aggregathor.errors import UserError, near
from aggregathor.protocols.checks import doubts
from experiments.command import import_tensorflow, run_command, tell
from experiments.ranks import join, settle, work_until_the_end
from experiments.settings import Settings

if TYPE_CHECKING:
    from experiments.config import Config
    from experiments.run import Result

FIELDS = settings.fields(Settings)
OWN = ("output", "overwrite", "check_gar")  # flags that are no settings


def define_flags() -> None:
    """Defines a flag for each setting, and those that say where to write."""
    define: dict[type, Callable[..., object]] = {
        str: flags.DEFINE_string,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
    }
    for name, field in FIELDS.items():
        kind, text = field.metadata["kind"], field.metadata["help"].removesuffix(".")
        if kind is dict:
            flags.DEFINE_multi_string(name, [], f"{text}; repeat for more")
        else:
            define[kind](name, field.default, text)
    flags.DEFINE_string("output", None, "folder of the results; by default one under results/")
    flags.DEFINE_boolean("overwrite", False, "delete what an earlier run left in that folder")
    flags.DEFINE_boolean("check_gar", False, "try the rule against the contract of a rule first")


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

    given = {name: values[name] for name in FIELDS}
    for name, field in FIELDS.items():
        if field.metadata["kind"] is dict:
            words = [word for text in values[name] for word in _split(f"--{name}", text)]
            given[name] = parse_arguments(f"--{name}", words)
    config = Config(**given | settled)
    config.check()
    job = join(config)
    if values["check_gar"]:
        together = (lambda call: call()) if job is None else job.meeting.together
        together(lambda: None if job and not job.is_server else _try_rule(config))
    if job is not None and not job.is_server:
        return work_until_the_end(config, job)
    setting = config.setting()
    if job is None:  # else the job has said it
        for doubt in doubts(setting, robust=setting.rule.robust):
            getLogger("aggregathor").warning("%s", doubt)
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


def _try_rule(config: Config) -> None:
    """Raises ``UserError`` where the rule breaks the contract of a rule."""
    from aggregathor.cli.try_rule import try_rule

    sys.stderr.write(f"{try_rule(config.gar, config.gar_args)}\n")


def _split(flag: str, text: str) -> list[str]:
    """Returns the words of "m=2 unsafe=True", as `aggregathor run` reads them."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"{flag} takes name=value, got {text!r}: {error}") from None


def summary(result: Result) -> str:
    """Returns such as "accuracy 0.9600, top-3 0.9900 at step 300, 120.5 steps/s"."""
    last = result.metrics[-1]
    already = f"already at step {result.steps}: " if result.began_at == result.steps > 0 else ""
    rate = "" if math.isnan(result.steps_per_s) else f", {result.steps_per_s:.1f} steps/s"
    return (
        f"{already}accuracy {last['accuracy']:.4f}, top-3 {last['top3']:.4f} "
        f"at step {last['step']:.0f}{rate}"
        + ("" if result.is_finite else "; the model has become NaN or infinite")
    )


def default_folder(config: Config) -> str:
    """Returns a name such as "mnist-krum-little-seed0-1f0c9a2b", another for each configuration."""
    attack = config.attack or "no-attack"
    return f"{config.experiment}-{config.rule_slug()}-{attack}-seed{config.seed}-{config.digest()}"


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses flags; what is wrong with them ends the process with status 2, without a traceback."""
    try:
        rest = flags.FLAGS([_named(word) for word in arguments])
        if len(rest) > 1:
            raise flags.Error(f"unexpected argument {rest[1]!r}: flags begin with --")
    except flags.UnrecognizedFlagError as error:
        known = [f"--{each}" for each in (*FIELDS, *OWN)]
        name = f"--{error.flagname}"
        sys.exit(fail(UserError(f"there is no flag {name}: {near(name, known)}")))
    except BrokenPipeError:  # the reader of --help, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (flags.Error, OSError) as error:
        sys.exit(fail(error))
    except SystemExit:  # of --help, with status 1
        sys.exit(0)
    return rest


def _named(word: str) -> str:
    """Returns a flag with underscores, as all are named here; dashes are taken in their place."""
    name, is_given, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{is_given}{value}" if name.startswith("--") else word


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
