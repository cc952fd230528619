"""The cyclic codes: published vectors, sums under attack, and what is reported where it fails."""

import numpy as np
import pytest

from aggregathor.protocols import linear
from aggregathor.protocols.cyclic import PAPER, REAL, Cyclic

SIZES = [(3, 1), (7, 2), (15, 3), (19, 4), (30, 3), (45, 5)]
TOLERANCE = 1e-5


def sent(code, gradients_pd):
    return np.stack(
        [
            code.encode([gradients_pd[j] for j in code.batches_of(k)], k)
            for k in range(code.num_workers)
        ]
    )


def gradients(rng, n, d, dtype=np.float32):
    shared_d = 0.3 * rng.standard_normal(d)
    return (rng.standard_normal((n, d)) + shared_d).astype(dtype)


def relative_error(decoded, gradients_pd):
    expected_d = gradients_pd.astype(np.float64).mean(axis=0)
    return np.linalg.norm(decoded.mean_d - expected_d) / np.linalg.norm(expected_d)


def test_the_real_code_of_7_workers_is_the_published_one():
    code = Cyclic(7, 2)
    taps = [0.107574, 0.241717, 0.301417, 0.241717, 0.107574]
    np.testing.assert_allclose(code.encoder_nn[0, :5], taps, atol=1e-6)
    np.testing.assert_allclose(code.encoder_nn[0, 5:], 0, atol=1e-15)
    assert code.batches_of(0) == [3, 4, 5, 6, 0]
    batches = np.arange(1, 8, dtype=np.float64)[:, None]
    z = [5.246980, 4.554958, 3.445042, 2.753020, 3, 4, 5]
    z_n1 = sent(code, batches)
    np.testing.assert_allclose(z_n1[:, 0], z, atol=1e-6)
    b_n = code.weights(np.isin(np.arange(7), [1, 4]))
    np.testing.assert_allclose(
        b_n, [1.300929, 0, 1.583501, 1.583501, 0, 1.300929, 1.231139], atol=1e-6
    )
    assert z_n1[:, 0] @ b_n == pytest.approx(28, abs=1e-6)


def test_the_real_code_of_3_workers_is_the_mean():
    np.testing.assert_allclose(Cyclic(3, 1).encoder_nn, np.full((3, 3), 1 / 3), atol=1e-12)


def test_taps_that_wrap_around_an_even_number_of_workers_change_sign():
    encoder_nn = Cyclic(6, 2).encoder_nn
    np.testing.assert_allclose(
        encoder_nn[0], [0.133975, 0.232051, 0.267949, 0.232051, 0.133975, 0], atol=1e-6
    )
    np.testing.assert_allclose(
        encoder_nn[5], [0.316987, 0.366025, 0.316987, 0.183013, 0, -0.183013], atol=1e-6
    )


def test_the_papers_code_has_1_as_the_last_tap_of_each_row():
    code = Cyclic(7, 2, PAPER)
    # C_L's last row is what c is the conjugate of: without wrong rows it gives the sum.
    np.testing.assert_allclose(code.encoder_nn @ code.plain_n, 1, atol=1e-12)
    assert np.abs(code.checks_pn @ code.encoder_nn.T).max() < 1e-12
    spectrum_nn = np.fft.fft(code.encoder_nn, axis=1) / np.sqrt(7)
    np.testing.assert_allclose(spectrum_nn[:, 2], 1, atol=1e-12)  # n - 2s - 1 = 2
    np.testing.assert_allclose(spectrum_nn[:, 3:], 0, atol=1e-12)  # the last 2s


