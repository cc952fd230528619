"""Which packages this Python lacks, in words; of Python's standard library alone."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

NEEDED = {"numpy": "numpy", "rich": "rich", "mpi4py": "mpi4py", "cryptography": "cryptography"}


def missing(needed: Mapping[str, str] = NEEDED) -> list[str]:
    """Returns the names to install of what cannot be imported, given by the names to import."""
    return [name for module, name in needed.items() if importlib.util.find_spec(module) is None]


def lacks(names: list[str]) -> str:
    """Returns a line that says what this Python lacks, and another that says what to do."""
    version = ".".join(map(str, sys.version_info[:3]))
    installed = shutil.which("aggregathor")
    beside = Path(installed).resolve().parent / "python" if installed else None
    other = f", or use {beside}" if beside is not None and beside.exists() else ""
    return (
        f"this Python, {sys.executable} ({version}), lacks {', '.join(names)}.\n"
        f"Install them into it, `{sys.executable} -m pip install .` in the checkout, or use the "
        f"Python of the environment where aggregathor is installed{other}."
    )
