import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossympi import FILLS, fill, num_datagrams
from lossympi.link import floats_of
from lossympi.rng import generator

STALE = np.float32(123456.0)  # what another round, or another worker, left in the buffer
FLOAT32_MAX = float(np.finfo(np.float32).max)


def holes(arrived_nc, dim):
    """The oracle: a coordinate at a time, where the library repeats and slices."""
    return np.array([[not row[k // 352] for k in range(dim)] for row in arrived_nc])


def stale_stack(sent_nd, arrived_nc):
    return np.where(holes(arrived_nc, sent_nd.shape[1]), STALE, sent_nd)


def bitmaps():
    def of_size(size):
        n, dim = size
        row = st.lists(st.booleans(), min_size=num_datagrams(dim), max_size=num_datagrams(dim))
        rows = st.lists(row, min_size=n, max_size=n)
        return st.tuples(st.just(dim), rows.map(lambda rows: np.array(rows, bool)))

    dims = st.sampled_from([1, 351, 352, 353, 704, 1000])
    return st.tuples(st.integers(1, 4), dims).flatmap(of_size)


@settings(derandomize=True, deadline=None)
@given(case=bitmaps(), policy=st.sampled_from(FILLS))
def test_fills_the_holes_of_the_bitmap_and_nothing_else(case, policy):
    dim, arrived_nc = case
    rng = np.random.default_rng(0)
    sent_nd = rng.standard_normal((len(arrived_nc), dim)).astype(np.float32)
    previous_nd = sent_nd + 10
    stack_nd = stale_stack(sent_nd, arrived_nc)
    fill(stack_nd, arrived_nc, policy, previous_nd=previous_nd)
    lost_nd = holes(arrived_nc, dim)
    np.testing.assert_array_equal(stack_nd[~lost_nd], sent_nd[~lost_nd])
    assert not np.any(stack_nd[lost_nd] == STALE)
    if policy == "random":
        assert np.isfinite(stack_nd[lost_nd]).all()
    else:
        filled_nd = {"nan": np.full_like(sent_nd, np.nan), "zero": 0 * sent_nd}
        expected_nd = filled_nd.get(policy, previous_nd)
        np.testing.assert_array_equal(stack_nd[lost_nd], expected_nd[lost_nd])


def fill_by_masks(stack_nd, arrived_nc, policy, seed, round, previous_nd, floats):
    """The oracle of bits: a mask over each row, as `fill` was written first."""
    for worker, arrived_c in enumerate(arrived_nc):
        row_d, lost_d = stack_nd[worker], floats_of(~arrived_c, stack_nd.shape[1], floats)
        if policy == "nan":
            row_d[lost_d] = np.nan
        elif policy == "random" and lost_d.any():
            arrived = row_d[~lost_d]
            finite = arrived[np.isfinite(arrived)]
            scale = np.sqrt(np.mean(np.square(finite, dtype=np.float64))) if finite.size else 0.0
            drawn = generator("fill", seed, round, worker).standard_normal(lost_d.sum())
            row_d[lost_d] = np.clip(scale * drawn, -FLOAT32_MAX, FLOAT32_MAX)
        elif policy == "previous" and previous_nd is not None:
            row_d[lost_d] = previous_nd[worker][lost_d]
        else:
            row_d[lost_d] = 0


@given(
    floats=st.sampled_from([1, 2, 352, 356, 704]),
    dim=st.integers(1, 1500),
    loss=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    policy=st.sampled_from(FILLS),
    first=st.booleans(),
    order=st.sampled_from("CF"),
    seed=st.integers(0, 2**32),
)
def test_every_bit_is_that_of_masks_over_rows(floats, dim, loss, policy, first, order, seed):
    rng = np.random.default_rng(seed)
    arrived_nc = rng.random((3, num_datagrams(dim, floats))) >= loss
    stack_nd = rng.standard_normal((3, dim)).astype(np.float32, order=order)
    stack_nd[rng.random((3, dim)) < 0.01] = np.nan
    previous_nd = None if first else rng.standard_normal((3, dim)).astype(np.float32)
    expected_nd = stack_nd.copy()
    fill_by_masks(expected_nd, arrived_nc, policy, seed, 5, previous_nd, floats)
    fill(
        stack_nd,
        arrived_nc,
        policy,
        seed=seed,
        round=5,
        previous_nd=previous_nd,
        floats_per_datagram=floats,
    )
    np.testing.assert_array_equal(stack_nd, expected_nd)
    np.testing.assert_array_equal(np.signbit(stack_nd), np.signbit(expected_nd))


@pytest.mark.parametrize("dim", [1, 352, 353, 1000])
@pytest.mark.parametrize("policy", FILLS)
def test_nothing_stale_survives_in_a_row_lost_as_a_whole(policy, dim):
    arrived_nc = np.ones((3, num_datagrams(dim)), bool)
    arrived_nc[1] = False
    stack_nd = np.full((3, dim), STALE)
    fill(stack_nd, arrived_nc, policy)
    np.testing.assert_array_equal(stack_nd[1], np.nan if policy == "nan" else 0)
    np.testing.assert_array_equal(stack_nd[[0, 2]], STALE)


def test_nan_fill_writes_nan_not_zero_bytes():
    stack_nd = np.ones((1, 353), np.float32)
    fill(stack_nd, np.array([[False, True]]), "nan")
    assert np.isnan(stack_nd[0, :352]).all()
    assert stack_nd[0, 352] == 1


def test_a_hole_is_filled_where_it_is():
    # Only worker 1's middle datagram is lost, and it holds worker 0's bytes: a fill that writes
    # behind the last datagram received, instead of in the hole, would leave them there.
    sent_nd = np.repeat(np.array([[1], [2], [3]], np.float32), 3 * 352, axis=1)
    arrived_nc = np.array([[True, True, True], [True, False, True], [True, True, True]])
    stack_nd = sent_nd.copy()
    stack_nd[1, 352:704] = sent_nd[0, 352:704]
    fill(stack_nd, arrived_nc, "zero")
    sent_nd[1, 352:704] = 0
    np.testing.assert_array_equal(stack_nd, sent_nd)


@pytest.mark.parametrize("policy", FILLS)
def test_what_arrived_is_kept_bit_by_bit(policy):
    sent = np.array([np.nan, np.inf, -np.inf, -0.0, FLOAT32_MAX], np.float32)
    sent.view(np.uint32)[0] = 0x7F80BEEF  # a signalling NaN with a payload
    stack_nd = np.zeros((1, 357), np.float32)
    stack_nd[0, 352:] = sent
    fill(stack_nd, np.array([[False, True]]), policy)
    np.testing.assert_array_equal(stack_nd[0, 352:].view(np.uint32), sent.view(np.uint32))


@pytest.mark.parametrize("policy", FILLS)
def test_nothing_missing_writes_nothing(policy):
    stack_nd = np.ones((2, 353), np.float32)
    stack_nd.setflags(write=False)  # a write would raise
    fill(stack_nd, np.ones((2, 2), bool), policy)


def test_previous_is_the_last_round_as_filled():
    stack_nd = np.full((1, 704), STALE)
    stack_nd[0, :352] = 1
    fill(stack_nd, np.array([[True, False]]), "previous")
    np.testing.assert_array_equal(stack_nd[0], [1] * 352 + [0] * 352)  # first round: 0

    previous_nd = stack_nd.copy()
    stack_nd[0, :352] = STALE
    stack_nd[0, 352:] = 2
    fill(stack_nd, np.array([[False, True]]), "previous", previous_nd=previous_nd)
    np.testing.assert_array_equal(stack_nd[0], [1] * 352 + [2] * 352)

    previous_nd = stack_nd.copy()
    stack_nd[:] = STALE
    fill(stack_nd, np.array([[False, False]]), "previous", previous_nd=previous_nd)
    np.testing.assert_array_equal(stack_nd[0], [1] * 352 + [2] * 352)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 5.0, 1e30])
def test_random_has_the_scale_of_what_arrived(scale):
    num_datagrams = 200
    arrived_c = np.arange(num_datagrams) % 2 == 0
    stack_nd = np.full((1, num_datagrams * 352), STALE)
    lost_d = np.repeat(~arrived_c, 352)
    stack_nd[0, ~lost_d] = scale * np.resize([1, -7], np.count_nonzero(~lost_d))
    stack_nd[0, :3] = np.nan, np.inf, -np.inf  # sent by the worker: no part of the scale
    fill(stack_nd, arrived_c[None], "random")
    filled = stack_nd[0, lost_d].astype(np.float64) / (5 * scale)  # sqrt((1 + 49) / 2) = 5
    # 35200 draws: the mean's deviation is 0.0053, the standard deviation's 0.0038.
    assert abs(filled.mean()) < 0.02
    assert abs(filled.std() - 1) < 0.02
    assert abs(np.mean(np.abs(filled) < 1) - 0.6827) < 0.01  # Gaussian


@pytest.mark.parametrize(
    ("arrived", "scale"), [(np.nan, 0), (np.inf, 0), (0, 0), (1e30, 1e30), (FLOAT32_MAX, 3e38)]
)
def test_random_is_finite_whatever_arrived(arrived, scale):
    stack_nd = np.full((1, 704), np.nan, np.float32)
    stack_nd[0, :352] = arrived
    fill(stack_nd, np.array([[True, False]]), "random")
    filled = stack_nd[0, 352:]
    assert np.isfinite(filled).all()
    assert (np.abs(filled).max() > scale) if scale else not filled.any()


def test_random_depends_on_seed_round_and_worker_only():
    def filled(seed, round, rows):
        stack_nd = np.ones((len(rows), 704), np.float32)
        arrived_nc = np.array([[True, not lost] for lost in rows])
        fill(stack_nd, arrived_nc, "random", seed=seed, round=round)
        return stack_nd[:, 352:]

    both = filled(0, 0, [True, True])
    np.testing.assert_array_equal(both[1], filled(0, 0, [False, True])[1])
    draws = [both[0], both[1], filled(1, 0, [True])[0], filled(0, 1, [True])[0]]
    assert len({draw.tobytes() for draw in draws}) == len(draws)


def test_unknown_policy_names_the_policies():
    with pytest.raises(ValueError, match="nan, zero, random, previous; got 'mean'"):
        fill(np.zeros((1, 1), np.float32), np.ones((1, 1), bool), "mean")


def float32(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("stack_nd", "arrived_nc", "previous_nd", "message"),
    [
        (float32(353), np.ones((1, 2), bool), None, r"stack_nd must be \[n, d\].* 1 dimensions"),
        (np.zeros((1, 353), "f2"), np.ones((1, 2), bool), None, "stack_nd .*got float16"),
        ([[0.0]], np.ones((1, 1), bool), None, "stack_nd .*got list"),
        (float32(1, 353), np.ones((1, 1), bool), None, r"arrived_nc .*bool \[1, 2\]; got bool"),
        (float32(1, 353), np.ones((1, 353), bool), None, r"arrived_nc .*got bool \[1, 353\]"),
        (float32(1, 353), np.ones((1, 2), int), None, "arrived_nc .*got int64"),
        (float32(1, 353), np.ones((1, 2), bool), np.zeros((1, 353)), "previous_nd .*got float64"),
        (float32(1, 353), np.ones((1, 2), bool), float32(353), r"previous_nd .*got float32 \[353"),
    ],
)
def test_arrays_of_another_shape_or_dtype_are_refused(stack_nd, arrived_nc, previous_nd, message):
    with pytest.raises(ValueError, match=message):
        fill(stack_nd, arrived_nc, "previous", previous_nd=previous_nd)


def test_the_receive_buffer_is_no_previous_round():
    stack_nd = float32(2, 353)
    with pytest.raises(ValueError, match="Pass a copy"):
        fill(stack_nd, np.ones((2, 2), bool), "previous", previous_nd=stack_nd)
