"""The program that a job runs: a script, a module or a line of code, as ``python`` takes them.

The launcher checks it in a moment, without importing anything of it; each rank then runs it as
Python would alone: with its ``sys.argv``, its ``sys.path[0]`` and as ``__main__``.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import re
import runpy
import shlex
import shutil
import sys
import types
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from aggregathor.errors import UserError, near

SCRIPT, MODULE, CODE = "script", "module", "code"
_OPTIONS = {"-m": MODULE, "-c": CODE}
_PYTHON = re.compile(r"python(\d(\.\d+)?)?")
# Options of Python's that concern how a script runs: of one word, and with a value.
_PYTHON_OPTIONS = re.compile(r"-[bBdEOsSuvx]+|-[WX].+|--check-hash-based-pycs=.+")
_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")


class Program(NamedTuple):
    """What each rank runs.

    Attributes:
      kind: ``SCRIPT``, ``MODULE`` or ``CODE``.
      name: the script's path, the module's name, or the code.
      arguments: its own.
      python: the options of Python that were given before it.
    """

    kind: str
    name: str
    arguments: list[str]
    python: list[str]

    def words(self) -> list[str]:
        """Returns it as words of a command line, without Python's options."""
        option = [each for each, kind in _OPTIONS.items() if kind == self.kind]
        return [*option, self.name, *self.arguments]

    def check(self) -> None:
        """Raises ``UserError`` if there is no such program, or its syntax is wrong."""
        if self.kind == CODE:
            _compile(self.name.encode(), "the code after -c")
        elif self.kind == MODULE:
            path = _find_module(self.name)
            if path is not None:
                _compile(path.read_bytes(), str(path))
        else:
            _check_script(self.name)

    def set_path(self) -> None:
        """Sets where modules are looked for first, as ``python`` does."""
        if self.kind == SCRIPT:
            _set_path(str(Path(self.name).resolve().parent))
        else:
            _set_path(os.getcwd() if self.kind == MODULE else "")

    def run(self) -> None:
        """Runs it in this process, as ``python`` would."""
        self.set_path()
        if self.kind == MODULE:
            sys.argv = [self.name, *self.arguments]
            runpy.run_module(self.name, run_name="__main__", alter_sys=True)
        elif self.kind == CODE:
            sys.argv = ["-c", *self.arguments]
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(self.name, "<string>", "exec", dont_inherit=True), vars(main))
        else:
            sys.argv = [self.name, *self.arguments]
            runpy.run_path(self.name, run_name="__main__")


def begins(word: str) -> bool:
    """Whether a word of a command line begins a program, where an option might stand."""
    return not word.startswith("-") or word == "-" or word[:2] in _OPTIONS


def read(words: Sequence[str]) -> Program | None:
    """Returns the program that words name; None if there are none.

    A ``python`` in front of them is left out, with its options: ``python -u train.py``.

    Raises:
      UserError: they name none that each rank could run.
    """
    words, python = _without_python(list(words))
    if not words:
        return None
    first, *rest = words
    option = first[:2]
    if option in _OPTIONS:
        joined = [first[2:]] if len(first) > 2 else []
        named = [*joined, *rest]
        if not named:
            raise UserError(f"{option} needs a value: {_example(option)}")
        return Program(_OPTIONS[option], named[0], named[1:], python)
    if first == "-":
        raise UserError(
            "a script on standard input can be read once only, and every process runs it: write it "
            "to a file, or pass it with -c"
        )
    if first.startswith("-"):
        raise UserError(f"{first} is no option of Python's that can be passed on")
    return Program(SCRIPT, first, rest, python)


def _example(option: str) -> str:
    return "-m package.module" if option == "-m" else "-c 'import train; train.main()'"


