"""The CUDA kernels, as far as they can be tried without a GPU."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from aggregathor import ops
from aggregathor.ops import loader

ROOT = Path(__file__).parents[2]
OF_STACKS = (
    "AggregathorMean",
    "AggregathorWindowMean",
    "AggregathorSqDistances",
    "AggregathorMeanOfRows",
    "AggregathorBulyanTail",
    "AggregathorGeometricMedian",
)
DTYPES = {1: "float32", 2: "float64"}  # as TensorFlow numbers them
OF_DISTANCES = ("AggregathorKrumSelect", "AggregathorBulyanSelect", "AggregathorBruteSelect")


@pytest.fixture
def gpu_kernels():
    """Of an op, the element types and host inputs and outputs of its kernels for GPUs."""
    from tensorflow.python.framework import kernels

    with ops.using("native"):
        if not ops.state().build.get("cuda"):
            pytest.skip("this build has no CUDA kernels: nvcc was not found or failed")

    def of(op):
        found = kernels.get_registered_kernels_for_op(op).kernel
        return {
            next((DTYPES[c.allowed_values.list.type[0]] for c in each.constraint), ""): list(
                each.host_memory_arg
            )
            for each in found
            if each.device_type == "GPU"
        }

    return of


@pytest.mark.parametrize("op", OF_STACKS)
def test_every_rule_is_registered_for_gpus(op, gpu_kernels):
    on_host = {
        "AggregathorWindowMean": ["share_n"],
        "AggregathorMeanOfRows": ["rows"],
        "AggregathorBulyanTail": ["groups"],
        "AggregathorGeometricMedian": ["weight_n"],
    }.get(op, [])
    assert gpu_kernels(op) == {"float32": on_host, "float64": on_host}


@pytest.mark.parametrize("op", OF_DISTANCES)
def test_selections_run_on_the_host(op, gpu_kernels):
    (on_host,) = gpu_kernels(op).values()
    assert on_host[0] == "sq_dist_nn"
    assert len(on_host) == 2  # and the output


def test_library_has_the_kernels(gpu_kernels):
    library = loader.LIBRARY.read_bytes()
    for kernel in (b"WindowMean", b"BulyanTail", b"ComparePairs", b"CompareTo", b"WeightedMean"):
        assert kernel in library


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
@pytest.mark.long
def test_kernels_run_on_the_cpu():
    script = ROOT / "scripts" / "check-cuda-on-cpu"
    done = subprocess.run([script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.endswith("cuda: 0 failures\n")
