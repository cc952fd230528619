"""The repetition code: bit-equal whatever s workers of a group send."""

import numpy as np
import pytest

from aggregathor.protocols.repetition import Repetition, median_of_present

SIZES = [(3, 3), (15, 3), (15, 5), (14, 7), (8, 4)]


def sent(code, gradients_pd):
    return np.stack(
        [
            code.encode([gradients_pd[j] for j in code.batches_of(k)], k)
            for k in range(code.num_workers)
        ]
    )


@pytest.fixture
def gradients(rng):
    return lambda n, d=500: rng.standard_normal((n, d)).astype(np.float32)


def test_workers_of_a_group_compute_the_same_batches():
    code = Repetition(6, 3)
    assert [code.batches_of(k) for k in range(6)] == 3 * [[0, 1, 2]] + 3 * [[3, 4, 5]]
    assert [code.group_of(k) for k in range(6)] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(("n", "r"), SIZES)
def test_the_mean_is_that_of_all_batches(n, r, gradients):
    code = Repetition(n, r)
    gradients_pd = gradients(n)
    decoded = code.decode(sent(code, gradients_pd))
    np.testing.assert_allclose(decoded.mean_d, gradients_pd.mean(axis=0), atol=1e-6)
    np.testing.assert_array_equal(decoded.usage_n, 1)
    assert decoded.unverified == 0


@pytest.mark.parametrize("value", [-100, 1e20, -np.inf, np.nan, 1e-30])
@pytest.mark.parametrize(("n", "r"), SIZES)
def test_s_workers_of_each_group_change_no_bit(n, r, value, gradients, rng):
    code = Repetition(n, r)
    stack_nd = sent(code, gradients(n))
    clean_d = code.decode(stack_nd).mean_d
    wrong = np.concatenate(
        [first + rng.choice(r, code.most_wrong, replace=False) for first in range(0, n, r)]
    )
    stack_nd[wrong] = value
    decoded = code.decode(stack_nd)
    np.testing.assert_array_equal(decoded.mean_d, clean_d)
    np.testing.assert_array_equal(np.flatnonzero(decoded.usage_n == 0), np.sort(wrong))
    assert decoded.unverified == 0


def test_copies_that_differ_by_rounding_give_a_value_among_them(gradients, rng):
    code = Repetition(5, 5)
    copies = np.repeat(gradients(1), 5, axis=0)
    copies *= (1 + 1e-6 * rng.standard_normal(copies.shape)).astype(np.float32)
    honest_nd = copies[2:].copy()
    copies[:2] = -100
    decoded = code.decode(copies)
    assert np.all(honest_nd.min(axis=0) <= decoded.mean_d)
    assert np.all(decoded.mean_d <= honest_nd.max(axis=0))
    np.testing.assert_array_equal(decoded.usage_n, [0, 0, 1, 1, 1])
    assert decoded.unverified == 0


def test_losses_and_wrong_copies_together(gradients):
    """r = 5: 2 wrong + lost < 5."""
    code = Repetition(10, 5)
    stack_nd = sent(code, gradients(10))
    clean_d = code.decode(stack_nd).mean_d
    stack_nd[0] = 1e9
    stack_nd[1, :200] = np.nan
    stack_nd[2, 100:300] = np.nan
    stack_nd[7:9] = np.nan
    decoded = code.decode(stack_nd)
    np.testing.assert_array_equal(decoded.mean_d, clean_d)
    np.testing.assert_allclose(decoded.usage_n, [0, 0.6, 0.6, 1, 1, 1, 1, 0, 0, 1])
    assert decoded.unverified == 0


def test_columns_with_too_few_copies_are_left_alone_and_reported(gradients):
    code = Repetition(10, 5)
    stack_nd = sent(code, gradients(10))
    clean_d = code.decode(stack_nd).mean_d
    stack_nd[:3, :50] = np.nan  # 2 copies are left: both could be wrong
    decoded = code.decode(stack_nd)
    np.testing.assert_array_equal(decoded.mean_d[:50], 0)
    np.testing.assert_array_equal(decoded.mean_d[50:], clean_d[50:])
    assert decoded.unverified == pytest.approx(50 / 500)


