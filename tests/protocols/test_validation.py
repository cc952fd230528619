"""Losses after a step along each gradient: what they are, and that they change nothing."""

import random
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from aggregathor.errors import UserError
from aggregathor.gars import GARS, Context
from aggregathor.protocols.aggregation import Aggregation
from aggregathor.protocols.setting import Setting
from aggregathor.protocols.validation import Examples, LossOnCopies
from lossympi.rng import generator
from tests import reference

FEATURES, CLASSES = 5, 3
GAMMA = 0.25
of_labels = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture
def examples(rng):
    points = rng.standard_normal((40, FEATURES)).astype(np.float32)
    return points, rng.integers(0, CLASSES, 40).astype(np.int32)


def network(*hidden):
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input([FEATURES]), *hidden, layers.Dense(CLASSES)])


def everything():
    """A network with statistics, noise and weights that are not trained."""
    frozen = layers.Dense(4, name="frozen")
    frozen.trainable = False
    return network(
        layers.Dense(4, "relu"), layers.BatchNormalization(), layers.Dropout(0.5), frozen
    )


def tf_variables(model):
    return [variable.value for variable in model.trainable_variables]


def flat(arrays):
    return np.concatenate([np.asarray(each).ravel() for each in arrays])


def losses_by_hand(model, loss_of, params_d, stack_nd, gamma):
    """Assigns each candidate to a copy of the model."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    found = []
    for u_d in (np.zeros_like(params_d), *np.nan_to_num(stack_nd)):
        left_d = params_d - np.asarray(gamma, params_d.dtype) * u_d
        for variable in copy.trainable_variables:
            part, left_d = np.split(left_d, [variable.value.shape.num_elements()])
            variable.assign(part.reshape(variable.shape))
        found.append(float(loss_of(copy)))
    return np.array(found)


@pytest.mark.parametrize("make", [network, everything])
def test_losses_are_those_of_the_model_after_each_step(make, examples, rng):
    model = make()
    variables = tf_variables(model)
    params_d = flat(variables)
    stack_nd = rng.standard_normal((6, len(params_d))).astype(np.float32)
    stack_nd[2, ::3] = np.nan

    def loss_of(points, labels):
        return of_labels(labels, model(points, training=False))

    losses = LossOnCopies(loss_of, variables, Examples(examples))
    rows = np.array([0, 2, 3, 5])
    got = losses(params_d, stack_nd, rows, GAMMA, 4, np.random.default_rng(7))
    points, labels = Examples(examples).draw(np.random.default_rng(7), 4)
    expected = losses_by_hand(
        model, lambda copy: of_labels(labels, copy(points)), params_d, stack_nd[rows], GAMMA
    )
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert len(set(got.tolist())) == 5


@pytest.mark.parametrize("make", [network, everything])
def test_the_gradient_is_that_of_the_model_at_the_parameters(make, examples, rng):
    model = make()
    variables = tf_variables(model)
    before = [variable.numpy() for variable in model.variables]
    params_d = flat(variables) + np.float32(0.1)

    def loss_of(points, labels):
        return of_labels(labels, model(points, training=False))

    losses = LossOnCopies(loss_of, variables, Examples(examples))
    got = [losses.gradient(params_d, 4, np.random.default_rng(7)) for _ in range(2)]
    others = LossOnCopies(loss_of, variables, Examples(examples))
    everybody = others.gradient(params_d, 10**6, np.random.default_rng(7))
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    for variable in variables:
        variable.assign_add(tf.fill(variable.shape, 0.1))
    batches = Examples(examples).draw(np.random.default_rng(7), 4), examples
    for grad_d, batch in zip((got[0], everybody), batches, strict=True):
        with tf.GradientTape() as tape:
            loss = loss_of(*batch)
        expected = tape.gradient(loss, variables)
        expected_d = np.concatenate([tf.reshape(each, [-1]) for each in expected])
        np.testing.assert_allclose(grad_d, expected_d, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(*got)


def test_a_gradient_is_0_where_the_loss_does_not_depend_on_a_variable(rng):
    x, unused = tf.Variable([1.0, 2.0]), tf.Variable([9.0])
    losses = LossOnCopies(lambda: tf.reduce_sum(x**2) / 2, [x, unused], None)
    got = losses.gradient(np.array([3, -4, 0], np.float32), 1, rng)
    np.testing.assert_array_equal(got, [3, -4, 0])
    np.testing.assert_array_equal(x, [1, 2])


def test_any_number_of_rows_is_traced_once(rng):
    x = tf.Variable([1.0, 2.0])
    traces = []

    def loss_of():
        traces.append(1)
        return tf.reduce_sum(x)

    losses = LossOnCopies(loss_of, [x], None)
    for n, k in [(3, 2), (3, 3), (2, 1), (5, 0)]:
        stack_nd = np.ones((n, 2), np.float32)
        got = losses(np.array([1, 2], np.float32), stack_nd, np.arange(k), 0.5, 4, rng)
        np.testing.assert_array_equal(got, [3, *[2] * k])
    assert len(traces) == 1


def test_they_are_of_the_variables_as_they_are_and_of_the_rounds_examples(examples, rng):
    model = everything()
    variables = tf_variables(model)

    def loss_of(points, labels):
        return of_labels(labels, model(points, training=False))

    losses = LossOnCopies(loss_of, variables, Examples(examples))

    def ask(seed=0):
        stack_nd = np.zeros((1, len(flat(variables))), np.float32)
        return losses(
            flat(variables), stack_nd, np.array([0]), GAMMA, 4, np.random.default_rng(seed)
        )

    first = ask()
    np.testing.assert_array_equal(first, ask())
    assert (first != ask(seed=1)).all()
    for changed in (model.layers[0].bias, model.layers[1].moving_mean, model.layers[3].kernel):
        before = changed.numpy()
        changed.assign(before + 1)
        assert (first != ask()).all(), changed.path
        changed.assign(before)
    np.testing.assert_array_equal(first, ask())


def states_of(model, metric):
    keras_generator = keras.src.random.seed_generator.global_seed_generator().state.numpy()
    return [
        *(variable.numpy() for variable in (*model.variables, *metric.variables)),
        keras_generator,
        tf.random.get_global_generator().state.numpy(),
        np.array(random.getstate()[1]),
        np.random.get_state()[1],  # noqa: NPY002
    ]


def test_nothing_that_the_loss_reads_or_writes_is_changed(examples, rng):
    """Even by a loss that does all that one should not do: it trains, draws and measures."""
    model = everything()
    metric = keras.metrics.SparseCategoricalAccuracy()
    metric.update_state([0], [[1.0, 0.0]])
    variables = tf_variables(model)
    params_d = flat(variables)
    calls = tf.Variable(0)

    def loss_of(points, labels):
        calls.assign_add(1)
        logits = model(points + keras.random.normal([4, FEATURES]), training=True)
        metric.update_state(labels, logits)
        noise = tf.random.get_global_generator().normal([])
        return of_labels(labels, logits) + 1e-3 * noise

    losses = LossOnCopies(loss_of, variables, Examples(examples))
    before = states_of(model, metric)
    stack_nd = rng.standard_normal((5, len(params_d))).astype(np.float32)
    stack_nd[3] = 0
    got = losses(params_d, stack_nd, np.arange(5), GAMMA, 4, rng)
    for one, other in zip(before, states_of(model, metric), strict=True):
        np.testing.assert_array_equal(one, other)
    assert calls.numpy() == 0
    # All losses of a round begin in the same state: a step along nothing changes no bit.
    assert got[4] == got[0]
    assert len(set(got.tolist())) == 5
    # What is drawn and counted goes on as if nothing had been: the script's own call does it.
    loss_of(*(each[:4] for each in examples))
    assert calls.numpy() == 1


def test_variables_of_a_module_without_keras(rng):
    class Quadratic(tf.Module):
        def __init__(self):
            super().__init__()
            self.x = tf.Variable([1.0, 0.0], dtype=tf.float64)
            self.unused = tf.Variable([9.0], dtype=tf.float64)

        @tf.function
        def __call__(self):
            if self.x[0] > -1e9:  # AutoGraph's
                return tf.reduce_sum(self.x**2) / 2
            return tf.constant(0.0, tf.float64)

    module = Quadratic()
    losses = LossOnCopies(lambda: module(), [module.x, module.unused], None)
    rows_nd = np.array([[1, 0], [0.5, 0], [-1, 0], [0, 3], [1e20, 0], [np.nan, np.nan]])
    stack_nd = np.concatenate([rows_nd, np.zeros((6, 1))], axis=1)
    x_d = np.array([1.0, 0.0, 9.0])
    context = Context(
        learning_rate=lambda: 0.5,
        losses=lambda stack_nd, rows, gamma, n_r: losses(x_d, stack_nd, rows, gamma, n_r, rng),
    )
    for given in (stack_nd, tf.constant(stack_nd)):
        aggregated, _ = GARS["zeno"].apply(given, {}, context, f=4, b=4, rho=0.01)
        np.testing.assert_allclose(aggregated.grad_d, [0.75, 0, 0], rtol=1e-6)
        np.testing.assert_array_equal(aggregated.usage_n, [1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(module.x, [1, 0])


def test_mixed_types_and_complex_variables(rng):
    half = tf.Variable([1.0, 2.0], dtype=tf.bfloat16)
    turned = tf.Variable([1 + 2j], dtype=tf.complex64)

    def loss_of():
        return tf.reduce_sum(tf.cast(half, tf.float32)) + tf.math.real(turned[0]) * 10

    losses = LossOnCopies(loss_of, [half, turned], None)
    params_d = np.array([1, 2, 1, 2], np.float32)
    stack_nd = np.eye(4, dtype=np.float32)
    got = losses(params_d, stack_nd, np.arange(4), 1.0, 4, rng)
    np.testing.assert_allclose(got, [13, 12, 12, 3, 13])


@pytest.mark.parametrize(
    ("loss_of", "message"),
    [
        (lambda x: lambda: x * 1.0, r"must be a scalar, got shape \(2,\)"),
        (lambda x: lambda: None, "must be a scalar, got NoneType"),
        (lambda x: lambda: tf.constant(1.0), "depends on none of the variables that are trained"),
    ],
)
def test_a_loss_that_is_none(loss_of, message, rng):
    x = tf.Variable([1.0, 2.0])
    losses = LossOnCopies(loss_of(x), [x], None)
    with pytest.raises(UserError, match=message):
        losses(np.ones(2, np.float32), np.ones((1, 2), np.float32), np.array([0]), 1.0, 4, rng)


def test_examples_are_drawn_without_repetition_in_the_structure_that_is_given(rng):
    ids = np.arange(50)
    examples = Examples(({"a": ids, "b": ids * 2}, ids + 1))
    assert examples.count == 50
    first, labels = examples.draw(generator("x", 3, 7), 20)
    assert len(set(first["a"].tolist())) == 20
    np.testing.assert_array_equal(first["b"], 2 * first["a"])
    np.testing.assert_array_equal(labels, first["a"] + 1)
    again, _ = examples.draw(generator("x", 3, 7), 20)
    other, _ = examples.draw(generator("x", 3, 8), 20)
    np.testing.assert_array_equal(first["a"], again["a"])
    assert (first["a"] != other["a"]).any()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((), "found none"),
        ((np.zeros((0, 2)),), "found 0"),
        ((np.zeros((3, 2)), np.zeros(4)), "found 3, 4"),
    ],
)
def test_what_are_no_examples(arrays, message):
    with pytest.raises(UserError, match=message):
        Examples(arrays)


def test_fewer_examples_than_are_drawn(rng):
    with pytest.raises(UserError, match="n_r=4 examples are to be drawn of 3: give more"):
        Examples((np.zeros(3),)).draw(rng, 4)


def test_an_aggregation_lends_what_it_is_given(rng):
    """The generator of the draws is the server's own, one for each round."""
    asked = []

    def validation(params_d, stack_nd, rows, gamma, n_r, rng):
        asked.append((params_d.tolist(), gamma, n_r, int(rng.integers(1 << 60))))
        return np.array([1.0, *(2.0 - row for row in rows)])

    setting = Setting(num_workers=3, gar="zeno", f=1, gar_args={"n_r": 7}, seed=5)
    aggregation = Aggregation(
        setting, 2, secret=11, learning_rate=lambda: 0.125, validation=validation
    )
    stack_nd = np.eye(3, 2, dtype=np.float32)
    for round in (4, 4, 5):
        context = aggregation.context(round, lambda: np.array([3.0, 4.0]))
        aggregated = aggregation.aggregate(stack_nd, np.array([], int), context)
    np.testing.assert_array_equal(aggregated.usage_n, [0, 1, 1])
    drawn = [each[-1] for each in asked]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] == int(generator("rule validation", 11, 4).integers(1 << 60))
    assert [each[:3] for each in asked] == [([3.0, 4.0], 0.125, 7)] * 3


