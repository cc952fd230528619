"""Rules with state, and compositions by name: what they are, and what they refuse."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from aggregathor import checkpoint, gars
from aggregathor.errors import UserError
from aggregathor.gars import GARS, Aggregated, ConditionError, Context, compose, gar
from aggregathor.gars.base import registered
from aggregathor.gars.pre_aggregation import Mixed, pre_aggregation
from aggregathor.testing import check_gar
from tests.gars.cases import ALONE, ROBUST

N, D = 19, 65
TEXTS = ["nnm+median", "bucketing(s=2)+multi-krum(m=3)", "nnm+bucketing+krum"]


@pytest.fixture
def stack_nd(rng):
    return (1 + 0.01 * rng.standard_normal((N, D))).astype(np.float32)


@pytest.fixture
def drift():
    """A rule with state: the mean of the rows and of what it gave before."""

    def init(n, d, weight):
        return {"last": np.zeros(d, np.float32), "rounds": np.zeros((), np.int64)}

    @gar("drift", condition="n >= 1", cost="O(nd)", source="this test", robust=False, init=init)
    def drift(stack_nd, state, context, *, f=0, weight=0.5):
        grad_d = weight * np.mean(stack_nd, axis=0) + (1 - weight) * state["last"]
        state = {"last": grad_d.astype(np.float32), "rounds": state["rounds"] + 1}
        return Aggregated(grad_d, np.full(stack_nd.shape[0], context.round)), state

    yield registered["drift"]
    del registered["drift"]


@pytest.mark.parametrize("name", ALONE)
def test_a_name_alone_is_the_rule(name, stack_nd, each_kernel):
    rule = compose(name)
    assert (rule.name, rule.gar) == (name, GARS[name])
    assert rule.condition == str(GARS[name].condition)
    for given in (stack_nd, tf.constant(stack_nd)):
        composed, alone = rule.aggregate(given, f=2), GARS[name].aggregate(given, f=2)
        np.testing.assert_array_equal(composed.grad_d, alone.grad_d)
        np.testing.assert_array_equal(composed.usage_n, alone.usage_n)


@pytest.mark.parametrize("text", TEXTS)
def test_a_composition_is_one_after_the_other(text, stack_nd, each_kernel):
    context = Context(rng=lambda purpose: np.random.default_rng(3))
    *pres, last = (part.partition("(")[0] for part in text.split("+"))
    rows_nd = stack_nd
    for name in pres:
        rows_nd = np.asarray(gars.PRE_AGGREGATIONS[name](rows_nd, f=2, context=context).rows_md)
    parameters = {"m": 3} if "m=3" in text else {}
    expected = GARS[last].aggregate(rows_nd, f=2, **parameters)
    for given in (stack_nd, tf.constant(stack_nd)):
        got, state = compose(text).apply(given, {}, context, f=2)
        np.testing.assert_allclose(got.grad_d, expected.grad_d, rtol=1e-6)
        assert state == {}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (" nnm + median ", "nnm+median"),
        ("bucketing(s = 2)+multi-krum( m=5 )", "bucketing(s=2)+multi-krum(m=5)"),
        ("median(compat=torch)", "median(compat='torch')"),
        ("median(compat='torch')", "median(compat='torch')"),
        ("geometric-median(nu=1e-3, max_iter=5)", "geometric-median(nu=0.001, max_iter=5)"),
        ("krum()", "krum"),
    ],
)
def test_texts_have_one_form(text, name):
    assert compose(text).name == name
    assert compose(name).name == name


def test_parameters_beside_it_are_the_last_ones():
    assert compose("nnm+multi-krum", {"m": 2}).parameters == {"m": 2}
    assert compose("nnm+multi-krum(m=2)", {"m": 2}).name == "nnm+multi-krum(m=2)"
    with pytest.raises(UserError, match=r"has m=3, and m=2 is given beside it: leave one"):
        compose("nnm+multi-krum(m=3)", {"m": 2})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' has an empty name"),
        ("mediann", "no gradient aggregation rule is called 'mediann': did you mean 'median'"),
        ("nn+median", "no rule or pre-aggregation is called 'nn': did you mean 'nnm'"),
        ("nnm+mediann", "no rule or pre-aggregation is called 'mediann'"),
        ("median+nnm", "median is a rule, and a rule comes last"),
        ("median+krum", "median is a rule, and a rule comes last"),
        ("nnm", r"nnm is a pre-aggregation, after which a rule comes: nnm\+median"),
        ("nnm+", r"'nnm\+' has an empty name"),
        ("bucketing(2)+median", "cannot be read as NAME.*only name=value may stand in it"),
        ("bucketing(s=2+median", r"cannot be read as NAME.*'\(' was never closed$"),
        (
            "bucketing(s=__import__('os'))+median",
            r"cannot be read as NAME.*: __import__\('os'\) is neither a number nor a word$",
        ),
        (5, "a rule is named by a text such as 'nnm[+]median', got 5"),
        (None, "a rule is named by a text such as 'nnm[+]median', got None"),
        ("bucketing(s=2, s=3)+median", "cannot be read as NAME.*: s is given twice$"),
        ("bucketing(**{'s': 2})+median", "cannot be read as NAME"),
    ],
)
def test_what_cannot_be_read_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        compose(text)


@pytest.mark.parametrize(
    ("text", "parameters", "message"),
    [
        ("bucketing(s=0)+median", {}, "bucketing needs a whole s >= 1"),
        ("bucketing(t=2)+median", {}, "bucketing has no parameter 't'"),
        (
            "bucketing+median",
            {"s": 3},
            r"s is a parameter of bucketing, not of median: .*'bucketing\(s=3\)\+median'$",
        ),
        (
            "nnm+bucketing(s=2)+multi-krum(m=3)",
            {"s": 3},
            r"brackets, as in 'nnm\+bucketing\(s=3\)\+multi-krum\(m=3\)'$",
        ),
        ("nnm+median", {"compact": 1}, "median has no parameter 'compact': did you mean 'compat'"),
    ],
)
def test_what_a_part_does_not_take_is_refused(text, parameters, message):
    with pytest.raises(UserError, match=message):
        compose(text, parameters).check(n=19, f=2)


def test_conditions_compose():
    rule = compose("bucketing(s=2)+multi-krum")
    assert rule.condition == "ceil(n/2) >= 2f + 3"
    assert compose("nnm+bulyan").condition == "n >= 4f + 3"
    assert compose("nnm+median").condition == "n >= 2f + 1"
    assert compose("nnm+bucketing(s=3)+krum").condition == "n >= 2f + 1 and ceil(n/3) >= 2f + 3"
    assert compose("bucketing+bucketing+median").condition == "ceil(ceil(n/2)/2) >= 2f + 1"
    rule.check(n=13, f=2)  # 7 rows
    with pytest.raises(ConditionError) as caught:
        rule.check(n=12, f=2)
    assert str(caught.value) == (
        "bucketing makes 6 rows of 12 gradients, and multi-krum needs n >= 2f + 3 gradients; f=2 "
        "needs 7, got 6. Start 1 more worker or declare f=1."
    )


@pytest.mark.parametrize(
    "text", [*ROBUST, "nnm+median", "bucketing(s=2)+krum", "bucketing(s=3)+median"]
)
def test_the_largest_f_is_the_last_that_passes(text):
    rule = compose(text)
    for n in range(1, 30):
        passing = []
        for f in range(n + 1):
            try:
                rule.check(n=n, f=f)
            except ConditionError:
                continue
            passing.append(f)
        assert rule.largest_f(n) == max(passing, default=None)


def test_unsafe_is_a_parameter_too(stack_nd):
    with pytest.raises(ConditionError):
        compose("nnm+krum").check(n=5, f=2)
    rule = compose("krum", {"unsafe": True})
    rule.check(n=5, f=2)
    assert rule.name == "krum"
    np.testing.assert_array_equal(
        rule.aggregate(stack_nd[:5], f=2).grad_d, gars.krum(stack_nd[:5], f=2, unsafe=True)
    )


@pytest.mark.parametrize("poison", [0.0, 1e30, np.inf, np.nan, -1e20])
@pytest.mark.parametrize("text", ["nnm+median", "nnm+multi-krum", "bucketing(s=2)+krum"])
def test_hostile_rows_are_tolerated_and_not_used(text, poison, stack_nd, each_kernel):
    stack_nd[[3, 8, 17]] = poison
    aggregated = compose(text).aggregate(stack_nd, f=3)
    np.testing.assert_allclose(aggregated.grad_d, 1, atol=0.1)
    assert aggregated.usage_n.shape == (N,)
    assert np.all((aggregated.usage_n >= 0) & (aggregated.usage_n <= 1))
    hostile = aggregated.usage_n[[3, 8, 17]].max()
    assert hostile < np.delete(aggregated.usage_n, [3, 8, 17]).max()


def test_usage_of_buckets_is_that_of_their_rows(stack_nd):
    context = Context(rng=lambda purpose: np.random.default_rng(3))
    order = np.random.default_rng(3).permutation(N)
    aggregated, _ = compose("bucketing(s=2)+krum").apply(stack_nd, {}, context, f=2)
    chosen = np.flatnonzero(aggregated.usage_n > 0.9)
    assert len(chosen) in (1, 2)  # the rows of one bucket
    assert len({int(np.flatnonzero(order == row)[0]) // 2 for row in chosen}) == 1


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_types_come_back_as_they_went_in(dtype, stack_nd, each_kernel):
    given = tf.cast(stack_nd, dtype)
    got = compose("nnm+median").aggregate(given, f=2)
    assert got.grad_d.dtype == dtype
    as_array = compose("nnm+median").aggregate(given.numpy(), f=2)
    np.testing.assert_array_equal(as_array.grad_d, got.grad_d.numpy())
    assert as_array.grad_d.dtype == given.numpy().dtype


def test_a_composition_runs_in_a_graph(stack_nd, each_kernel):
    rule = compose("nnm+bucketing(s=2)+median")
    in_graph = tf.function(lambda stack_nd: rule(stack_nd, f=2), autograph=False)
    np.testing.assert_array_equal(in_graph(stack_nd), rule(stack_nd, f=2))


@pytest.mark.parametrize(
    ("text", "condition"), [("nnm+median", "n >= 2f + 1"), ("nnm+multi-krum", "n >= 2f + 3")]
)
def test_a_composition_keeps_the_contract(text, condition):
    rule = compose(text)
    report = check_gar(
        rule, condition, largest_n=20, threads=False, ties=False, dtypes=["float32", "float64"]
    )
    assert not {"f hostile rows", "lost coordinates"} & report.skipped.keys()


# State.


@pytest.mark.parametrize("name", ALONE)
def test_rules_without_state_have_none(name, stack_nd):
    rule = GARS[name]
    assert rule.init(N, D) == {}
    aggregated, state = rule.apply(stack_nd, {}, Context(), f=2)
    assert state == {}
    np.testing.assert_array_equal(aggregated.grad_d, rule.aggregate(stack_nd, f=2).grad_d)


@pytest.mark.parametrize("text", ["drift", "drift(weight=0.25)", "nnm+drift"])
def test_state_goes_from_round_to_round(text, drift, stack_nd):
    rule = compose(text)
    state = rule.init(N, D)
    weight = 0.25 if "0.25" in text else 0.5
    last_d = np.zeros(D)
    for round in range(3):
        before = {name: array.copy() for name, array in state.items()}
        asked, _ = rule.apply(-stack_nd, state, Context(round=round), f=0)
        assert not np.allclose(asked.grad_d, last_d)
        aggregated, after = rule.apply(stack_nd, state, Context(round=round), f=0)
        for name, array in before.items():  # asking and applying change nothing of it
            np.testing.assert_array_equal(state[name], array)
        rows_nd = gars.nnm(stack_nd, f=0).rows_md if "nnm" in text else stack_nd
        last_d = weight * rows_nd.mean(axis=0, dtype=np.float64) + (1 - weight) * last_d
        np.testing.assert_allclose(aggregated.grad_d, last_d, rtol=1e-5)
        state = after
    assert state["rounds"] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('multi-krum(m="two")', "multi-krum averages a whole number of rows, m >= 1, got m='two'"),
        ("multi-krum(m=True)", "got m=True"),
        ("geometric-median(max_iter=True)", "needs a whole max_iter >= 0, got True"),
        ("nnm+median(compat=torhc)", "did you mean 'torch'"),
        ("krum(unsafe=5)", "unsafe is True or False, got 5"),
    ],
)
def test_a_parameter_that_is_right_for_no_n_is_refused_when_it_is_read(text, message):
    with pytest.raises(UserError, match=message):
        compose(text)


def test_a_call_of_a_composition_takes_no_more_parameters(stack_nd):
    words = r"nnm\+multi-krum has its parameters already, .*compose\(\"multi-krum\(m=3, k=1\)\"\)"
    for use in (compose("nnm+multi-krum"), compose("nnm+multi-krum").aggregate):
        with pytest.raises(UserError, match=words):
            use(stack_nd, f=2, m=3, k=1)


@pytest.mark.parametrize(
    ("text", "n", "message"),
    [
        ("nnm+median", 8, "nnm needs {c} gradients; f=5 needs 11, got 8. {start} or declare f=3."),
        (
            "bucketing(s=2)+nnm+median",
            20,
            "bucketing makes 10 rows of 20 gradients, and nnm needs {c} gradients; f=5 needs 11, "
            "got 10. Start 1 more worker or declare f=4.",
        ),
        (
            "nnm+bulyan",
            20,
            "bulyan needs n >= 4f + 3 gradients; f=5 needs 23, got 20. {start} or declare f=4.",
        ),
        (
            "nnm+bulyan",
            8,
            "nnm needs {c} gradients; f=5 needs 11, got 8. Start 15 more workers or declare f=1.",
        ),
    ],
)
def test_a_refusal_has_the_numbers_of_the_stage_and_a_remedy_for_the_whole(text, n, message):
    with pytest.raises(ConditionError) as caught:
        compose(text).check(n=n, f=5)
    assert str(caught.value) == message.format(c="n >= 2f + 1", start="Start 3 more workers")


def test_a_pre_aggregation_alone_refuses_with_the_numbers(stack_nd):
    with pytest.raises(ConditionError, match=r"f=5 needs 11, got 8\. Start 3 more workers or decl"):
        gars.nnm(stack_nd[:8], f=5)


@pytest.mark.parametrize("s", ["0", "two", "'2'", "None", "1.5", "True"])
def test_a_size_of_buckets_that_is_none_is_refused_when_it_is_read(s):
    with pytest.raises(UserError, match=r"^bucketing needs a whole s >= 1, the size of a bucket"):
        compose(f"bucketing(s={s})+median")


@pytest.mark.parametrize("text", ["", "+", "nnm+", "+median", "nnm++median"])
def test_an_empty_name_is_refused(text):
    with pytest.raises(UserError, match="has an empty name"):
        compose(text)


def test_a_parameter_that_is_too_large_for_the_rows_that_come_names_them():
    rule = compose("bucketing(s=2)+multi-krum(m=5)")
    with pytest.raises(UserError, match=r"bucketing makes 6 rows of 11 gradients, and multi-krum"):
        rule.check(n=11, f=1)


def test_a_rule_with_state_can_be_used_by_itself(drift, stack_nd):
    np.testing.assert_allclose(drift(stack_nd), 0.5 * stack_nd.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(compose("drift")(stack_nd, f=0), drift(stack_nd))


@pytest.mark.parametrize("shape", [(5,), (5, 3, 1), ()])
def test_a_rule_with_state_takes_a_stack(shape, drift):
    for rule in (drift, compose("drift"), compose("nnm+drift")):
        for given in (np.ones(shape, np.float32), tf.ones(shape)):
            with pytest.raises(UserError, match=r"drift takes gradients stacked as \[n, d\], got"):
                rule.aggregate(given, f=0)


def test_a_state_of_tensors_becomes_arrays(stack_nd, tmp_path):
    @gar("last", condition="n >= 1", cost="", source="", init=lambda n, d: {"row": np.zeros(d)})
    def last(stack_nd, state, *, f):
        return Aggregated(stack_nd[-1], tf.ones(stack_nd.shape[0])), {"row": stack_nd[-1]}

    try:
        _, state = compose("last").apply(stack_nd, compose("last").init(N, D), Context(), f=1)
        checkpoint.write(tmp_path / "state", state)
        np.testing.assert_array_equal(checkpoint.read(tmp_path / "state")["row"], stack_nd[-1])
    finally:
        del registered["last"]


def test_a_state_needs_to_know_d(drift, stack_nd):
    for rule in (drift, compose("drift")):
        specs = [tf.TensorSpec([N, None])]
        aggregate = tf.function(functools.partial(rule, f=0), input_signature=specs)
        with pytest.raises(UserError, match=r"drift keeps a state of d.*ensure_shape"):
            aggregate(stack_nd)


@pytest.mark.parametrize("both", ["coordinate_wise", "takes_columns"])
def test_a_rule_with_state_is_applied_to_whole_stacks(both):
    with pytest.raises(UserError, match=r"the rule half has a state.*leave out"):
        gar("half", condition="n >= 1", cost="", source="", init=lambda n, d: {}, **{both: True})(
            lambda stack_nd, state, *, f: (stack_nd, state)
        )
    assert "half" not in GARS


def test_a_parameter_has_a_default():
    with pytest.raises(UserError, match="the parameter tau of half has no default"):
        gar("half", condition="n >= 1", cost="", source="")(lambda stack_nd, *, f, tau: stack_nd)
    with pytest.raises(UserError, match="the parameter tau of half has no default"):
        pre_aggregation("half", condition="n >= 1", cost="", source="")(
            lambda stack_nd, *, f, tau: stack_nd
        )
    assert "half" not in registered


def test_a_pre_aggregation_with_parameters_may_keep_the_rows(stack_nd):
    @pre_aggregation("scaled", condition="n >= 1", cost="O(nd)", source="this test")
    def scaled(stack_nd, *, f, context, by=2.0):
        return Mixed(by * stack_nd, by * np.eye(len(stack_nd)))

    try:
        rule = compose("scaled(by=0.5)+nnm+median")
        rule.check(n=N, f=2)
        expected = 0.5 * compose("nnm+median").aggregate(stack_nd, f=2).grad_d
        np.testing.assert_allclose(rule.aggregate(stack_nd, f=2).grad_d, expected, rtol=1e-5)
        assert rule.init(N, D) == {}
    finally:
        del registered["scaled"]


def test_a_rule_takes_a_state_and_has_an_init_or_neither():
    with pytest.raises(UserError, match="takes a state and has an init, or neither"):
        gar("half", condition="n >= 1", cost="", source="", init=lambda n, d: {})(
            lambda stack_nd, *, f: stack_nd
        )
    with pytest.raises(UserError, match="or neither"):
        gar("half", condition="n >= 1", cost="", source="")(lambda stack_nd, state, *, f: state)
    assert "half" not in GARS


def test_a_context_lends_what_a_rule_asks_for(drift, stack_nd):
    aggregated, _ = drift.apply(stack_nd, drift.init(N, D), Context(round=7), f=0)
    np.testing.assert_array_equal(aggregated.usage_n, np.full(N, 7))
