"""Finds and loads the native library once, and says what it found."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType

import numpy as np
import tensorflow as tf

from aggregathor.errors import UserError, near
from aggregathor.ops import arrays
from aggregathor.version import (
    VersionError,
    check_whole,
    read_build_facts,
    require_tensorflow,
    series,
)

LIBRARY = Path(__file__).with_name("libaggregathor_ops.so")
BUILD_FACTS = Path(__file__).with_name("build.json")
INSTRUCTION_SETS = ("baseline", "avx2", "avx512")
# auto (default, and what an empty value means), one of INSTRUCTION_SETS, or tensorflow for the
# stand-in.
KERNELS_VARIABLE = "AGGREGATHOR_KERNELS"
REBUILD = "rebuild it with `pip install --force-reinstall --no-deps .` in the checkout"
BUILD_ALL = "`make native` in the checkout builds it for all instruction sets"


@dataclass(frozen=True)
class State:
    """What computes the rules in this process.

    Attributes:
      in_use: "avx512", "avx2", "baseline", or "tensorflow" for the stand-in.
      reason: why the stand-in is in use, "" for a native library.
      build: what setup.py wrote about the library: TensorFlow, compiler, instruction sets.
    """

    in_use: str
    reason: str
    build: dict


_forced: ModuleType | None = None


def kernels() -> ModuleType:
    """Returns the module with the kernels: native where it can be, else plain TensorFlow.

    Raises:
      VersionError: the library was built for another TensorFlow, or nobody knows for which; the
        message says what to do.
    """
    return _forced if _forced is not None else _load()[0]


def kernels_for(values: object) -> ModuleType:
    """Returns the module for arrays and their columns if it is one, else ``kernels()``."""
    return arrays if isinstance(values, (np.ndarray, arrays.Columns)) else kernels()


def has_arrays() -> bool:
    """Whether there are kernels for arrays."""
    return kernels().has_arrays()


def state() -> State:
    """Returns what ``kernels()`` chose; loads it if that has not happened yet."""
    return _load()[1]


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """Makes ``kernels()`` the "native" or the "tensorflow" one for a while, for tests."""
    global _forced
    before, _forced = _forced, _stand_in() if name == "tensorflow" else _native_module(LIBRARY)
    try:
        yield
    finally:
        _forced = before


@functools.cache
def _load() -> tuple[ModuleType, State]:
    require_tensorflow(tf.__version__)
    wanted = os.environ.get(KERNELS_VARIABLE) or "auto"
    known = ("auto", *INSTRUCTION_SETS, "tensorflow")
    if wanted not in known:
        raise UserError(f"{KERNELS_VARIABLE}={wanted!r} names no kernels: {near(wanted, known)}")
    if wanted == "tensorflow":
        return _stand_in(), State("tensorflow", f"{KERNELS_VARIABLE}=tensorflow asks for it", {})
    if not LIBRARY.exists():
        return _fall_back(f"{LIBRARY.name} was not built; {REBUILD}", {})

    build = read_build_facts(BUILD_FACTS)
    built_for = build.get("tensorflow")
    if not built_for:
        raise VersionError(
            f"{BUILD_FACTS.name} is missing or damaged, so that nobody knows for which TensorFlow "
            f"{LIBRARY.name} was built; {REBUILD}, or set {KERNELS_VARIABLE}=tensorflow to go "
            "without it."
        )
    if series(built_for) != series(tf.__version__):
        raise VersionError(
            f"{LIBRARY.name} was built for TensorFlow {built_for} and {tf.__version__} is "
            f"installed. Install the one it was built for or {REBUILD}, or set "
            f"{KERNELS_VARIABLE}=tensorflow to go without it."
        )
    try:
        module = _native_module(LIBRARY)
    except (tf.errors.OpError, OSError) as error:
        return _fall_back(f"{LIBRARY.name} could not be loaded ({error}); {REBUILD}", build)
    in_use = _instruction_set(LIBRARY)
    built = build.get("instruction_sets", [])
    if wanted != "auto" and wanted not in built:
        raise UserError(
            f"{KERNELS_VARIABLE}={wanted} was asked for and {LIBRARY.name} was built for "
            f"{', '.join(built) or 'nobody knows what'}; {BUILD_ALL}."
        )
    if not in_use:
        return _fall_back(
            f"{LIBRARY.name} was built for {', '.join(built)}, which this processor lacks; "
            f"{BUILD_ALL}",
            build,
        )
    if wanted not in ("auto", in_use):
        raise UserError(
            f"{KERNELS_VARIABLE}={wanted} was asked for and this processor has {in_use} at best "
            f"(built: {', '.join(built)})."
        )
    return module, State(in_use, "", build)


def _fall_back(reason: str, build: dict) -> tuple[ModuleType, State]:
    warnings.warn(
        f"aggregathor: rules run in plain TensorFlow, slower by far, because {reason}",
        RuntimeWarning,
        stacklevel=_caller_stacklevel(),
    )
    return _stand_in(), State("tensorflow", reason, build)


def _caller_stacklevel() -> int:
    """How far above the function that calls this one the user's code is."""
    frame, level = sys._getframe(1), 1  # noqa: SLF001 - cheaper than inspect.stack, and documented
    while frame.f_back is not None and _package(frame) in ("aggregathor", "tensorflow", "keras"):
        frame, level = frame.f_back, level + 1
    return level


def _package(frame: FrameType) -> str:
    return frame.f_globals.get("__name__", "").partition(".")[0]


def _stand_in() -> ModuleType:
    from aggregathor.ops import stand_in

    return stand_in


@functools.cache
def _native_module(library: Path) -> ModuleType:
    from aggregathor.ops import native

    check_whole(library, read_build_facts(BUILD_FACTS))
    native.load(library)
    return native


def _instruction_set(library: Path) -> str:
    function = ctypes.CDLL(str(library)).aggregathor_instruction_set
    function.restype = ctypes.c_char_p
    return function().decode()
