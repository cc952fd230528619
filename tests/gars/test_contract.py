"""Every rule keeps every clause of the contract; a rule that breaks one is told so."""

import sys
import types

import numpy as np
import pytest
import tensorflow as tf

from aggregathor import gars, ops, testing
from aggregathor.gars import GARS, Condition
from tests.gars import importable_rules
from tests.gars.cases import ALONE, CASES
from tests.warm.start import executable

# m = 2 rows cannot be averaged at the smallest n of all.
KEEPERS = [case for case in CASES if case != "multi-krum-2"]
# The paper's Bulyan chooses its last rows by one neighbour, and two rows that are nearest to each
# other have the same: ties, which go to the lower row, are a part of it.
EXEMPT = {("bulyan-paper", "row order")}
# Tried in processes of its own: test_bits does so for all rules at once, the last tests here for
# the clause.
THREADS = "any number of threads"


@pytest.fixture
def quick_processes(monkeypatch):
    """Other processes have TensorFlow from the beginning."""
    monkeypatch.setattr(sys, "executable", executable())


@pytest.mark.parametrize(
    ("case", "clause"),
    [
        (case, clause)
        for case in KEEPERS
        for clause in testing.CLAUSES
        if (case, clause) not in EXEMPT and clause != THREADS
    ],
)
def test_rule_keeps_clause(case, clause):
    name, parameters, _ = CASES[case]
    subject = testing.Subject.of(GARS[name], parameters=parameters)
    assert testing.CLAUSES[clause](subject) == []


# They take 15 s each.
SLOW_STAND_INS = ("bulyan-paper", "geometric-median")


# At n = 15 and in two dtypes: the stand-in of brute tries subset after subset, others are slow.
@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.long) if c in SLOW_STAND_INS else c for c in KEEPERS],
)
def test_stand_in_keeps_contract(case):
    name, parameters, _ = CASES[case]
    subject = testing.Subject.of(
        GARS[name],
        parameters=parameters,
        largest_n=15,
        dtypes=("float64", "bfloat16"),
        threads=False,
    )
    with ops.using("tensorflow"):
        failures = {
            clause: testing.CLAUSES[clause](subject)
            for clause in testing.CLAUSES
            if (case, clause) not in EXEMPT
        }
    assert not any(failures.values()), failures


@pytest.mark.parametrize("name", ALONE)
def test_check_gar_passes_every_rule(name):
    testing.check_gar(GARS[name], dtypes=["float32"], largest_n=15, threads=False)


@pytest.mark.usefixtures("quick_processes")
def test_report_tells_how_much_was_tried():
    report = testing.check_gar(gars.trimmed_mean, dtypes=["float32"], largest_n=20)
    assert report.name == "trimmed-mean"
    assert list(report.stacks) == list(testing.CLAUSES)
    assert min(report.stacks.values()) > 0
    assert report.skipped == {}


def test_report_tells_what_was_skipped():
    report = testing.check_gar(gars.average, dtypes=["float32"], equivariant=False, threads=False)
    assert report.skipped == {
        THREADS: "not asked for",
        "scale and shift": "not asked for",
        "infinities are values": "the rule promises nothing under attack",
        "f hostile rows": "the rule promises nothing under attack",
        "lost coordinates": "the rule propagates NaN",
        "a coordinate lost by all": "the rule propagates NaN",
        "f lost or hostile rows": "the rule propagates NaN",
        "lost coordinates and hostile rows: finite": "the rule promises nothing under attack",
        "lost coordinates and hostile rows: near": "the rule promises nothing under attack",
    }
    assert {name for name, number in report.stacks.items() if number == 0} == set(report.skipped)


