"""What arrival rules do with a gradient, in NumPy and by kernels."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from aggregathor import ops
from aggregathor.protocols.arrival_rules import vectors_for
from aggregathor.protocols.vectors import NUMPY, dot, norm, wide_distance

SIZES = [1, 15, 16, 17, 63, 8191, 8192, 8193, 8207, 20_000]


@pytest.fixture(params=["NumPy", "kernels"])
def vectors(request):
    if request.param == "kernels":
        assert ops.has_arrays()  # else this tests NumPy twice
        return vectors_for(np.float32)
    return NUMPY


@pytest.mark.parametrize("d", SIZES)
def test_sums_are_those_of_float64(d, vectors):
    a_d, b_d = np.random.default_rng(d).standard_normal((2, d)).astype(np.float32)
    for scale in (1, 1e-30, 1e30):
        x_d, y_d = (np.float32(scale) * each_d for each_d in (a_d, b_d))
        wide_x_d, wide_y_d = x_d.astype(np.float64), y_d.astype(np.float64)
        size = np.linalg.norm(wide_x_d) * np.linalg.norm(wide_y_d)
        squares, product = vectors.products(x_d, y_d)
        assert squares == vectors.squares(x_d, None)
        assert squares == pytest.approx(wide_x_d @ wide_x_d, rel=1e-12)
        assert product == pytest.approx(wide_x_d @ wide_y_d, abs=1e-12 * size)
        between_d = (x_d - y_d).astype(np.float64)
        assert vectors.sq_distance(x_d, y_d, None) == pytest.approx(between_d @ between_d)
        assert norm(x_d, squares) == pytest.approx(np.linalg.norm(wide_x_d))
    assert vectors.sq_distance(a_d, a_d, None) == 0


@pytest.mark.parametrize("d", SIZES)
def test_what_is_summed_can_be_copied(d, vectors):
    a_d, b_d, copy_d = np.random.default_rng(d).standard_normal((3, d)).astype(np.float32)
    assert vectors.squares(a_d, copy_d) == vectors.squares(a_d, None)
    np.testing.assert_array_equal(copy_d, a_d)
    assert vectors.sq_distance(b_d, a_d, copy_d) == vectors.sq_distance(b_d, a_d, None)
    np.testing.assert_array_equal(copy_d, b_d)


@pytest.mark.parametrize("where", [0, 100, -1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sum_is_not_finite_exactly_where_a_value_is_not(value, where, vectors):
    largest_d = np.full(8200, np.finfo(np.float32).max)
    assert np.isfinite(vectors.squares(largest_d, None))
    largest_d[where] = value
    assert not np.isfinite(vectors.squares(largest_d, None))
    assert not np.isfinite(vectors.sq_distance(largest_d, np.zeros_like(largest_d), None))


@pytest.mark.parametrize("d", SIZES)
def test_kernels_have_the_bits_of_numpy_for_means_and_multiples(d):
    kernels = vectors_for(np.float32)
    rng = np.random.default_rng(d)
    means = [rng.standard_normal(d).astype(np.float32)] * 2
    means = [each_d.copy() for each_d in means]
    outs = [np.empty(d, np.float32) for _ in range(2)]
    for count in range(2, 12):
        value_d = (10.0 ** rng.uniform(-44, 38, d) * rng.choice([-1, 1], d)).astype(np.float32)
        for each, mean_d, out_d in zip((NUMPY, kernels), means, outs, strict=True):
            each.move_mean(mean_d, value_d, count)
            each.scale(value_d, 1 / count, out_d)
        for pair in (means, outs):
            np.testing.assert_array_equal(pair[0].view(np.int32), pair[1].view(np.int32))
    assert np.isfinite(means[0]).all()


def test_float64_is_numpys():
    assert vectors_for(np.float64) is NUMPY
    a_d, b_d = np.random.default_rng(0).standard_normal((2, 9000))
    assert dot(a_d, b_d) == pytest.approx(a_d @ b_d, rel=1e-12)


def test_a_difference_may_be_larger_than_float32_has(vectors):
    a_d = np.full(3, 3e38, np.float32)
    assert vectors.sq_distance(a_d, -a_d, None) == np.inf
    assert wide_distance(a_d, -a_d) == pytest.approx(6e38 * 3**0.5, rel=1e-6)


@pytest.mark.parametrize("scale", [5e-324, 1e-200, 1e200])
def test_norms_whose_squares_leave_float64(scale):
    values = np.array([0.0, scale, 0.0])
    assert norm(values, dot(values, values)) == scale
    assert norm(np.zeros(3), 0.0) == 0


def digest():
    """Returns one of what the kernels compute of a fixed stream of vectors."""
    kernels = vectors_for(np.float32)
    rng = np.random.default_rng(0)
    found = hashlib.sha256()
    for d in SIZES:
        a_d, b_d = rng.standard_normal((2, d)).astype(np.float32)
        sums = [*kernels.products(a_d, b_d), kernels.sq_distance(a_d, b_d, None)]
        kernels.move_mean(b_d, a_d, 3)
        found.update(np.array(sums).tobytes() + b_d.tobytes())
    return found.hexdigest()


@pytest.mark.long
def test_all_instruction_sets_have_the_same_bits():
    here = digest()
    built = ops.state().build["instruction_sets"]
    code = "from tests.protocols.test_vectors import digest; print(digest())"
    for name in built[: built.index(ops.state().in_use) + 1]:
        environment = {**os.environ, "AGGREGATHOR_KERNELS": name}
        ran = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert ran.stdout.split()[-1] == here, name
