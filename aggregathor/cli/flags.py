"""The flags of a job, as ``aggregathor run`` and ``python -m aggregathor.run`` take them."""

from __future__ import annotations

import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from aggregathor.cluster.config import FIELDS, KINDS, PREFIX, Config, read_text
from aggregathor.errors import UserError, near

USAGE = "python -m aggregathor.run [--gar=NAME] [--f=F] [--transport=udp] ... SCRIPT [ARGS]"
ABOUT = """\
Runs a TensorFlow script, unchanged, as one rank of a job: rank 0 is the server, the others are
workers. Every optimizer of the script takes part.
"""


def parse(arguments: Sequence[str]) -> tuple[dict[str, str], str, list[str]]:
    """Returns what flags say, as variables of the environment, the script and its arguments.

    Raises:
      UserError: a flag is unknown or wrong, or there is no such script.
    """
    told: dict[str, str] = {}
    rest = list(arguments)
    flag = text = ""
    if rest and rest[0] in ("-h", "--help"):
        sys.stdout.write(help_text())
        raise SystemExit(0)
    while rest and rest[0].startswith("--"):
        flag, equals, text = rest.pop(0).partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if name not in FIELDS:
            raise UserError(f"there is no flag {flag}: {near(flag, _flags())}")
        if not equals:
            if not rest:
                raise UserError(f"{flag} takes a value: {flag}=...")
            text = rest.pop(0)
        read_text(name, text, flag)
        variable = PREFIX + name.upper()
        repeated = KINDS[name] is dict and variable in told
        told[variable] = f"{told[variable]} {text}" if repeated else text
    if not rest:
        hint = f"; if {text!r} is it, {flag} lacks its value" if text.endswith(".py") else ""
        raise UserError(f"no script is named{hint}: {USAGE}")
    if not Path(rest[0]).is_file():
        raise UserError(f"there is no script {rest[0]}")
    return told, rest[0], rest[1:]


def help_text() -> str:
    """Returns the flags with their defaults, as the documentation of ``Config`` tells them."""
    width = shutil.get_terminal_size(fallback=(100, 24)).columns
    documented = (inspect.getdoc(Config) or "").replace("``", "")
    attributes = re.findall(r"^ {2}(\w+): (.*(?:\n {4,}.*)*)", documented, re.MULTILINE)
    parts = [
        _filled(f"usage: {USAGE}", width, "", "  "),
        _filled(ABOUT, width, "", ""),
        "\n".join(_filled(text, width, _flag(name), "      ") for name, text in attributes),
    ]
    return "\n\n".join(parts) + "\n"


def _filled(text: str, width: int, first: str, others: str) -> str:
    return textwrap.fill(
        " ".join(text.split()),
        width,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _flag(name: str) -> str:
    default = f" (default {FIELDS[name]})" if FIELDS[name] not in ("", {}) else ""
    return f"  --{name}{default}: "


def _flags() -> list[str]:
    return [f"--{name}" for name in FIELDS]
