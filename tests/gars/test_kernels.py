"""The rules give what their definitions give with every instruction set.

With the best one all other tests of this folder run, many with the stand-in too; with
`make test-kernels` all of them run with each.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aggregathor import ops
from tests.gars.kernel_sets import instruction_sets

ROOT = Path(__file__).parents[2]
# Values that are complete and missing, at all sizes; ties; distances in float64.
SOME = "matches_definition and float32 and not infinite or ties_among or sq_distances"


def others():
    return [name for name in instruction_sets() if name != ops.state().in_use]


@pytest.mark.skipif(ops.state().in_use == "tensorflow", reason="the stand-in was asked for")
@pytest.mark.long
def test_every_instruction_set_matches_definitions():
    runs = {}
    for name in others():
        command = [sys.executable, "-m", "pytest", "tests/gars/test_reference.py", "-q", "-k", SOME]
        runs[name] = subprocess.Popen(
            [*command, "-p", "no:cacheprovider"],
            cwd=ROOT,
            env=os.environ | {ops.KERNELS_VARIABLE: name},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    for name, run in runs.items():
        said, _ = run.communicate()
        assert run.returncode == 0, f"{name}:\n{said}"
        assert " passed" in said


def test_the_one_asked_for_is_in_use():
    wanted = os.environ.get(ops.KERNELS_VARIABLE) or instruction_sets()[-1]
    assert wanted in ("auto", ops.state().in_use)
