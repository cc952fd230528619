"""Writes that leave a worker's variables the server's, and those by which they would drift."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from aggregathor.locking import Guard, LockError

ONES = tf.ones([2, 3])
COUNT = tf.Variable(0)
SLOW = tf.Variable(ONES, trainable=False)
TABLE = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0.0)
GENERATOR = tf.random.Generator.from_seed(1)


@pytest.fixture
def guard():
    with contextlib.closing(Guard("rank 2", is_strict=False)) as guard:
        yield guard


def climb(v, x, round):
    """As sharpness-aware minimisation: there and back, and then the round."""
    v.assign_add(x)
    v.assign_sub(x)
    round()


def climb_in_functions(v, x, round):
    @tf.function
    def there(x):
        v.assign_add(x)

    @tf.function
    def back(x):
        v.assign_sub(x)

    there(x)
    back(x)
    round()


def climb_in_a_branch(v, x, round):
    if tf.reduce_sum(x) > 0:
        v.assign_add(x)
    for _ in tf.range(2):
        v.assign(v * x)
    round()


def noise(v, x, round):
    v.assign_add(tf.random.normal([2, 3]))
    round()


def round_in_a_function(v, x, round):
    v.assign(x)
    tf.function(round)()


def clip(v, x, round):
    """As a critic's weights are, after the round and without one."""
    round()
    v.assign(tf.clip_by_value(v, -0.1, 0.1))


def clip_alone(v, x, round):
    tf.function(lambda: v.assign(tf.clip_by_norm(v, 1.0)))()


def look_ahead(v, x, round):
    round()
    COUNT.assign_add(1)
    if COUNT % 5 == 0:
        SLOW.assign_add(0.5 * (v - SLOW))
        v.assign(SLOW)


def swap(v, x, round):
    """To evaluate an average of the weights, by an inner function."""

    @tf.function
    def write(variable, value):
        variable.assign(value)

    kept = v.read_value()
    write(v, SLOW.read_value())
    write(v, kept)


def by_python(v, x, round):
    """Python that reads the variable, and another that computes."""
    tf.py_function(lambda: np.sum(v.numpy()), [], tf.float32)
    tf.numpy_function(np.sum, [x], tf.float32)


ALIKE = {
    each.__name__: each
    for each in (
        *(climb, climb_in_functions, climb_in_a_branch, noise, round_in_a_function, clip),
        *(clip_alone, look_ahead, swap, by_python),
    )
}