def test_rows_that_are_missing_count_as_lost():
    """Of 5 rows with b = 3, without 1: the condition f <= b < 4 holds, and 1 row is kept."""
    setting = Setting(num_workers=5, gar="zeno", f=2, gar_args={"b": 3})
    aggregation = Aggregation(
        setting,
        2,
        learning_rate=lambda: 1.0,
        validation=lambda params_d, stack_nd, rows, *_: np.append(9.0, -stack_nd[rows, 0]),
    )
    stack_nd = np.arange(10, dtype=np.float32).reshape(5, 2) / 100
    for missing, kept in (([4], [3]), ([2, 4], [1, 3])):
        stack_nd[missing] = np.nan
        context = aggregation.context(0, lambda: np.zeros(2, np.float32))
        aggregated = aggregation.aggregate(stack_nd, np.array(missing), context)
        np.testing.assert_array_equal(np.flatnonzero(aggregated.usage_n), kept)


MEMORY = """
import resource
import numpy as np
import tensorflow as tf
from aggregathor.gars import GARS, Context
from aggregathor.protocols.validation import LossOnCopies
from lossympi.link import aligned_zeros

d, n = 2_000_000, 40
x = tf.Variable(tf.zeros(d))
losses = LossOnCopies(lambda: tf.reduce_sum(x * x), [x], None)
params_d = np.ones(d, np.float32)
context = Context(
    learning_rate=lambda: 0.1,
    losses=lambda given_nd, rows, gamma, n_r: losses(params_d, given_nd, rows, gamma, n_r, None),
)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def apply(n):
    stack_nd = aligned_zeros((n, d))
    stack_nd[:] = 1
    before = peak()
    GARS["zeno"].apply(stack_nd, {}, context, f=n // 3)
    return (peak() - before) / stack_nd.nbytes

apply(3)  # what TensorFlow takes for itself
print(apply(n))
"""