def numpy_median(stack_nd, f):
    n, d = stack_nd.shape
    if n < 2 * f + 1 or n == 0:
        raise ValueError(f"the median needs n >= 2f + 1, got n={n} f={f}")
    stack_nd = np.asarray(stack_nd)
    grad_d = np.zeros(d, stack_nd.dtype)
    for j, column in enumerate(stack_nd.T.astype(np.float64)):
        present = column[~np.isnan(column)]
        middle = np.sort(present)[(len(present) - 1) // 2] if len(present) else 0.0
        grad_d[j] = middle if np.isfinite(middle) else 0.0
    return grad_d


def test_own_rule_in_numpy_passes():
    report = testing.check_gar(
        numpy_median, Condition(2, 1), dtypes=["float32", "bfloat16"], largest_n=20, threads=False
    )
    assert report.name == "numpy_median"
    assert report.skipped == {
        THREADS: "not asked for",
        "inside tf.function": "the rule is not in TensorFlow",
    }


# Deliberately broken rules, and the clauses that must find it out.


def plain_mean(stack_nd, f):
    return tf.reduce_mean(stack_nd, axis=0)


def sorts_its_input(stack_nd, f):
    if isinstance(stack_nd, np.ndarray):
        stack_nd.sort(axis=0)
    return gars.median(stack_nd, f=f)


def ignores_missing(stack_nd, f):
    stack_nd = np.sort(stack_nd, axis=0)  # NaN last
    return stack_nd[f : len(stack_nd) - f].mean(axis=0, dtype=np.float32)


def prefers_the_first_row(stack_nd, f):
    weight_n = [2.0] + [1.0] * (stack_nd.shape[0] - 1)
    near_nd = tf.where(abs(stack_nd - gars.median(stack_nd, f=f)) < 0.05, stack_nd, np.nan)
    weights_nd = tf.constant(weight_n, near_nd.dtype)[:, None] * tf.ones_like(near_nd)
    present = ~tf.math.is_nan(near_nd)
    total_d = tf.reduce_sum(tf.where(present, weights_nd, 0), axis=0)
    return tf.reduce_sum(tf.where(present, weights_nd * near_nd, 0), axis=0) / total_d


def widens(stack_nd, f):
    return tf.cast(gars.median(stack_nd, f=f), tf.float64)


def never_refuses(stack_nd, f):
    return gars.median(stack_nd, f=f, unsafe=True)


def random_row_among_honest(stack_nd, f):
    noise_d = 1e-3 * np.random.standard_normal(stack_nd.shape[1])  # noqa: NPY002
    return gars.median(stack_nd, f=f) + tf.constant(noise_d, stack_nd.dtype)


def forgets_the_tail(stack_nd, f):
    grad_d = np.array(gars.median(stack_nd, f=f))
    grad_d[len(grad_d) // 16 * 16 :] = 0
    return grad_d


def eager_only(stack_nd, f):
    return tf.constant(gars.median(stack_nd, f=f).numpy())


def drops_a_dimension(stack_nd, f):
    return tf.squeeze(gars.median(stack_nd, f=f))


def gives_nothing(stack_nd, f):
    gars.median(stack_nd, f=f)


def keeps_infinity(stack_nd, f):
    return tf.reduce_max(stack_nd, axis=0) * 0 + gars.median(stack_nd, f=f)


def adds_up(stack_nd, f):
    return gars.median(stack_nd, f=f) * tf.cast(1 + 1e-4 * stack_nd.shape[0], stack_nd.dtype)


def keeps_what_nobody_sent(stack_nd, f):
    nobody_d = tf.reduce_all(tf.math.is_nan(stack_nd), axis=0)
    return tf.where(nobody_d, tf.ones_like(stack_nd[0]), gars.median(stack_nd, f=f))


def trusts_all_once_something_is_lost(stack_nd, f):
    lost = tf.reduce_any(tf.math.is_nan(stack_nd))
    return gars.average_nan(stack_nd) if lost else gars.median(stack_nd, f=f)


def wants_many_rows(stack_nd, f):
    return gars.median(stack_nd, f=f) / float(stack_nd.shape[0] > 2)


def reverses_coordinates(stack_nd, f):
    grad_d = gars.median(stack_nd, f=f)
    return grad_d[::-1] if grad_d.shape[0] is None or grad_d.shape[0] > 64 else grad_d


def forgets_large_models(stack_nd, f):
    return gars.median(stack_nd, f=f) * tf.cast(tf.shape(stack_nd)[1] <= 2000, stack_nd.dtype)


def forgets_the_sign(stack_nd, f):
    return gars.median(tf.abs(stack_nd), f=f)


def clips_to_2(stack_nd, f):
    return gars.median(tf.clip_by_value(stack_nd, -2, 2), f=f)


def clips_to_1000(stack_nd, f):
    return gars.median(tf.clip_by_value(stack_nd, -1000, 1000), f=f)


def rounds_to_a_thousandth(stack_nd, f):
    return tf.round(gars.median(stack_nd, f=f) * 1000) / 1000


def takes_infinity_for_missing(stack_nd, f):
    return gars.median(tf.where(tf.math.is_inf(stack_nd), np.nan, stack_nd), f=f)


def gives_ties_to_the_higher_row(stack_nd, f):
    return gars.meamed(tf.convert_to_tensor(stack_nd)[::-1], f=f)


def takes_a_billionth_for_nothing(stack_nd, f):
    grad_d = gars.median(stack_nd, f=f)
    return tf.where(abs(grad_d) < 1e-9, tf.zeros_like(grad_d), grad_d)


BROKEN = {
    plain_mean: {
        *("f hostile rows", "any number of coordinates", "too few gradients"),
        *("lost coordinates", "a coordinate lost by all", "f lost or hostile rows"),
        "lost coordinates and hostile rows: finite",
        "lost coordinates and hostile rows: near",
    },
    sorts_its_input: {"input unchanged"},
    ignores_missing: {"lost coordinates", "a coordinate lost by all"},
    prefers_the_first_row: {"row order"},
    widens: {"shape and dtype"},
    never_refuses: {"too few gradients"},
    random_row_among_honest: {"same bits again"},
    forgets_the_tail: {"any number of coordinates"},
    eager_only: {"inside tf.function"},
    drops_a_dimension: {"shape and dtype", "any number of coordinates"},
    gives_nothing: set(testing.CLAUSES) - {"too few gradients", THREADS},
    keeps_infinity: {"f hostile rows", "lost coordinates and hostile rows: finite"},
    adds_up: {"identical rows"},
    keeps_what_nobody_sent: {"a coordinate lost by all"},
    trusts_all_once_something_is_lost: {
        "f lost or hostile rows",
        "lost coordinates and hostile rows: near",
    },
    wants_many_rows: {"few rows"},
    reverses_coordinates: {"any number of coordinates"},
    forgets_large_models: {"any number of coordinates"},
    forgets_the_sign: {"few rows", "identical rows", "f hostile rows", "scale and shift"},
    clips_to_2: {"few rows", "identical rows", "f hostile rows", "scale and shift"},
    clips_to_1000: {"scale and shift"},
    rounds_to_a_thousandth: {"scale and shift"},
    takes_a_billionth_for_nothing: {"scale and shift"},
    takes_infinity_for_missing: {"infinities are values"},
    gives_ties_to_the_higher_row: {"ties"},
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the rules' own
@pytest.mark.parametrize("rule", BROKEN, ids=lambda rule: rule.__name__)
def test_broken_rule_is_caught(rule):
    with pytest.raises(testing.ContractError) as caught:
        testing.check_gar(rule, "n >= 2f + 1", dtypes=["float32"], largest_n=20, threads=False)
    assert set(caught.value.failures) >= BROKEN[rule]


def test_every_clause_catches_something():
    broken = [clauses for rule, clauses in BROKEN.items() if rule is not gives_nothing]
    assert set.union(*broken) == set(testing.CLAUSES) - {THREADS}


def test_message_names_clause_sizes_and_values():
    with pytest.raises(testing.ContractError) as caught:
        testing.check_gar(drops_a_dimension, "n >= 2f + 1", dtypes=["float32"], threads=False)
    assert str(caught.value).splitlines() == [
        "drops_a_dimension breaks 2 of the 19 clauses of the contract of a rule:",
        "- shape and dtype: n=3 f=1 d=1 float32: expected a gradient of shape (1,), found ()",
        "- any number of coordinates: n=3 f=1 d=1 float32: expected a gradient of shape (1,), "
        "found ()",
    ]


def test_an_error_of_the_rule_is_a_failure_with_its_sizes():
    def fails(stack_nd, f):
        if stack_nd.shape[1] == 17:
            raise RuntimeError("no 17")
        return gars.median(stack_nd, f=f)

    with pytest.raises(testing.ContractError) as caught:
        testing.check_gar(fails, "n >= 2f + 1", dtypes=["float64"], largest_n=20)
    assert caught.value.failures == {
        "any number of coordinates": [
            "n=3 f=1 d=17 float64: expected a gradient, found RuntimeError: no 17"
        ]
    }


# Threads: two processes a test.


@pytest.mark.usefixtures("quick_processes")
def test_a_rule_that_depends_on_threads_is_caught():
    with pytest.raises(testing.ContractError) as caught:
        testing.check_gar(
            importable_rules.counts_threads, "n >= 2f + 1", dtypes=["float32"], largest_n=20
        )
    assert THREADS in caught.value.failures
    assert caught.value.failures[THREADS][0] == (
        "n=3 f=1 d=65537 float32: expected the same bits on 1 and on 4 threads, found others"
    )


@pytest.mark.usefixtures("quick_processes")
def test_an_error_in_another_process_is_told():
    subject = testing.Subject.of(importable_rules.fails_elsewhere, "n >= 2f + 1", largest_n=20)
    assert testing.CLAUSES[THREADS](subject) == [
        "in another process: n=3 f=1 d=65537 float32: expected a gradient, found RuntimeError: no 4"
    ]


@pytest.mark.usefixtures("quick_processes")
@pytest.mark.parametrize("module", [None, "__main__", "no_such_module"])
def test_rules_that_other_processes_cannot_import_are_skipped(module, monkeypatch):
    def rule(stack_nd, f):
        return gars.median(stack_nd, f=f)

    if module:
        rule.__module__, rule.__qualname__ = module, "rule"
        monkeypatch.setitem(sys.modules, "no_such_module", types.SimpleNamespace(rule=rule))
    subject = testing.Subject.of(rule, "n >= 2f + 1", largest_n=20)
    assert testing.CLAUSES[THREADS](subject) == []
    assert subject.num_stacks == 0
    assert "cannot import" in subject.skipped[THREADS]