@pytest.mark.parametrize("form", [REAL, PAPER])
@pytest.mark.parametrize(("n", "s"), [*SIZES, (44, 5), (6, 2), (5, 2)])
def test_a_code_is_what_its_definition_says(n, s, form):
    code = Cyclic(n, s, form)
    for j in range(n):
        support = {(j + i) % n for i in range(2 * s + 1)}
        assert set(np.flatnonzero(code.encoder_nn[j])) == support
    assert all(
        set(np.flatnonzero(code.encoder_nn[:, k])) == {*code.batches_of(k)} for k in range(n)
    )
    scale = np.abs(code.encoder_nn).max()
    assert np.abs(code.checks_pn @ code.encoder_nn.T).max() < 1e-9 * scale
    np.testing.assert_allclose(code.checks_pn @ code.checks_pn.conj().T, np.eye(2 * s), atol=1e-12)
    np.testing.assert_allclose(code.encoder_nn @ code.plain_n, 1, atol=1e-9 * scale)


@pytest.mark.parametrize("form", [REAL, PAPER])
@pytest.mark.parametrize(("n", "s"), [(7, 2), (15, 3), (6, 2)])
def test_weights_are_the_shortest_that_need_no_erased_row(n, s, form, rng):
    code = Cyclic(n, s, form)
    for size in range(1, 2 * s + 1):
        lost_n = np.isin(np.arange(n), rng.choice(n, size, replace=False))
        shortest = np.linalg.lstsq(code.encoder_nn[:, ~lost_n], np.ones(n), rcond=1e-12)[0]
        b_n = code.weights(lost_n)
        np.testing.assert_array_equal(b_n[lost_n], 0)
        scale = np.abs(shortest).max()
        np.testing.assert_allclose(b_n[~lost_n], shortest, atol=1e-8 * scale)


@pytest.mark.parametrize(("n", "s"), [*SIZES, (6, 2), (44, 5)])
def test_without_attack_the_mean_is_that_of_the_batches(n, s, rng):
    code = Cyclic(n, s)
    gradients_pd = gradients(rng, n, 1000)
    decoded = code.decode(sent(code, gradients_pd), rng)
    assert relative_error(decoded, gradients_pd) < 2e-7
    assert decoded.unverified == 0
    np.testing.assert_array_equal(decoded.usage_n, 1)


# Sizes of an attack, relative to what workers send: from below rounding to beyond all.
ATTACKS = [1e20, 1e10, 1e4, 1.0, 1e-2, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8]


@pytest.mark.parametrize(("n", "s"), SIZES)
def test_every_sum_is_right_or_is_reported(n, s):
    """The decoder's table: errors of any size, erasures among them."""
    rng = np.random.default_rng(n)
    code = Cyclic(n, s)
    worst, verified, trials = 0.0, 0, 0
    for size in ATTACKS:
        for _ in range(20):
            d = 300
            gradients_pd = gradients(rng, n, d)
            stack_nd = sent(code, gradients_pd)
            errors = rng.integers(0, s + 1)
            lost = rng.integers(0, 2 * (s - errors) + 1)
            rows = rng.permutation(n)
            wrong, gone = rows[:errors], rows[errors : errors + lost]
            scale = np.median(np.linalg.norm(stack_nd, axis=1)) / np.sqrt(d)
            stack_nd[wrong] += (size * scale * rng.standard_normal((errors, d))).astype(np.float32)
            stack_nd[gone] = np.nan
            decoded = code.decode(stack_nd, rng)
            trials += 1
            if decoded.unverified:
                assert decoded.unverified == 1  # d = 300 is one block
                if lost == 2 * s:  # no check is left
                    np.testing.assert_array_equal(decoded.mean_d, 0)
                else:  # few checks are left, or the others' weights are too large for float32
                    assert lost > 2
                    assert relative_error(decoded, gradients_pd) < 1e-2
                continue
            verified += 1
            worst = max(worst, relative_error(decoded, gradients_pd))
            if size > 1e-2:
                used = np.flatnonzero(decoded.usage_n)
                np.testing.assert_array_equal(used, np.sort(rows[errors + lost :]))
    assert worst < TOLERANCE
    assert verified > 0.8 * trials


