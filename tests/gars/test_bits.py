"""The same bits on any number of threads and with any instruction set."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from aggregathor import ops
from tests.gars.kernel_sets import instruction_sets
from tests.warm.start import python as warm_python

PROGRAM = Path(__file__).with_name("print_digests.py")
ROOT = PROGRAM.parents[2]


@pytest.fixture(scope="module")
def printed():
    """What the program prints, by (kernels, threads); a few processes, all at once."""
    runs = [("auto", 1), ("auto", 4), *((name, 2) for name in instruction_sets())]
    programs = {}
    for kernels, threads in runs:
        variables = {ops.KERNELS_VARIABLE: kernels, "PYTHONPATH": str(ROOT)}
        programs[kernels, threads] = subprocess.Popen(
            [*warm_python(), PROGRAM, str(threads)],
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    results = {}
    for run, program in programs.items():
        out, errors = program.communicate()
        assert program.returncode == 0, errors
        results[run] = json.loads(out)
    return results


def test_threads_do_not_matter(printed):
    best = instruction_sets()[-1]
    assert printed["auto", 1]["in_use"] == best
    assert printed[best, 2]["digests"] == printed["auto", 1]["digests"]
    assert printed["auto", 4]["digests"] == printed["auto", 1]["digests"]


def test_arrays_give_what_tensors_give(printed):
    for run, result in printed.items():
        digests = result["digests"]
        of_arrays = {k.removesuffix(" array"): v for k, v in digests.items() if "array" in k}
        of_tensors = {k.removesuffix(" tensor"): v for k, v in digests.items() if "tensor" in k}
        assert of_arrays == of_tensors, run
        assert len(of_arrays) == len(digests) / 2


def test_instruction_sets_do_not_matter(printed):
    """Sums of distances are added in registers of other widths: they choose rows, and weigh them.

    The rows chosen are the same, so only the geometric median's bits depend on the weights.
    """
    best = instruction_sets()[-1]
    for name in instruction_sets():
        assert printed[name, 2]["in_use"] == name
        digests = {run: without_weights(printed[run, 2]["digests"]) for run in (name, best)}
        assert digests[name] == digests[best], name


def without_weights(digests):
    return {key: value for key, value in digests.items() if "geometric-median" not in key}
