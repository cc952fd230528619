"""Attacks that search for the largest gamma: it must pass, and a little more must not."""

import numpy as np
import pytest

from aggregathor import attacks
from aggregathor.attacks.search import largest
from aggregathor.errors import UserError


def multi_krum(f, m):
    """Shares of the m rows closest to their n - f - 2 nearest others."""

    def aggregate(stack_nd):
        n = len(stack_nd)
        rows = stack_nd.astype(np.float64)
        sq_dist_nn = ((rows[:, np.newaxis] - rows) ** 2).sum(axis=2)
        np.fill_diagonal(sq_dist_nn, np.inf)
        score_n = np.sort(sq_dist_nn, axis=1)[:, : n - f - 2].sum(axis=1)
        kept = np.argsort(score_n, kind="stable")[:m]
        return stack_nd[kept].mean(axis=0), np.isin(np.arange(n), kept).astype(float)

    return aggregate


def median(stack_nd):
    """Share of the coordinates in which a row has the median's value."""
    middle_d = np.median(stack_nd, axis=0)
    return middle_d, (stack_nd == middle_d).mean(axis=1)


def passes(view, row_d):
    row_d = row_d.astype(view.honest_hd.dtype)
    stack_nd = np.concatenate([view.honest_hd, np.tile(row_d, (view.num_byzantine, 1))])
    return (view.aggregate(stack_nd)[1][len(view.honest_hd) :] > 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("norm", ["2", "inf"])
def test_hidden_coordinate_is_the_largest_that_multi_krum_keeps(norm, scale, dtype, make_view):
    honest_hd = make_view(h=12, d=400, dtype=dtype).honest_hd * dtype(scale)
    view = make_view(d=400, dtype=dtype, honest_hd=honest_hd, aggregate=multi_krum(f=3, m=10))
    mu = view.honest_hd.mean(axis=0, dtype=np.float64)
    p = np.eye(400)[5] if norm == "2" else np.ones(400)
    rows = attacks.hidden_coordinate(view, coordinate=5, norm=norm)
    gamma = float(rows[0, 5] - mu[5])
    np.testing.assert_allclose(rows, [mu + gamma * p] * 3, rtol=1e-5, atol=1e-5 * scale)
    assert passes(view, mu + gamma * p)
    assert not passes(view, mu + 1.001 * gamma * p)
    # The leeway of a distance rule: many deviations in one coordinate, about one in all of them.
    assert gamma > (5 if norm == "2" else 0.1) * scale


def test_hidden_coordinate_grows_with_the_dimension(make_view):
    gammas = [
        attacks.hidden_coordinate(make_view(d=d, aggregate=multi_krum(f=3, m=6)))[0, 0]
        for d in (10, 1000)
    ]
    assert gammas[1] > 5 * gammas[0]


def test_krum_selects_one_copy_of_many(make_view):
    aggregate = multi_krum(f=3, m=1)
    view = make_view(aggregate=aggregate)
    rows = attacks.hidden_coordinate(view)
    mu = view.honest_hd.mean(axis=0)
    gamma = rows[0, 0] - mu[0]
    assert gamma > 1
    for factor, kept in [(1, 1.0), (1.001, 0.0)]:
        row = mu + factor * gamma * np.eye(50)[0]
        share = aggregate(np.concatenate([view.honest_hd, [row] * 3]))[1]
        assert share[8:].sum() == kept


def test_hidden_coordinate_asks_a_coordinate_wise_rule_about_that_coordinate(make_view):
    view = make_view(h=8, b=3, d=1, aggregate=median)
    rows = attacks.hidden_coordinate(view)
    # The copies are the median until they pass the sixth of the eleven values: the copies shift
    # the order by three, so that is the sixth honest value from below.
    assert 0.999 < rows[0, 0] / np.sort(view.honest_hd[:, 0])[5] <= 1
    wide = make_view(h=8, b=3, d=300, aggregate=median)
    for j in (0, 7, 299):
        row = attacks.hidden_coordinate(wide, coordinate=j)[0]
        column = wide.honest_hd[:, j]
        mu = wide.honest_hd.mean(axis=0)
        np.testing.assert_allclose(np.delete(row, j), np.delete(mu, j))
        assert row[j] > mu[j]
        assert np.median([*column, *[row[j]] * 3]) == row[j]
        beyond = mu[j] + 1.001 * (row[j] - mu[j])
        assert np.median([*column, *[beyond] * 3]) != beyond


def test_hidden_coordinate_stops_at_gamma_max_where_everything_is_kept(make_view):
    rows = attacks.hidden_coordinate(make_view(dtype=np.float32))
    np.testing.assert_array_equal(rows[:, 0], np.float32(1e20))
    rows = attacks.hidden_coordinate(make_view(), norm="inf", gamma_max=1e3)
    assert np.all((rows > 990) & (rows < 1010))


def test_hidden_coordinate_refused_everywhere_is_the_mean(make_view):
    def only_honest(stack_nd):
        return stack_nd[0], np.arange(len(stack_nd)) < 8

    view = make_view(aggregate=only_honest)
    np.testing.assert_allclose(
        attacks.hidden_coordinate(view), [view.honest_hd.mean(axis=0)] * 3, rtol=1e-12
    )


def test_hidden_coordinate_where_honest_rows_agree(make_view):
    view = make_view(honest_hd=np.ones((8, 50)), aggregate=multi_krum(f=3, m=6))
    rows = attacks.hidden_coordinate(view)
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(rows, 1, atol=1e-6)


def test_hidden_coordinate_says_what_it_needs(make_view):
    with pytest.raises(UserError, match="needs to ask the rule in use"):
        attacks.hidden_coordinate(make_view(aggregate=None))
    with pytest.raises(UserError, match=r"coordinate=50, d=50\. Give one from 0 to 49"):
        attacks.hidden_coordinate(make_view(), coordinate=50)


def deviation(direction, mu, sigma):
    return {"std": -sigma, "unit": -mu / np.sqrt(sum(mu**2)), "sign": -np.sign(mu)}[direction]


def max_excess(rows, x):
    """The largest distance to x over the largest distance between rows."""
    to_x = max(np.linalg.norm(x - y) for y in rows)
    return to_x / max(np.linalg.norm(y - z) for y in rows for z in rows)


def sum_excess(rows, x):
    to_x = sum(np.linalg.norm(x - y) ** 2 for y in rows)
    return to_x / max(sum(np.linalg.norm(y - z) ** 2 for z in rows) for y in rows)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("direction", ["std", "unit", "sign"])
@pytest.mark.parametrize(
    ("attack", "excess"), [(attacks.min_max, max_excess), (attacks.min_sum, sum_excess)]
)
@pytest.mark.parametrize(("h", "d"), [(2, 1), (8, 50), (5, 40_000)])
def test_spread_attacks_are_maximal(attack, excess, direction, h, d, dtype, make_view):
    view = make_view(h=h, b=2, d=d, dtype=dtype)
    honest = view.honest_hd.astype(np.float64)
    mu, sigma = honest.mean(axis=0), honest.std(axis=0)
    p = deviation(direction, mu, sigma)
    rows = attack(view, direction=direction)
    gamma = (rows[0] - mu) @ p / (p @ p)
    assert gamma > 0
    rtol = 1e-5 if dtype is np.float32 else 1e-9
    np.testing.assert_allclose(rows, [mu + gamma * p] * 2, rtol=rtol, atol=rtol)
    assert excess(honest, mu + gamma * p) == pytest.approx(1, abs=rtol)
    assert excess(honest, mu + (1 - 1e-3) * gamma * p) < 1 < excess(honest, mu + 1.001 * gamma * p)


@pytest.mark.parametrize("attack", [attacks.min_max, attacks.min_sum])
@pytest.mark.parametrize("direction", ["std", "unit", "sign"])
@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("h", [1, 4])
def test_spread_attacks_where_honest_rows_agree(attack, direction, value, h, make_view):
    view = make_view(honest_hd=np.full((h, 50), value))
    np.testing.assert_allclose(attack(view, direction=direction), value, atol=1e-9)


@pytest.mark.parametrize("bound", [0.0, 1e-9, 0.3, 1.0, 7.0, 1e6, 1e12])
def test_largest_finds_the_bound(bound):
    found = largest(lambda g: g <= bound, start=1.0, limit=1e9, tolerance=1e-6)
    assert found <= bound
    assert found == pytest.approx(min(bound, 1e9), rel=1e-6)
