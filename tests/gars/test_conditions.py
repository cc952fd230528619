"""What is refused, and in which words."""

import inspect

import numpy as np
import pytest
import tensorflow as tf

from aggregathor import gars
from aggregathor.errors import UserError
from aggregathor.gars import GARS, Condition, ConditionError
from tests.gars.cases import ROBUST


@pytest.mark.parametrize("f", [0, 1, 2, 7])
@pytest.mark.parametrize("name", ROBUST)
def test_one_gradient_too_few(name, f):
    n = GARS[name].condition.least_n(f)
    GARS[name](np.ones((n, 3)), f=f)
    GARS[name].check(n=n, f=f)
    with pytest.raises(ConditionError) as caught:
        GARS[name](np.ones((n - 1, 3)), f=f)
    assert isinstance(caught.value, ValueError)
    for part in (f"{name} needs {GARS[name].condition} gradients", f"f={f} needs {n}, got {n - 1}"):
        assert part in str(caught.value)
    with pytest.raises(ConditionError):
        GARS[name].check(n=n - 1, f=f)


@pytest.mark.parametrize("name", ["average", "average-nan"])
def test_no_gradient_at_all(name):
    with pytest.raises(ConditionError, match="needs n >= 1 gradients; f=0 needs 1, got 0"):
        GARS[name](np.ones((0, 3)))


def test_message_in_full():
    with pytest.raises(ConditionError) as caught:
        gars.krum(np.ones((6, 3)), f=2)
    assert str(caught.value) == (
        "krum needs n >= 2f + 3 gradients; f=2 needs 7, got 6. Start 1 more worker or declare f=1."
    )


def test_message_where_no_f_would_do():
    with pytest.raises(ConditionError, match=r"got 1\. Start 6 more workers\.$"):
        gars.bulyan(np.ones((1, 3)), f=1)


@pytest.mark.parametrize("name", ROBUST)
def test_unsafe_computes_below_the_condition(name):
    rule = GARS[name]
    f = 2
    n = rule.minimum.least_n(f)
    if n < rule.condition.least_n(f):
        assert np.isfinite(rule(np.ones((n, 3)), f=f, unsafe=True)).all()
        rule.check(n=n, f=f, unsafe=True)
    with pytest.raises(ConditionError):
        rule(np.ones((n - 1, 3)), f=f, unsafe=True)


def test_unsafe_still_refuses_what_has_no_formula():
    with pytest.raises(ConditionError) as caught:
        gars.krum(np.ones((4, 3)), f=2, unsafe=True)
    assert "krum cannot be computed unless n >= f + 3" in str(caught.value)


@pytest.mark.parametrize("f", [-1, 1.0, True, "1", None, np.float64(1)])
def test_f_must_be_a_whole_number(f):
    if f is None:
        with pytest.raises(TypeError, match="krum needs f="):
            gars.krum(np.ones((9, 3)), f=f)
        return
    with pytest.raises(UserError, match=r"krum: f must be a whole number >= 0, got "):
        gars.krum(np.ones((9, 3)), f=f)


def test_f_may_be_a_numpy_integer():
    np.testing.assert_array_equal(gars.median(np.ones((9, 3)), f=np.int64(2)), np.ones(3))


@pytest.mark.parametrize("name", ROBUST)
def test_f_must_be_given(name):
    with pytest.raises(TypeError, match=f"{name} needs f="):
        GARS[name](np.ones((19, 3)))


@pytest.mark.parametrize("name", ["average", "average-nan"])
def test_a_baseline_ignores_f(name):
    stack_nd = np.array([[1.0], [2.0]])
    np.testing.assert_array_equal(GARS[name](stack_nd), GARS[name](stack_nd, f=1))


def test_unknown_parameter():
    with pytest.raises(UserError, match="median has no parameter 'compact': did you mean 'compat'"):
        gars.median(np.ones((3, 2)), f=1, compact="torch")
    with pytest.raises(UserError, match="krum has no parameter 'm': it has none but f"):
        gars.krum(np.ones((5, 2)), f=1, m=2)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("multi-krum", {"m": 0}, r"multi-krum averages a whole number of rows, m >= 1, got m=0"),
        ("multi-krum", {"m": 7}, r"multi-krum averages 1 <= m <= n - f - 2 = 6 rows, got m=7"),
        ("multi-krum", {"m": 2.5}, r"got m=2.5"),
        ("multi-krum", {"m": True}, r"got m=True"),
        ("median", {"compat": "torhc"}, "did you mean 'torch'"),
        ("bulyan", {"variant": "papers"}, "did you mean 'paper'"),
        ("geometric-median", {"nu": 0.0}, r"needs 1e-30 <= nu < inf .* got nu=0.0"),
        ("geometric-median", {"tol": -1.0}, "got .*tol=-1.0"),
        ("geometric-median", {"max_iter": -1}, "a whole max_iter >= 0, got -1"),
        ("geometric-median", {"max_iter": 2.5}, "a whole max_iter >= 0, got 2.5"),
        ("geometric-median", {"max_iter": True}, "a whole max_iter >= 0, got True"),
        ("geometric-median", {"nu": 1e39}, "nu < inf and tol >= 0, in float32, got nu=1e[+]39"),
        ("geometric-median", {"nu": 10**400}, "got nu=1000"),
        ("geometric-median", {"tol": 10**400}, "tol=1000"),
        ("geometric-median", {"nu": 1e-46}, "got nu=1e-46"),
        ("geometric-median", {"nu": float("inf")}, "got nu=inf"),
        ("geometric-median", {"nu": "x"}, "got nu='x'"),
        ("median", {"compat": []}, "compat="),
        ("median", {"unsafe": "no"}, "unsafe is True or False, got 'no'"),
    ],
)
def test_bad_value(name, parameters, message):
    with pytest.raises(UserError, match=message):
        GARS[name](np.ones((9, 3)), f=1, **parameters)