def by_gradient(v, x, round):
    """As an optimizer does that takes no part."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((v * x) ** 2)
    round()
    v.assign_sub(0.1 * tape.gradient(loss, v))


def without_round(v, x, round):
    v.assign(x)


def by_keras(v, x, round):
    keras.optimizers.SGD(0.1).apply([x], [v])


def by_random(v, x, round):
    round()
    v.assign(tf.random.uniform([2, 3]))


def by_seed(v, x, round):
    v.assign(tf.random.stateless_uniform([2, 3], tf.stack([COUNT, COUNT])))


def by_generator(v, x, round):
    v.assign(GENERATOR.normal([2, 3]))


def by_table(v, x, round):
    v.assign(TABLE.lookup(tf.constant(1, tf.int64)) * ONES)


def by_dataset(v, x, round):
    for value in tf.data.Dataset.from_tensors(tf.ones([2, 3])).repeat(2):
        v.assign(value)


def in_a_map(v, x, round):
    tf.data.Dataset.from_tensors(x).map(lambda y: v.assign(y)).reduce(0.0, lambda a, b: a)


def decided_by_data(v, x, round):
    if tf.reduce_sum(x) > 0:
        v.assign(ONES)


def in_a_loop_over_data(v, x, round):
    while tf.reduce_sum(x) < 9:
        x += 1
        v.assign(2 * v)


def carried_by_a_loop(v, x, round):
    for _ in tf.range(2):
        v.assign(x)
        x = 2 * x


def as_an_argument(v, x, round):
    tf.function(lambda variable, value: variable.assign(value))(v, x)


def a_result(v, x, round):
    first, second = tf.function(lambda x: (ONES, 2 * x))(x)
    SLOW.assign(first)
    v.assign(second)


def round_in_a_branch(v, x, round):
    """Which may not come."""
    v.assign(x)
    if COUNT % 2 == 0:
        round()


def after_python(v, x, round):
    v.assign(tf.ensure_shape(tf.py_function(np.ones, [[2, 3]], tf.float32), [2, 3]))


def python_that_writes(v, x, round):
    def write():
        v.assign(ONES)

    tf.py_function(write, [], [])


DRIFTS = {
    each.__name__: each
    for each in (
        *(by_gradient, without_round, by_keras, by_random, by_seed, by_generator, by_table),
        *(by_dataset, in_a_map, decided_by_data, in_a_loop_over_data, carried_by_a_loop),
        *(as_an_argument, a_result, round_in_a_branch, after_python, python_that_writes),
    )
}


@pytest.mark.parametrize("way", ALIKE)
def test_a_write_that_all_ranks_make_or_a_round_replaces_may_run(way, guard):
    v = tf.Variable(tf.zeros([2, 3]), name="kernel")
    guard.lock([v])
    run(way, v, guard, ALIKE)


@pytest.mark.parametrize("way", DRIFTS)
def test_a_write_by_which_a_worker_would_drift_is_refused(way, guard):
    v = tf.Variable(tf.zeros([2, 3]), name="kernel")
    guard.lock([v])
    with pytest.raises(LockError, match=r"rank 2 would write kernel, .*agt\.apply"):
        run(way, v, guard, DRIFTS)
    np.testing.assert_array_equal(v, 0)


def run(way, v, guard, ways):
    def round():
        """Assigns what the server has sent, as a worker does."""
        guard.allow(v.assign(ONES, read_value=False))

    way = ways[way]

    @tf.function
    def step(x):
        way(v, x, round)

    step(tf.ones([2, 3]))


@pytest.mark.parametrize("way", ["climb", "by_gradient", "clip"])
def test_strictly_all_of_them_are_refused(way, guard):
    v = tf.Variable(tf.zeros([2, 3]), name="kernel")
    guard.lock([v], patch=False)
    with pytest.raises(LockError, match=r"rank 2 would write kernel, .* --lock=drift lets it"):
        run(way, v, guard, {**ALIKE, **DRIFTS})


def test_a_round_of_another_variable_replaces_nothing(guard):
    v, other = (tf.Variable(tf.zeros([2, 3]), name=name) for name in ("kernel", "other"))
    guard.lock([v, other])

    @tf.function
    def step(x):
        v.assign(x)
        guard.allow(other.assign(ONES, read_value=False))

    with pytest.raises(LockError, match="rank 2 would write kernel, "):
        step(ONES)


def test_what_was_traced_before_is_checked_then(guard):
    v = tf.Variable(tf.zeros([2, 3]), name="kernel")
    clip, write = tf.function(lambda: v.assign(v / 2)), tf.function(lambda x: v.assign(x))
    clip()
    guard.lock([v])
    other = tf.Variable(tf.zeros([2, 3]), name="other")
    tf.function(lambda x: other.assign(x))(ONES)
    with pytest.raises(LockError, match="rank 2 would write other"):
        guard.lock([other])
    del write


@pytest.mark.parametrize("training", [True, False])
def test_spectral_normalization_may_write_its_kernel(training, guard):
    layer = keras.layers.SpectralNormalization(keras.layers.Conv2D(4, 3), power_iterations=2)
    layer.build([None, 8, 8, 1])
    guard.lock(layer.trainable_variables)
    before = layer.kernel.numpy()
    tf.function(layer)(tf.ones([2, 8, 8, 1]), training=training)
    assert (layer.kernel.numpy() != before).any() == training
