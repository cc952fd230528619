"""Stacks of more than 2^31 values, which take no memory."""

import mmap
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from aggregathor import gars, ops
from tests.gars.kernel_sets import instruction_sets

ROOT = Path(__file__).parents[2]


@pytest.mark.long
@pytest.mark.skipif(not instruction_sets(), reason="no kernels were built")
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
def test_every_kernel_beyond_2_to_31_values():
    """And rows of more than 2^31: see tests/native/large_test.cc."""
    best = instruction_sets()[-1]
    done = subprocess.run(
        [ROOT / "scripts" / "native-test", "large_test", best, "-O2", "-pthread"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"{best}: 0 failures\n"


@pytest.mark.skipif(ops.state().in_use == "tensorflow", reason="the stand-in makes copies")
def test_the_op_takes_more_than_2_to_31_values():
    n, d = 67, 32_100_001
    assert n * d > 2**31
    # Pages that nobody has written to are all the same page of zeros; huge ones would be too many.
    memory = mmap.mmap(-1, 4 * n * d, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    stack_nd = np.frombuffer(memory, np.float32).reshape(n, d)
    columns = np.array([0, 1, 63, 64, d // 2, d - 2, d - 1])
    written = np.random.default_rng(0).standard_normal((n, len(columns)))
    stack_nd[:, columns] = written
    # Shares the memory, which tf.constant would copy.
    stack = tf.experimental.dlpack.from_dlpack(stack_nd.__dlpack__())

    grad_d = gars.median(stack, f=1).numpy()
    np.testing.assert_array_equal(grad_d[columns], np.median(stack_nd[:, columns], axis=0))
    assert np.count_nonzero(grad_d) == len(columns)