def test_no_copy_of_the_stack_is_made():
    """As a link has it, in aligned memory; a row is 1/40 of it."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, timeout=120
    )
    assert float(done.stdout) < 0.3


def test_the_oracle_agrees_on_a_network(examples, rng):
    model = network(layers.Dense(4, "tanh"))
    variables = tf_variables(model)
    params_d = flat(variables)
    points, labels = examples

    def loss_of():
        return of_labels(labels, model(points, training=False))

    losses = LossOnCopies(loss_of, variables, None)
    stack_nd = rng.standard_normal((9, len(params_d))).astype(np.float32)
    stack_nd[1] *= 1e20
    stack_nd[7, 2:] = np.nan
    context = Context(
        learning_rate=lambda: GAMMA,
        losses=lambda given_nd, rows, gamma, n_r: losses(params_d, given_nd, rows, gamma, n_r, rng),
    )
    aggregated, _ = GARS["zeno"].apply(stack_nd, {}, context, f=5)

    def loss_at(x_d):
        with np.errstate(over="ignore", invalid="ignore"):
            return losses_by_hand(
                model,
                lambda copy: of_labels(labels, copy(points)),
                np.asarray(x_d, np.float32),
                np.zeros((0, len(x_d)), np.float32),
                GAMMA,
            )[0]

    expected_d, _, kept = reference.zeno(stack_nd, 5, loss_at, params_d, GAMMA)
    assert set(np.flatnonzero(aggregated.usage_n)) == set(kept)
    np.testing.assert_allclose(aggregated.grad_d, expected_d, rtol=1e-5, atol=1e-6)
