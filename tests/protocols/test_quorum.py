"""f liars are fast and f honest workers slow: what is missing never helps those who lie."""

from types import SimpleNamespace

import numpy as np
import pytest

from aggregathor.errors import UserError
from aggregathor.gars import GARS, Aggregated, Context, gar
from aggregathor.gars.base import registered
from aggregathor.gars.composition import compose
from aggregathor.protocols.aggregation import Aggregation, RuleError
from aggregathor.protocols.rounds import RefusedError
from aggregathor.protocols.setting import Setting, check_quorum
from lossympi import Network
from tests import reference
from tests.protocols.test_rounds import D, Job

F, LIE = 3, -1000.0
# Those that judge by losses have tests of their own: test_validation.py.
ROBUST = [name for name, rule in GARS.items() if rule.robust and not rule.needs_validation]
COMPOSED = ["nnm+median", "nnm+multi-krum", "bucketing(s=2)+brute"]


def least_n(rule, f):
    composed = compose(rule)
    for n in range(100):
        try:
            composed.check(n=n, f=f)
        except UserError:
            continue
        return n
    raise AssertionError(rule)


def honest_and_lies(n, rng, f=F):
    """f identical liars come first, then honest rows."""
    stack_nd = 1 + 0.01 * rng.standard_normal((n, 40)).astype(np.float32)
    stack_nd[:f] = LIE
    return stack_nd


@pytest.mark.parametrize("where", ["last", "between"])
@pytest.mark.parametrize("rule", ROBUST + COMPOSED)
def test_a_rule_judges_the_rows_that_are_there(rule, where, rng):
    """As many rows are left as the rule needs for f: any f of them may lie, whoever is missing."""
    present = least_n(rule, F)
    n = present + F
    stack_nd = honest_and_lies(n, rng)
    missing = np.arange(n - F, n) if where == "last" else np.arange(F, 3 * F, 2)
    stack_nd[missing] = np.nan
    aggregation = Aggregation(Setting(num_workers=n, gar=rule, f=F), 40)
    got = aggregation.aggregate(stack_nd, missing, Context())
    np.testing.assert_allclose(got.grad_d, 1, atol=0.1)
    assert not got.usage_n[missing].any()
    assert got.usage_n.shape == (n,)
    rest_nd = np.delete(stack_nd, missing, axis=0)
    alone = Aggregation(Setting(num_workers=present, gar=rule, f=F), 40)
    expected = alone.aggregate(rest_nd, np.array([], int), Context())
    np.testing.assert_array_equal(got.grad_d, expected.grad_d)


@pytest.mark.parametrize("rule", ["median", "krum", "multi-krum", "brute", "bulyan"])
def test_the_numpy_oracle_is_misled_by_a_quorum_below_the_condition_and_by_none_above(rule, rng):
    """Why the quorum is checked: of q rows f lie, as the f slowest honest ones do not come."""
    function = getattr(reference, rule.replace("-", "_"))
    needs = least_n(rule, 4)
    holds_nd = honest_and_lies(needs, rng, f=4)
    np.testing.assert_allclose(function(holds_nd.astype(np.float64), f=4), 1, atol=0.1)
    if rule == "bulyan":
        return  # with 4 fewer rows it has too few to choose among
    short_nd = honest_and_lies(needs - 4, rng, f=4)
    whole_nd = np.vstack([short_nd, np.full((4, 40), np.nan, np.float32)]).astype(np.float64)
    given_nd = short_nd.astype(np.float64) if rule == "median" else whole_nd
    f = 2 if rule == "median" else 4  # its formula trims nothing
    assert np.max(np.abs(function(given_nd, f=f) - 1)) > 100


QUORUMS = {
    "krum": (6, {"gar": "krum", "f": 3}, r"krum needs n >= 2f \+ 3 .*quorum=9 or more, or .*f=1"),
    "median": (6, {"gar": "median", "f": 3}, r"median needs n >= 2f \+ 1 .*quorum=7 or more"),
    "composed": (
        *(10, {"gar": "bucketing(s=2)+krum", "f": 2}),
        r"needs ceil\(n/2\) >= 2f \+ 3 .*quorum=13 or more",
    ),
    "no more": (1, {"gar": "brute", "f": 1}, "quorum=3 or more, or declare f=0"),
}