def _without_python(words: list[str]) -> tuple[list[str], list[str]]:
    """Splits off a leading ``python`` that is no file here; returns the rest and its options."""
    if not words or not _PYTHON.fullmatch(Path(words[0]).name):
        return words, []
    if os.sep not in words[0] and Path(words[0]).exists():
        return words, []
    named = shutil.which(words[0])
    if named and Path(named).absolute().parent != Path(sys.executable).absolute().parent:
        sys.stderr.write(
            f"aggregathor: the processes run {sys.executable}, where aggregathor is installed, "
            f"not {named}\n"
        )
    rest, options = words[1:], []
    while rest and (rest[0] in _WITH_VALUE[:2] or _PYTHON_OPTIONS.fullmatch(rest[0])):
        taken = 2 if rest[0] in _WITH_VALUE else 1
        options += rest[:taken]
        rest = rest[taken:]
    return rest, options


def _set_path(first: str) -> None:
    """Sets where modules are looked for first; with Python's -P or -I that is nowhere special."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = first


def _check_script(name: str) -> None:
    path = Path(name)
    if path.is_dir():
        raise UserError(f"{name!r} is a directory; name the script in it")
    if not path.exists():
        raise UserError(f"there is no script {name!r}{_near(path)}")
    if path.suffix == ".ipynb":
        raise UserError(
            f"{name!r} is a notebook, and the processes run a script. Convert it: "
            f"jupyter nbconvert --to script {shlex.quote(name)}"
        )
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UserError(f"the script {name!r} cannot be read: {error.strerror}") from None
    is_compiled = source.startswith(importlib.util.MAGIC_NUMBER)
    if not is_compiled and not zipfile.is_zipfile(path):
        _compile(source, name)


def _near(path: Path) -> str:
    """Returns a hint where a file of a similar name is there."""
    if not path.parent.is_dir():
        return ""
    hint = near(path.name, [each.name for each in path.parent.glob("*.py")])
    return f": {hint}" if hint.startswith("did you mean") else ""


def _compile(source: bytes, name: str) -> None:
    """Raises ``UserError`` for what Python's compiler refuses; nothing is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # each rank says them
            compile(source, name, "exec", dont_inherit=True)
    except SyntaxError as error:
        where = f"{name}, line {error.lineno}" if error.lineno else name
        line = (error.text or "").strip()
        raise UserError(f"{where}: {error.msg}{f': {line}' if line else ''}") from None
    except ValueError as error:  # null bytes, before Python 3.12
        raise UserError(f"{name} is no Python script: {error}") from None


def _find_module(name: str) -> Path | None:
    """Returns the source of a module, None if it has none; imports no package.

    Raises:
      UserError: there is no such module, or it is a package without ``__main__``.
    """
    if name.endswith(".py"):
        raise UserError(
            f"-m takes a module's name, not a file's, got {name!r}: leave -m out, or take "
            f"-m {name.removesuffix('.py').replace(os.sep, '.')}"
        )
    folders: Sequence[str] | None = [os.getcwd(), *sys.path[1:]]
    spec = None
    for at, part in enumerate(parts := name.split(".")):
        spec = importlib.machinery.PathFinder.find_spec(part, folders)
        if spec is None and at == 0 and part:  # built in, or by a finder of an installation
            spec = importlib.util.find_spec(part)
        if spec is None:
            above = ".".join(parts[:at])
            where = f"the package {above}" if above else f"{os.getcwd()} or what is installed"
            raise UserError(f"there is no module {name!r}: no {part!r} in {where}")
        folders = spec.submodule_search_locations
        if folders is None and at < len(parts) - 1:
            above = ".".join(parts[: at + 1])
            raise UserError(f"there is no module {name!r}: {above} is no package")
    if folders is not None:
        spec = importlib.machinery.PathFinder.find_spec("__main__", folders)
        if spec is None:
            raise UserError(
                f"{name} is a package without a __main__.py: name one of its modules, as in "
                f"-m {name}.train"
            )
    assert spec is not None
    is_source = spec.origin is not None and spec.origin.endswith(".py")
    return Path(str(spec.origin)) if is_source else None
