"""The configuration of a job: from the script, the command line and the environment."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aggregathor import compositions, settings
from aggregathor.arguments import parse_arguments
from aggregathor.errors import UserError, near
from aggregathor.log import LEVELS
from aggregathor.protocols import draco
from aggregathor.protocols.registry import PROTOCOLS
from aggregathor.settings import in_words, setting
from lossympi.options import Options

PREFIX = "AGGREGATHOR_"
TRANSPORTS = ("auto", "shm", "mpi", "udp")
LOCKS = ("drift", "scan", "patch", "kernel", "digest")  # layers, of which the lock may have several
# Variables with the prefix that mean something else: to rules, launcher, setup.py and children.
_NOT_OURS = frozenset(
    f"{PREFIX}{name}"
    for name in (
        "KERNELS",
        "SERVER_THREADS",
        "CUDA",
        "INSTRUCTION_SETS",
        "NATIVE",
        "STDIN",
        "PROCESS",
    )
)


@settings.documented
@dataclass(frozen=True, kw_only=True)
class Config(settings.Training):
    """How the ranks of a job train together. Every rank has the same.

    Each field is an argument of ``agt.init``, a flag of ``aggregathor run`` (``--gar_args m=2``),
    and a variable of the environment (``AGGREGATHOR_GAR_ARGS="m=2"``). What one of them says the
    others may leave out, and must not contradict.
    """

    transport: str = setting(
        "auto",
        '"udp" is LossyMPI; the others lose nothing: "shm" is memory that the ranks of one host '
        'share, "mpi" is MPI, and "auto" is "shm" if all ranks are on one host, else "mpi".',
        choices=TRANSPORTS,
    )
    link_args: Mapping[str, Any] = setting(
        {},
        'options of the link, those of lossympi.Options: --link_args="timeout_s=5". The rule must '
        "tolerate f Byzantine ones among ``quorum`` gradients.",
    )
    monitor: str = setting(
        "",
        "folder for what the server sees of each worker, as CSV and for TensorBoard. Each start "
        "writes to a new run-1, run-2, ... and counts its rounds from 1. The server also logs its "
        'progress, and at the end who was suspected. "" for none.',
    )
    monitor_every: int = setting(10, "rounds between two rows of the monitor's files.")
    checkpoint: str = setting(
        "",
        "folder to save the training to, and to resume it from; each rank has a folder in it that "
        'is closed to other users. "" for none.',
    )
    checkpoint_every: int = setting(100, "rounds between two checkpoints.")
    show: str = setting(
        "server",
        'whose standard output aggregathor run shows: the "server"\'s, or that of "all" ranks. '
        "Standard error is always shown.",
        choices=("server", "all"),
    )
    log: str = setting(
        "info",
        'the least severe messages that are logged: "debug", "info", "warning" or "error". They go '
        'to the logger "aggregathor" of Python\'s logging.',
        choices=LEVELS,
    )
    draws: str = setting(
        "own",
        "what a loop of the script draws after the first step, several numbers at once by random "
        'or numpy.random, or by TensorFlow eagerly. "own": each rank its own, as batches and noise '
        'must be. "alike": all the same, as tasks of meta-learning must be. Input pipelines, '
        "functions and layers draw each rank's own in any case.",
        choices=("own", "alike"),
    )
    lock: str = setting(
        "drift",
        "what keeps a worker from writing what only the server writes, one or more of these, "
        'separated by commas. "drift" checks the graphs that the worker traces, and refuses those '
        "that would let its variables drift from the server's: that write what depends on the "
        'worker\'s own data, and what is still there when the next gradient is computed. "scan" '
        'refuses all that could write; "patch" lets them write a copy instead, where that is '
        'possible, and refuses the others; "kernel" lets TensorFlow\'s CPU kernels refuse, eagerly '
        'too; "digest" detects in every round whether something was written; "off" checks nothing.',
    )
    digest_every: int = setting(1, "the digest checks one round of this many.")
    stop_after_s: float = setting(
        60.0,
        "seconds after which the server stops the training if, round after round, too few "
        "gradients arrive for the rule.",
    )
    check_rounds: int = setting(
        0,
        "rounds after which all ranks end, with a report of what of the script is shared, private, "
        "seeded, written, locked and compiled, and of what to look at: `aggregathor run --check`. "
        "Neither checkpoint nor monitor are used then. 0 for a training.",
    )
    start_s: float = setting(
        300.0,
        "seconds that an optimizer's first round may take, as every worker traces and compiles in "
        "it.",
    )

    @property
    def locks(self) -> frozenset[str]:
        """The layers of the lock."""
        return frozenset() if self.lock == "off" else frozenset(self.lock.split(","))

    @classmethod
    def of(cls, given: Mapping[str, Any], environment: Mapping[str, str]) -> Config:
        """Joins what the script gives and what the environment says.

        Raises:
          UserError: a name is unknown, a value cannot be read, or the two contradict each other.
        """
        told = _read(environment)
        for name in given:
            if name not in FIELDS:
                raise UserError(f"agt.init has no parameter {name!r}: {near(name, FIELDS)}")
        differ = [name for name in given if name in told and told[name] != given[name]]
        if differ:
            raise UserError(
                f"agt.init({in_words(given, differ)}) in the script contradicts the command line, "
                f"which says {in_words(told, differ)}. Leave one of them out."
            )
        values = {**told, **given}
        config = cls(**{"f": values.get("byzantine", 0), **values})
        config.check()
        return config

    def check(self) -> None:
        """Raises ``UserError`` for a wrong type or value of a field that nothing else checks."""
        for name, value in dataclasses.asdict(self).items():
            kind = KINDS[name]
            fits = isinstance(value, (int, float) if kind is float else kind)
            if not fits or isinstance(value, bool) != (kind is bool):
                raise UserError(f"{name} must be {_WORDS[kind]}, got {value!r}")
        settings.check_choices(self)
        if "off" in self.locks:
            raise UserError(f"lock={self.lock!r}: off goes with no other.")
        for layer in sorted(self.locks - {*LOCKS}):
            raise UserError(f"no lock is called {layer!r}: {near(layer, (*LOCKS, 'off'))}")
        for name in ("monitor_every", "checkpoint_every", "digest_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1 round, got {getattr(self, name)}")
        if self.check_rounds < 0:
            raise UserError(f"check_rounds must be 0 or more rounds, got {self.check_rounds}")
        for name in ("start_s", "stop_after_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name} must be a time above 0 s, got {getattr(self, name)}")
        compositions.check(self.gar, self.gar_args)
        protocol = PROTOCOLS[self.protocol]
        protocol.check_parameters(**self.protocol_args)
        if self.protocol == "draco" and draco.is_cyclic(self.protocol_args):
            raise UserError(
                "draco's cyclic codes take the gradients of several batches a step, and a script's "
                f"step gives one: take --protocol_args=code={draco.REPETITION}, whose workers "
                "compute the same in groups of r"
            )
        options_of = Options.of if self.transport == "udp" else Options.of_lossless
        try:
            options_of(self.link_args)
        except ValueError as error:
            raise UserError(f"link_args: {error}") from None

    def to_environment(self) -> dict[str, str]:
        """Returns the environment variables that give the same, without those of defaults."""
        variables = {}
        implied = {**FIELDS, "f": self.byzantine}
        for name, value in dataclasses.asdict(self).items():
            if value != implied[name]:
                text = str(value)
                if KINDS[name] is dict:
                    text = shlex.join(f"{key}={each!r}" for key, each in value.items())
                variables[PREFIX + name.upper()] = text
        return variables


FIELDS = settings.defaults(Config)
KINDS = {name: field.metadata["kind"] for name, field in settings.fields(Config).items()}
_WORDS = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    dict: "a dict of parameters",
}
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


def read_text(name: str, text: str, where: str) -> Any:
    """Parses the value of a field, the text of a flag or of a variable.

    Raises:
      UserError: it cannot be parsed; ``where`` names the flag or the variable.
    """
    kind = KINDS[name]
    if kind is dict:
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise UserError(f"{where} takes name=value, got {text!r}: {error}") from None
        return parse_arguments(where, words)
    try:
        return _TRUTHS[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise UserError(f"{where} must be {_WORDS[kind]}, got {text!r}") from None


def _read(environment: Mapping[str, str]) -> dict[str, Any]:
    told = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or variable in _NOT_OURS:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in FIELDS:
            raise UserError(f"the environment has {variable}, which is unknown: {_hint(name)}")
        told[name] = read_text(name, text, variable)
    return told


def _hint(name: str) -> str:
    return near(PREFIX + name.upper(), [PREFIX + each.upper() for each in FIELDS])
