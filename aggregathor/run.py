"""``mpirun -n 9 python -m aggregathor.run --gar=multi-krum --f=2 script.py its args``.

Runs a TensorFlow script, unchanged, as one rank of a job: rank 0 is the server, the others are
workers. Every optimizer of the script takes part.
"""

from __future__ import annotations

import inspect
import os
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from aggregathor.cluster.config import FIELDS, KINDS, PREFIX, Config, read_text
from aggregathor.errors import UserError, near

USAGE = "python -m aggregathor.run [--gar=NAME] [--f=F] [--transport=udp] ... SCRIPT [ARGS]"


def main(arguments: Sequence[str]) -> None:
    """Runs the script that the arguments name, in this process."""
    from aggregathor.cluster import ending

    try:
        told, script, rest = parse(arguments)
        os.environ.update(told)
        _run(script, rest)
    except SystemExit as error:
        ending.end(_status(error))
    except BaseException as error:
        status = ending.report(error)
        if status is None:
            raise
        ending.end(status)


def parse(arguments: Sequence[str]) -> tuple[dict[str, str], str, list[str]]:
    """Returns what flags say, as variables of the environment, the script and its arguments.

    Raises:
      UserError: a flag is unknown or wrong, or there is no such script.
    """
    told: dict[str, str] = {}
    rest = list(arguments)
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
        raise UserError(f"no script is named: {USAGE}")
    if not Path(rest[0]).is_file():
        raise UserError(f"there is no script {rest[0]}")
    return told, rest[0], rest[1:]


def _run(script: str, arguments: Sequence[str]) -> None:
    from aggregathor.quiet import quiet_tensorflow

    with quiet_tensorflow():
        from aggregathor import dropin
        from aggregathor.cluster import job
    job.init()
    dropin.distribute_all()
    current = job.current()
    if current is not None and not current.is_server and current.config.output == "server":
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - as long as the process lives
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)  # as Python does for a script
    runpy.run_path(script, run_name="__main__")


def help_text() -> str:
    """Returns the flags with their defaults, as the documentation of ``Config`` tells them."""
    documented = inspect.getdoc(Config) or ""
    attributes = documented.partition("Attributes:\n")[2]
    flags = re.sub(
        r"^ {2}(\w+): ", lambda found: _flag(found[1]), attributes, flags=re.MULTILINE
    ).replace("``", "")
    return f"usage: {USAGE}\n\n{(__doc__ or '').partition(chr(10) * 2)[2]}\n{flags}\n"


def _flag(name: str) -> str:
    default = f" (default {FIELDS[name]})" if FIELDS[name] not in ("", {}) else ""
    return f"  --{name}{default}: "


def _flags() -> list[str]:
    return [f"--{name}" for name in FIELDS]


def _status(error: SystemExit) -> int:
    """Returns the exit status that Python would end with."""
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    sys.stderr.write(f"{error.code}\n")
    return 1


if __name__ == "__main__":
    main(sys.argv[1:])