def random_bits(rng, d):
    return rng.integers(0, 2**32, d, np.uint32).view(np.float32)


@pytest.mark.parametrize("others_lost", [0, 0.1, 1], ids=["nothing", "datagrams", "all"])
@pytest.mark.parametrize(("n", "r"), [(6, 3), (10, 5)])
def test_what_wrong_copies_could_decide_is_never_taken(n, r, others_lost, gradients, rng):
    """A worker that sends random bits, and of which copies are lost beside it."""
    code = Repetition(n, r)
    stack_nd = sent(code, gradients(n, 5000))
    clean_d = code.decode(stack_nd).mean_d
    honest = np.arange(1, r)
    stack_nd[0] = random_bits(rng, 5000)
    if others_lost == 1:
        stack_nd[honest[: r - code.most_wrong - 1]] = np.nan
    else:
        for row in honest:
            stack_nd[row, rng.random(5000) < others_lost] = np.nan
    decoded = code.decode(stack_nd)
    # The wrong copy is known by the columns that all have, so that one honest copy is enough of
    # r = 3. Where no column has enough, two copies that differ are one against the other.
    here_d = ~np.isnan(stack_nd[honest]).all(axis=0)
    if others_lost == 1 and r == 3:
        assert decoded.unverified == 1
        np.testing.assert_array_equal(decoded.mean_d, 0)
    elif r == 3:
        np.testing.assert_array_equal(decoded.mean_d, np.where(here_d, clean_d, 0))
        assert decoded.unverified == pytest.approx(1 - here_d.mean())
    else:
        is_sure_d = decoded.mean_d != 0
        np.testing.assert_array_equal(decoded.mean_d[is_sure_d], clean_d[is_sure_d])
        assert decoded.unverified == pytest.approx(1 - is_sure_d.mean())
        assert decoded.unverified < 0.01
    assert decoded.divided == ()


def test_where_losses_leave_two_copies_they_are_taken_if_they_agree(gradients, rng):
    code = Repetition(3, 3)
    stack_nd = sent(code, gradients(3, 900))
    clean_d = code.decode(stack_nd).mean_d
    stack_nd[2] = np.nan
    stack_nd[1] *= (1 + 1e-7 * rng.standard_normal(900)).astype(np.float32)
    decoded = code.decode(stack_nd)
    np.testing.assert_allclose(decoded.mean_d, clean_d, rtol=1e-6)
    assert decoded.unverified == 0
    stack_nd[1, :10] *= -1  # then nothing says which of the two is right where they differ
    decoded = code.decode(stack_nd)
    assert not decoded.mean_d[:10].any()
    assert 0 < decoded.unverified <= 1


def test_a_group_without_a_majority_is_reported(gradients):
    code = Repetition(6, 3)
    stack_nd = sent(code, gradients(6))
    stack_nd[0] *= 2
    stack_nd[1] *= 3
    assert code.decode(stack_nd).unverified == 1


def test_a_mean_is_rounded_once():
    rows = [np.array([1, 1e-8, 3e38], np.float32), np.array([1e-8, 1e-8, 3e38], np.float32)]
    expected = (rows[0].astype(np.float64) + rows[1]) / 2
    np.testing.assert_array_equal(Repetition(2, 2).encode(rows, 0), expected.astype(np.float32))


def test_r_divides_n():
    with pytest.raises(ValueError, match="r=3 does not divide n=7"):
        Repetition(7, 3)


@pytest.mark.parametrize("r", [1, 2, 5, 6])
def test_the_median_is_that_of_what_is_present(r, rng):
    copies = rng.standard_normal((r, 400)).astype(np.float32)
    copies[rng.random(copies.shape) < 0.4] = np.nan
    copies[:, 0] = np.nan
    expected = [np.median(c[~np.isnan(c)]) if (~np.isnan(c)).any() else 0 for c in copies.T]
    np.testing.assert_allclose(median_of_present(copies), expected, rtol=1e-6)
