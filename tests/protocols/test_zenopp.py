import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregathor.protocols.offers import Offer
from aggregathor.protocols.zenopp import Zenopp
from tests.protocols.offering import Toy

V_D = np.array([2.0, 0.0])


def rule_of(v_d=V_D, gamma=0.1, rho=0.002, epsilon=0.1, refresh=10):
    validate = v_d if callable(v_d) else lambda params_d, number: v_d
    return Zenopp(validate, lambda: gamma, rho=rho, epsilon=epsilon, refresh=refresh)


def offered(rule, grad_d, params_d=None):
    params_d = np.zeros(len(grad_d)) if params_d is None else params_d
    return rule.offer(Offer(0, 0, 0, params_d, params_d, np.array(grad_d), 0.0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("grad_d", "step_d", "why"),
    [
        ([1, 0], [2, 0], ""),  # score .392
        ([10, 10], [2**0.5, 2**0.5], ""),  # .27484
        ([0, 1], [0, 2], ""),  # -.008
        ([-0.1, 1], None, "score"),  # -.0478
        ([-1, 0], None, "score"),  # -.408
        ([1e-30, 0], [2, 0], ""),
        ([0, 0], None, "zero"),
        ([np.nan, 1], None, "not finite"),
    ],
)
def test_the_vector(grad_d, step_d, why, dtype):
    verdict = offered(rule_of(V_D.astype(dtype)), np.array(grad_d, dtype))
    assert verdict.why == why
    if step_d is None:
        assert verdict.step_d is None
    else:
        assert verdict.step_d.dtype == dtype
        np.testing.assert_allclose(verdict.step_d, step_d, atol=1e-6)


@pytest.mark.parametrize(("length", "accepts"), [(0.313, True), (0.314, False)])
def test_where_v_is_short_all_is_accepted(length, accepts):
    """|v|^2 <= epsilon / (1 + rho / gamma): sign flips too."""
    verdict = offered(rule_of(np.array([length, 0.0])), np.array([-1.0, 0.0]))
    assert (verdict.step_d is not None) == accepts


VALUES = st.floats(-1e3, 1e3, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)
VECTORS = st.lists(VALUES, min_size=4, max_size=4).filter(any)


@given(VECTORS, VECTORS, st.floats(0, 0.1), st.floats(0, 1), st.floats(1e-30, 1e30))
def test_the_score_is_a_condition_on_the_angle(v, u, rho, epsilon, scale):
    v_d, u_d = np.array(v), np.array(u)
    cosine = v_d @ u_d / np.linalg.norm(v_d) / np.linalg.norm(u_d)
    least = rho / 0.1 - epsilon / (v_d @ v_d)
    if abs(cosine - least) < 1e-6:
        return
    verdict = offered(rule_of(v_d, rho=rho, epsilon=epsilon), u_d * scale)
    assert (verdict.step_d is not None) == (cosine > least)
    if verdict.step_d is not None:
        assert np.linalg.norm(verdict.step_d) == pytest.approx(np.linalg.norm(v_d))


def test_v_is_made_anew_after_k_arrivals_accepted_or_not():
    made = []

    def validate(params_d, number):
        made.append((number, params_d.tolist()))
        return V_D

    rule = rule_of(validate, refresh=3)
    for arrival in range(7):
        grad_d = [(1.0, 0.0), (-1.0, 0.0), (np.nan, 0.0)][arrival % 3]
        offered(rule, np.array(grad_d), np.full(2, float(arrival)))
    assert made == [(0, [0, 0]), (1, [3, 3]), (2, [6, 6])]


@pytest.mark.parametrize("bad", [[-2.0, 0.0], [np.nan, 0.0], [np.inf, 0.0]])
def test_a_bad_v_heals_after_k_arrivals(bad):
    rule = rule_of(lambda _, number: V_D if number else np.array(bad), refresh=5)
    accepted = [offered(rule, V_D).step_d is not None for _ in range(10)]
    assert accepted == [False] * 5 + [True] * 5


def test_v_is_a_copy():
    v_d = V_D.copy()
    rule = rule_of(v_d)
    offered(rule, V_D)
    v_d.fill(-1)
    assert offered(rule, V_D).step_d is not None


def test_eight_of_ten_that_send_the_negative_tenfold_do_not_keep_it_from_learning():
    """A quadratic in 50 dimensions, from |x| = 14.1; staleness is what a turn of all makes."""
    rng = np.random.default_rng(0)
    curvature_d = np.linspace(0.1, 1, 50)
    toy = Toy(rule_of(lambda x_d, _: curvature_d * x_d, epsilon=0.0), 10, np.full(50, 2.0))
    accepted = {False: [], True: []}
    for event in range(3000):
        row = event % 10
        grad_d = curvature_d * toy.held[row][1] + 0.3 * rng.standard_normal(50)
        is_byzantine = row < 8
        verdict = toy.offer(row, -10 * grad_d if is_byzantine else grad_d)
        accepted[is_byzantine].append(verdict.step_d is not None)
    assert np.linalg.norm(toy.params_d) < 2
    assert np.mean(accepted[False]) > 0.7
    assert np.mean(accepted[True]) < 0.4