@pytest.mark.parametrize("name", QUORUMS)
def test_a_quorum_is_no_smaller_than_the_rule_needs(name):
    quorum, given, message = QUORUMS[name]
    begin = f"quorum={quorum} lets {quorum} gradients close a round, and f={given['f']} of them"
    with pytest.raises(UserError, match=f"{begin} .*{message}"):
        Setting(num_workers=20, quorum=quorum, **given).check()
    largest = {**given, "f": 0}
    Setting(num_workers=20, quorum=max(quorum, 3), **largest).check()


def test_the_least_quorum_of_a_composition_is_found_at_once():
    rule, asked = compose("bucketing(s=4)+bulyan"), []
    with pytest.MonkeyPatch.context() as patch:
        check = type(rule.gar).check
        patch.setattr(type(rule.gar), "check", lambda *a, **k: (asked.append(1), check(*a, **k))[1])
        with pytest.raises(UserError, match=r"pass quorum=6409 or more\.$"):
            check_quorum(rule, 8, 400)
    # Each number of gradients is tried for the refusal and for the remedy, and not once more.
    assert len(asked) < 2 * 6500


@pytest.mark.parametrize("rule", ["median", "krum", "brute"])
def test_a_job_waits_for_slow_honest_workers_and_not_for_a_quorum_of_liars(rule):
    """3 liars send first and 3 of 9 honest workers are slow, as those are that a flood hits."""
    n = 9
    network = Network(delay_s=0.01, slow={row: (0.2, 1.0) for row in range(6, 9)})
    job = Job(network, gar=rule, f=F, num_workers=n)
    rows = [LIE] * F + [1.0] * (n - F)
    for _ in range(30):
        report = job.step(rows)
        np.testing.assert_allclose(report.grad_d, 1, atol=0.1)
        assert report.delivered_n.tolist() == [1] * n


def test_where_f_is_used_up_a_warning_says_so_once_a_minute(capsys, monkeypatch):
    clock = [100.0]
    own_time = SimpleNamespace(monotonic=lambda: clock[0])
    monkeypatch.setattr("aggregathor.protocols.aggregation.time", own_time)
    job = Job(gar="krum", f=1)
    for _ in range(3):
        job.step([1, 1, 1, 1, None])
    clock[0] += 61
    job.step([1, 1, None, 1, 1])
    job.step([1] * 5)
    first, second = capsys.readouterr().err.splitlines()
    assert first == (
        "aggregathor: nothing came from worker 4 (rank 5): 1 of the f=1 are used up, and the other "
        "gradients may have 0 Byzantine ones among them (krum needs n >= 2f + 3 gradients; "
        "f=1 needs 5, got 4)"
    )
    assert "worker 2 (rank 3)" in second
    with pytest.raises(RefusedError, match=r"workers 3, 4 .*krum needs n >= 2f"):
        job.step([1, 1, 1, None, None])


@pytest.fixture
def counting():
    """Registers rules with a state, one with a value for each row and one with one for all."""

    def register(name, init):
        @gar(name, condition="n >= 2f + 1", cost="", source="", init=init)
        def rule(stack_nd, state, context, *, f):
            n = stack_nd.shape[0]
            state = {"rounds": np.asarray(state["rounds"]) + 1}
            return Aggregated(np.nanmedian(np.asarray(stack_nd), axis=0), np.ones(n)), state

    register("per-row", lambda n, d: {"rounds": np.zeros(n)})
    register("for-all", lambda n, d: {"rounds": np.zeros(())})
    yield
    del registered["per-row"], registered["for-all"]


@pytest.mark.parametrize(("rule", "applied_to"), [("for-all", 4), ("per-row", 5)])
def test_a_state_of_all_rows_is_kept_where_some_are_missing(rule, applied_to, counting):
    aggregation = Aggregation(Setting(num_workers=5, gar=rule, f=1), D)
    stack_nd = np.ones((5, D), np.float32)
    stack_nd[1] = np.nan
    seen = []
    apply = aggregation._apply

    def note_and_apply(rows_nd, *rest):
        seen.append(len(rows_nd))
        return apply(rows_nd, *rest)

    aggregation._apply = note_and_apply
    got = aggregation.aggregate(stack_nd, np.array([1]), Context())
    np.testing.assert_array_equal(got.grad_d, np.ones(D))
    assert seen == [applied_to]
    assert np.max(aggregation.rule_state["rounds"]) == 1
    if rule == "per-row":
        with pytest.raises(RuleError, match="keeps a state of 5 rows, and 3 came"):
            aggregation.aggregate(stack_nd, np.array([1, 2]), Context())