def test_a_name_that_is_near():
    with pytest.raises(KeyError, match="no gradient aggregation rule is called 'multikrum': did "):
        GARS["multikrum"]
    with pytest.raises(UserError, match="'multi-krum'"):
        GARS["multikrum"]
    assert "multikrum" not in GARS


@pytest.mark.parametrize("shape", [(5,), (5, 3, 1), ()])
def test_rank(shape):
    with pytest.raises(UserError, match=r"median takes gradients stacked as \[n, d\], got shape"):
        gars.median(np.ones(shape), f=1)


def test_ragged_rows():
    with pytest.raises(UserError, match=r"median takes gradients stacked as \[n, d\]"):
        gars.median([[1.0, 2.0], [3.0], [4.0]], f=1)


@pytest.mark.parametrize("dtype", ["int32", "int64", "bool", "complex64"])
def test_dtype(dtype):
    with pytest.raises(TypeError, match=f"float32, float64, float16, bfloat16; got .* {dtype}"):
        gars.median(np.ones((3, 2), dtype), f=1)


def test_n_unknown_when_traced():
    traced = tf.function(lambda stack_nd: gars.median(stack_nd, f=1), autograph=False)
    with pytest.raises(UserError, match=r"n is unknown in shape .* tf\.ensure_shape"):
        traced.get_concrete_function(tf.TensorSpec([None, 3]))


def test_condition_is_checked_when_traced():
    traced = tf.function(lambda stack_nd: gars.median(stack_nd, f=2), autograph=False)
    with pytest.raises(ConditionError):
        traced.get_concrete_function(tf.TensorSpec([4, None]))


# How many rows may be lost before the rule gives up. Krum's scores need n - f - 2 finite distances,
# so that one row more than f may be lost.
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("name", "parameters", "too_many"),
    [
        ("krum", {}, 4),
        ("multi-krum", {}, 4),
        ("multi-krum", {"m": 1}, 4),
        ("bulyan", {}, 4),
        ("bulyan", {"variant": "paper"}, 4),
        ("brute", {}, 3),
    ],
)
def test_too_many_rows_are_lost(name, parameters, too_many, value, rng, each_kernel):
    stack_nd = rng.standard_normal((11, 3))
    stack_nd[2 : 2 + too_many - 1] = value
    assert np.isfinite(GARS[name](stack_nd, f=2, **parameters)).all()
    stack_nd[2 : 2 + too_many] = value
    what = r"more than f.* of the n=11 gradients are lost, not finite or too far to compare"
    message = rf"(?<![-\w]){name}: {what}"  # "multi-krum" ends in "krum"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        GARS[name](stack_nd, f=2, **parameters)
    in_graph = tf.function(lambda stack_nd: GARS[name](stack_nd, f=2, **parameters))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        in_graph(tf.constant(stack_nd))


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("n >= 2f + 3", Condition(2, 3)),
        ("n>=4f+3", Condition(4, 3)),
        ("n >= f + 1", Condition(1, 1)),
        ("n >= 1", Condition(0, 1)),
        ("n >= 3f", Condition(3, 0)),
    ],
)
def test_condition(text, needs):
    assert Condition.parse(text) == needs
    assert Condition.parse(str(needs)) == needs
    for f in range(5):
        n = needs.least_n(f)
        assert n == needs.a * f + needs.b
        assert needs.largest_f(n) == (f if needs.a else 0)


@pytest.mark.parametrize("text", ["", "n > 2f", "m >= 2f + 3", "n >= 2f - 3", "n >= ", "2f + 3"])
def test_conditions_that_cannot_be_read(text):
    with pytest.raises(UserError, match="a condition reads like"):
        Condition.parse(text)


def test_largest_f_where_no_n_is_enough():
    assert Condition(2, 3).largest_f(2) is None


@pytest.mark.parametrize("name", GARS)
def test_signature_and_docstring_are_public(name):
    rule = GARS[name]
    parameters = inspect.signature(rule.function).parameters
    assert list(parameters) == ["stack_nd", "f", *rule.parameters, "unsafe"]
    assert getattr(gars, name.replace("-", "_")) is rule.function


def test_a_condition_is_a_value_error_in_a_graph_made_by_autograph():
    @tf.function
    def step(stack_nd):
        return gars.krum(stack_nd, f=5)

    with pytest.raises(ConditionError, match="krum needs n >= 2f"):
        step(tf.zeros([7, 5]))


def test_a_name_is_taken_once():
    with pytest.raises(UserError, match="a rule called 'krum' is there already"):
        gars.gar("krum", condition="n >= 1", cost="", source="")(lambda stack_nd, *, f: 0)


def test_tables_list_the_rules_by_family():
    assert list(GARS)[:3] == ["average", "average-nan", "median"]
    assert list(GARS)[-4:] == ["bulyan", "brute", "geometric-median", "zeno"]
