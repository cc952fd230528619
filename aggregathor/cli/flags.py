"""The flags of a job, as ``aggregathor run`` and ``python -m aggregathor.run`` take them."""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from aggregathor import settings
from aggregathor.cli import program
from aggregathor.cluster.config import FIELDS, KINDS, PREFIX, Config, read_text
from aggregathor.errors import UserError, near

USAGE = (
    "python -m aggregathor.run [--gar=NAME] [--f=F] [--transport=udp] ... "
    "SCRIPT|-m MODULE|-c CODE [ARGS]"
)
ABOUT = """\
Runs a TensorFlow script, unchanged, as one rank of a job: rank 0 is the server, the others are
workers. Every optimizer of the script takes part.
"""
_METAVARS = {str: "TEXT", int: "N", float: "NUMBER", bool: "BOOL", dict: "NAME=VALUE"}

Flags = list[tuple[str, str]]  # names of fields, each with the text of its value


class Parser(argparse.ArgumentParser):
    """Parses options in front of a program; a mistake is a ``UserError``.

    The namespace has ``job``, the flags of a job, and ``words``, the program and its arguments.
    """

    def __init__(self, **given: Any) -> None:
        """Takes what ``argparse.ArgumentParser`` takes."""
        width = shutil.get_terminal_size(fallback=(100, 24)).columns
        super().__init__(
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, width=width),
            **given,
        )
        self.set_defaults(job=[])

    def add_job_flags(self, *, shown: bool) -> None:
        """Adds a flag for each field of ``Config``; ``--help`` lists them if they are shown."""
        for name, field in settings.fields(Config).items():
            text = field.metadata["help"].replace("%", "%%")
            default = f" (default {FIELDS[name]})" if FIELDS[name] not in ("", {}) else ""
            metavar = _METAVARS[KINDS[name]]
            about = f"{text}{default}" if shown else argparse.SUPPRESS
            self.add_argument(f"--{name}", action=_JobFlag, metavar=metavar, help=about)
            if "_" in name:
                self.add_argument(
                    f"--{name.replace('_', '-')}", action=_JobFlag, help=argparse.SUPPRESS
                )

    def read(self, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Returns the parsed options, and the unknown ones."""
        at = self._program_at(words)
        found, unknown = self.parse_known_args(words[:at])
        found.words = [*words[at:]]
        if found.words[:1] == ["--"]:
            del found.words[0]
        return found, unknown

    def _program_at(self, words: Sequence[str]) -> int:
        """Returns where the program begins, whose own options are none of this parser's."""
        values = {
            option
            for action in self._actions
            if action.nargs is None
            for option in action.option_strings
        }
        at = 0
        while at < len(words) and words[at] != "--" and not program.begins(words[at]):
            at += 2 if words[at] in values else 1
        return min(at, len(words))

    def error(self, message: str) -> NoReturn:
        """Raises ``UserError``: one line, as for all other mistakes."""
        value = r"argument (\S+): expected one argument"
        raise UserError(re.sub(value, r"\1 needs a value: \1=...", message))


class _JobFlag(argparse.Action):
    """Appends a flag of a job to those that came before it."""

    def __call__(self, parser: Any, found: Any, value: Any, option: str | None = None) -> None:
        found.job = [*found.job, (self.dest, value)]


def parse(arguments: Sequence[str]) -> tuple[dict[str, str], program.Program]:
    """Returns the flags as variables of the environment, and the program.

    Raises:
      UserError: a flag is unknown or wrong, or there is no such program.
    """
    found, unknown = _parser().read(arguments)
    told = to_environment(found.job, unknown)
    named = program.read(found.words)
    if named is None:
        raise UserError(f"no script is named{hint(found.job)}: {USAGE}")
    named.check()
    return told, named


def to_environment(flags: Flags, unknown: Iterable[str] = ()) -> dict[str, str]:
    """Returns the flags as variables of the environment.

    Raises:
      UserError: a value cannot be parsed, or a flag is unknown.
    """
    for word in unknown:
        name = word.partition("=")[0]
        raise UserError(f"there is no flag {name}: {near(name, [f'--{each}' for each in FIELDS])}")
    told: dict[str, str] = {}
    for name, text in flags:
        read_text(name, text, f"--{name}")
        variable = PREFIX + name.upper()
        repeated = KINDS[name] is dict and variable in told
        told[variable] = f"{told[variable]} {text}" if repeated else text
    return told


def help_text() -> str:
    """Returns the flags with their defaults, as the fields of ``Config`` describe them."""
    return _parser().format_help()


def _parser() -> Parser:
    width = shutil.get_terminal_size(fallback=(100, 24)).columns
    usage = textwrap.fill(f"usage: {USAGE}", width, subsequent_indent="  ")
    parser = Parser(usage=usage.removeprefix("usage: "), description=ABOUT)
    parser.add_job_flags(shown=True)
    return parser


def hint(flags: Flags) -> str:
    """Returns a hint where the last flag has taken the script for its value."""
    if not flags or not flags[-1][1].endswith(".py"):
        return ""
    name, text = flags[-1]
    return f"; if {text!r} is it, --{name} lacks its value"
