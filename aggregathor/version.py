"""The project's version, and those of TensorFlow and Keras that it was made for and tested with."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from aggregathor.errors import UserError

__version__ = "0.1.0"
TENSORFLOW_SERIES = "2.21"
KERAS = ("3.12", "3.15")  # the first and the last series that tests/dropin passed with
KERAS_REQUIREMENT = "keras>=3.12,<3.16"  # as in pyproject.toml

# What setup.py writes to build.json; "instruction_sets" are names.
BUILD_FACT_TYPES = {
    "version": str,
    "tensorflow": str,
    "compiler": str,
    "instruction_sets": list,
    "cuda": str,
    "library_bytes": int,
    "library_sha256": str,
}


class VersionError(UserError, ImportError):
    """This version, or its library, does not work with the installed TensorFlow or Keras."""


def series(version: str) -> str:
    """Returns "2.21" for "2.21.0-rc1"; "" if there are no two numbers."""
    found = re.match(r"(\d+\.\d+)\b", version)
    return found.group(1) if found else ""


def is_tested_keras(version: str) -> bool:
    """Whether a version of Keras is of a series that was tested."""
    first, last = (_numbers(each) for each in KERAS)
    return first <= _numbers(series(version)) <= last


def _numbers(series: str) -> list[int]:
    return [int(number) for number in series.split(".") if number]


def read_build_facts(path: Path) -> dict[str, Any]:
    """Returns what setup.py wrote about the native library, without facts that cannot be read."""
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(facts, dict):
        return {}
    known = {
        name: facts[name]
        for name, kind in BUILD_FACT_TYPES.items()
        if isinstance(facts.get(name), kind)
    }
    if not all(isinstance(name, str) for name in known.get("instruction_sets", [])):
        del known["instruction_sets"]
    return known


def check_whole(library: Path, facts: dict[str, Any]) -> None:
    """Raises OSError unless the library is what setup.py linked.

    A truncated one kills the process: the missing pages are mapped, and touching them is a SIGBUS.
    """
    size, linked = library.stat().st_size, facts.get("library_bytes")
    if linked is not None and size != linked:
        raise OSError(f"damaged: {size} bytes, and {linked} were built")
    digest = facts.get("library_sha256")
    if digest is not None and hashlib.sha256(library.read_bytes()).hexdigest() != digest:
        raise OSError("damaged: not the bytes that were built")


def require_tensorflow(version: str) -> None:
    """Raises ``VersionError`` unless ``version`` is in the series that the ops are built for.

    A custom op uses TensorFlow's C++ interface, which changes from one series to the next.
    """
    if series(version) != TENSORFLOW_SERIES:
        raise VersionError(
            f"aggregathor {__version__} needs TensorFlow {TENSORFLOW_SERIES} and {version} is "
            f"installed: pip install 'tensorflow~={TENSORFLOW_SERIES}.0' and reinstall aggregathor."
        )