@pytest.mark.parametrize(("n", "s"), SIZES)
def test_errors_near_the_tolerance_neither_harm_nor_stop_the_training(n, s):
    """Where a locator is mostly noise, some set of rows explains what is seen all the same."""
    rng = np.random.default_rng(n)
    code = Cyclic(n, s)
    for size in 2.0 ** -np.arange(14, 26):
        gradients_pd = gradients(rng, n, 352)
        stack_nd = sent(code, gradients_pd)
        wrong = rng.choice(n, s, replace=False)
        stack_nd[wrong] *= np.float32(1 + size)
        decoded = code.decode(stack_nd, rng)
        assert decoded.unverified == 0
        assert relative_error(decoded, gradients_pd) < TOLERANCE


@pytest.mark.parametrize(("n", "s"), [(7, 2), (15, 3), (45, 5)])
def test_a_large_error_hides_no_small_one(n, s, rng):
    code = Cyclic(n, s)
    gradients_pd = gradients(rng, n, 1000)
    stack_nd = sent(code, gradients_pd)
    stack_nd[0] += np.float32(1e20) * rng.standard_normal(1000).astype(np.float32)
    stack_nd[n // 2] += np.float32(1e-2) * rng.standard_normal(1000).astype(np.float32)
    decoded = code.decode(stack_nd, rng)
    assert relative_error(decoded, gradients_pd) < TOLERANCE
    assert (decoded.usage_n[0], decoded.usage_n[n // 2], decoded.unverified) == (0, 0, 0)


@pytest.mark.parametrize("side_by_side", [True, False])
@pytest.mark.parametrize(("n", "s"), SIZES)
def test_attacks_of_the_paper(n, s, side_by_side, rng):
    code = Cyclic(n, s)
    gradients_pd = gradients(rng, n, 1000)
    wrong = np.arange(s) if side_by_side else rng.choice(n, s, replace=False)
    for send in (lambda z: -100 * z, lambda z: np.full_like(z, -100), lambda z: z * np.nan):
        stack_nd = sent(code, gradients_pd)
        stack_nd[wrong] = send(stack_nd[wrong])
        decoded = code.decode(stack_nd, rng)
        assert relative_error(decoded, gradients_pd) < TOLERANCE
        np.testing.assert_array_equal(np.flatnonzero(decoded.usage_n == 0), np.sort(wrong))


def test_more_wrong_rows_than_the_code_bears_are_reported(rng):
    code = Cyclic(15, 3)
    gradients_pd = gradients(rng, 15, 2000)
    stack_nd = sent(code, gradients_pd)
    stack_nd[:4] = rng.standard_normal((4, 2000)).astype(np.float32)
    decoded = code.decode(stack_nd, rng)
    assert decoded.unverified == 1
    np.testing.assert_array_equal(decoded.mean_d, 0)


def test_lost_datagrams_are_erasures_of_their_own_columns(rng):
    """Each block lacks other rows; the columns that lack too many are left as they are."""
    n, s, block, blocks = 15, 3, 32, 200
    code = Cyclic(n, s)
    gradients_pd = gradients(rng, n, block * blocks - 5)
    stack_nd = sent(code, gradients_pd)
    stack_nd[4] *= -100
    lost_nc = rng.random((n, blocks)) < 0.15
    lost_nd = np.repeat(lost_nc, block, axis=1)[:, :-5]
    stack_nd[lost_nd] = np.nan
    decoded = code.decode(stack_nd, rng, block)
    erased_c = np.count_nonzero(lost_nc | (np.arange(n) == 4)[:, None], axis=0)
    can_c = erased_c < 2 * s
    can_d = np.repeat(can_c, block)[:-5]
    assert 0.02 < 1 - can_c.mean() < 0.3
    assert decoded.unverified == pytest.approx(1 - can_d.mean())
    expected_d = gradients_pd.astype(np.float64).mean(axis=0)
    np.testing.assert_array_equal(decoded.mean_d[~can_d], 0)
    np.testing.assert_allclose(decoded.mean_d[can_d], expected_d[can_d], atol=1e-5)
    assert decoded.usage_n[4] == 0
    others = np.arange(n) != 4
    present_n = 1 - lost_nd.mean(axis=1)
    np.testing.assert_allclose(decoded.usage_n[others], present_n[others])


def test_an_error_in_one_coordinate_of_many_is_found(rng):
    code = Cyclic(15, 3)
    gradients_pd = gradients(rng, 15, 50_000)
    stack_nd = sent(code, gradients_pd)
    stack_nd[[2, 3, 9], [7, 40_000, 40_000]] += 1
    decoded = code.decode(stack_nd, rng)
    assert relative_error(decoded, gradients_pd) < 1e-6
    np.testing.assert_array_equal(np.flatnonzero(decoded.usage_n == 0), [2, 3, 9])


def test_a_projection_that_attackers_know_is_blind():
    """Why it is drawn from a secret, after the stack came."""

    def directions(seed, b, m):
        return np.random.default_rng(seed).standard_normal((b, m))

    known, secret = np.random.default_rng(1), np.random.default_rng(2)
    code = Cyclic(7, 2)
    gradients_pd = gradients(np.random.default_rng(0), 7, 352, np.float64)
    stack_nd = sent(code, gradients_pd)
    table_bm = directions(1, 352, 16)
    error_d = 1e3 * np.random.default_rng(3).standard_normal(352)
    for _ in range(2):
        error_d -= table_bm @ np.linalg.lstsq(table_bm, error_d)[0]
    stack_nd[3] += error_d
    missed = code.decode(stack_nd, known)
    assert missed.unverified == 0
    assert relative_error(missed, gradients_pd) > 100  # a silent wrong sum
    seen = code.decode(stack_nd, secret)
    assert (seen.usage_n[3], seen.unverified) == (0, 0)
    assert relative_error(seen, gradients_pd) < TOLERANCE


def test_copies_that_differ_are_tolerated_where_that_is_declared(rng):
    n, s, delta = 15, 3, 1e-5
    gradients_pd = gradients(rng, n, 3000)
    for code, is_trusted in ((Cyclic(n, s, delta=delta), True), (Cyclic(n, s), False)):
        stack_nd = np.stack(
            [
                code.encode(
                    [
                        (g * (1 + delta * rng.standard_normal(3000))).astype(np.float32)
                        for g in gradients_pd[code.batches_of(k)]
                    ],
                    k,
                )
                for k in range(n)
            ]
        )
        stack_nd[[1, 8]] *= -1
        decoded = code.decode(stack_nd, rng)
        assert (decoded.unverified == 0) == is_trusted
        if is_trusted:
            np.testing.assert_array_equal(np.flatnonzero(decoded.usage_n == 0), [1, 8])
            assert relative_error(decoded, gradients_pd) < 1e-4


@pytest.mark.parametrize(("n", "s"), [(7, 2), (15, 3), (19, 4)])
def test_the_papers_code_in_float32(n, s, rng):
    code = Cyclic(n, s, PAPER)
    gradients_pd = gradients(rng, n, 999)
    clean_nd = sent(code, gradients_pd)
    assert clean_nd.shape == (n, 2 * 999)
    for wrong in ([], [0], [*range(s)], [*rng.choice(n, s, replace=False)]):
        stack_nd = clean_nd.copy()
        stack_nd[wrong] *= -100
        decoded = code.decode(stack_nd, rng)
        assert relative_error(decoded, gradients_pd) < TOLERANCE
        assert decoded.unverified == 0
        np.testing.assert_array_equal(np.flatnonzero(decoded.usage_n == 0), np.sort(wrong))


@pytest.mark.parametrize("form", [REAL, PAPER])
def test_codes_of_45_workers_in_float64(form, rng):
    code = Cyclic(45, 5, form)
    gradients_pd = gradients(rng, 45, 999, np.float64)
    stack_nd = sent(code, gradients_pd)
    stack_nd[:5] *= -100
    decoded = code.decode(stack_nd, rng)
    assert relative_error(decoded, gradients_pd) < 1e-9
    assert decoded.mean_d.dtype == np.float64
    np.testing.assert_array_equal(np.flatnonzero(decoded.usage_n == 0), np.arange(5))


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e30, 1e37])
def test_gradients_of_any_size_are_decoded(scale, rng):
    code = Cyclic(7, 2)
    gradients_pd = (scale * gradients(rng, 7, 500, np.float64)).astype(np.float32)
    stack_nd = sent(code, gradients_pd)
    stack_nd[[0, 4]] = -stack_nd[[4, 0]]
    decoded = code.decode(stack_nd, rng)
    assert decoded.unverified == 0
    expected_d = gradients_pd.astype(np.float64).mean(axis=0)
    assert np.abs(decoded.mean_d - expected_d).max() < 1e-5 * scale + 2e-45


def test_one_batch_with_a_large_gradient_is_no_error(rng):
    """Its rounding is larger than that of the others'."""
    code = Cyclic(45, 1)
    gradients_pd = gradients(rng, 45, 1000)
    gradients_pd[7] *= 1e5
    decoded = code.decode(sent(code, gradients_pd), rng)
    assert decoded.unverified == 0
    np.testing.assert_array_equal(decoded.usage_n, 1)


def test_zero_gradients_are_decoded(rng):
    code = Cyclic(7, 2)
    decoded = code.decode(np.zeros((7, 400), np.float32), rng)
    np.testing.assert_array_equal(decoded.mean_d, 0)
    assert decoded.unverified == 0


@pytest.mark.parametrize("dim", [1, 2, 351, 352, 353, 1000])
@pytest.mark.parametrize("form", [REAL, PAPER])
def test_any_number_of_coordinates(dim, form, rng):
    code = Cyclic(7, 2, form)
    gradients_pd = gradients(rng, 7, dim)
    stack_nd = sent(code, gradients_pd)
    stack_nd[[2, 3]] = 1e6
    decoded = code.decode(stack_nd, rng)
    assert relative_error(decoded, gradients_pd) < TOLERANCE
    np.testing.assert_array_equal(np.flatnonzero(decoded.usage_n == 0), [2, 3])


def test_the_stack_stays_as_it_is(rng):
    code = Cyclic(7, 2)
    stack_nd = sent(code, gradients(rng, 7, 900))
    stack_nd[1, :352] = np.nan
    before_nd = stack_nd.copy()
    code.decode(stack_nd, rng)
    np.testing.assert_array_equal(stack_nd, before_nd)


def test_lost_blocks_without_end_are_looked_at_for_a_bounded_time(rng):
    """More wrong rows than the code bears, and another set of lost rows in each block."""
    code = Cyclic(15, 3)
    stack_nd = rng.standard_normal((15, 32 * 400)).astype(np.float32)
    stack_nd[np.repeat(rng.random((15, 400)) < 0.1, 32, axis=1)] = np.nan
    looked = []

    class Counting(Cyclic):
        def _find(self, *args):
            looked.append(args)
            return super()._find(*args)

    decoded = Counting(15, 3).decode(stack_nd, rng, 32)
    assert decoded.unverified > 0.99
    assert len(looked) <= 8 + code.num_workers


def test_the_work_on_whole_stacks_can_be_done_by_others(rng):
    used = []

    def project(stack_nd, table_bm):
        used.append("project")
        return linear.project(stack_nd, table_bm)

    def weighted_sum(*args):
        used.append("weighted_sum")
        linear.weighted_sum(*args)

    gradients_pd = gradients(rng, 7, 900)
    code = Cyclic(7, 2, tools=linear.Tools(project, weighted_sum))
    decoded = code.decode(sent(code, gradients_pd), rng)
    assert relative_error(decoded, gradients_pd) < 1e-6
    assert used == 7 * ["weighted_sum"] + ["project", "weighted_sum"]
