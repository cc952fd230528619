"""Ways to write a locked variable from a graph, and honest graphs."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from aggregathor.locking import Guard, LockError

ONES = tf.ones([2, 3])
OTHER = tf.Variable(ONES)


@pytest.fixture
def guard():
    with contextlib.closing(Guard("rank 2")) as guard:
        yield guard


def locked(guard):
    v = tf.Variable(tf.zeros([2, 3]), name="kernel")
    guard.lock([v])
    return v


def in_cond(v):
    return tf.cond(tf.reduce_sum(ONES) > 5, lambda: v.assign(ONES), lambda: v.read_value())


def in_while(v):
    def body(i):
        v.assign_add(ONES)
        return (i + 1,)

    return tf.while_loop(lambda i: i < 2, body, [tf.constant(0)])


def in_autograph_loop(v):
    for _ in tf.range(2):
        v.assign_sub(ONES)


def in_case(v):
    return tf.switch_case(tf.size(ONES) - 5, [lambda: v.read_value(), lambda: v.assign(ONES)])


def in_inner_function(v):
    return tf.function(lambda: v.assign(ONES))()


def in_gradient(v):
    @tf.custom_gradient
    def sneaky(x):
        def grad(dy):
            v.assign(ONES)
            return dy

        return x, grad

    with tf.GradientTape() as tape:
        tape.watch(ONES)
        y = sneaky(ONES)
    return tape.gradient(y, ONES)


def in_dataset(v):
    return tf.data.Dataset.range(2).map(lambda i: v.assign_add(ONES)).reduce(0.0, lambda a, b: a)


def by_packed_handles(v):
    handles = tf.stack([v.handle, v.handle])
    tf.raw_ops.AssignVariableOp(resource=tf.unstack(handles)[1], value=ONES)


def by_chosen_handle(v):
    handle = tf.cond(tf.size(ONES) > 2, lambda: v.handle, lambda: OTHER.handle)
    tf.raw_ops.AssignVariableOp(resource=handle, value=ONES)


def by_handle_as_argument(v):
    @tf.function(input_signature=[tf.TensorSpec([], tf.resource)])
    def write(handle):
        tf.raw_ops.AssignAddVariableOp(resource=handle, value=ONES)

    write(v.handle)


def by_variable_as_argument(v):
    tf.function(lambda variable: variable.assign(ONES))(v)


def by_second_optimizer(v):
    tf.raw_ops.ResourceApplyGradientDescent(var=v.handle, alpha=0.1, delta=ONES)


def by_destroying(v):
    tf.raw_ops.DestroyResourceOp(resource=v.handle)


def by_wrapped_function(v):
    tf.compat.v1.wrap_function(lambda: v.assign(ONES), [])()


def by_numpy_function(v):
    def write():
        v.assign(ONES)

    tf.numpy_function(write, [], [])


def by_py_function_of_a_model(v):
    holder = {"models": [Holder(v)]}

    def write():
        holder["models"][0].overwrite()

    tf.py_function(write, [], [])


class Holder:
    def __init__(self, v):
        self._v = v

    def overwrite(self):
        self._v.assign(ONES)


WRITES = {
    "assign": lambda v: v.assign(ONES),
    "assign_add": lambda v: v.assign_add(ONES),
    "assign_sub": lambda v: v.assign_sub(ONES),
    "a part": lambda v: v[0, 1].assign(3.0),
    "scatter": lambda v: v.scatter_nd_update([[0]], tf.ones([1, 3])),
    "batch scatter": lambda v: v.batch_scatter_update(
        tf.IndexedSlices(tf.ones([2, 1]), tf.constant([[0], [0]]))
    ),
    "count up": lambda v: tf.raw_ops.ResourceCountUpTo(resource=v.handle, limit=3, T=tf.int32),
    "identity": lambda v: tf.raw_ops.AssignVariableOp(resource=tf.identity(v.handle), value=ONES),
    "cond": in_cond,
    "while": in_while,
    "AutoGraph": in_autograph_loop,
    "case": in_case,
    "function": in_inner_function,
    "gradient": in_gradient,
    "dataset": in_dataset,
    "packed": by_packed_handles,
    "chosen": by_chosen_handle,
    "argument": by_handle_as_argument,
    "variable argument": by_variable_as_argument,
    "second optimizer": by_second_optimizer,
    "destroyed": by_destroying,
    "wrapped function": by_wrapped_function,
    "numpy_function": by_numpy_function,
    "py_function": by_py_function_of_a_model,
}


def run(way, v):
    @tf.function
    def step():
        WRITES[way](v)

    step()


@pytest.mark.parametrize("way", WRITES)
def test_a_write_is_found_before_it_runs(way, guard):
    v = tf.Variable(tf.zeros([2, 3]) if way != "count up" else 0, name="kernel")
    guard.lock([v])
    before = v.numpy()
    with pytest.raises(LockError, match=r"rank 2 would write kernel.*test_scan\.py:\d+") as raised:
        run(way, v)
    assert "which only the server writes" in str(raised.value)
    np.testing.assert_array_equal(v.numpy(), before)


@pytest.mark.parametrize("way", WRITES)
def test_the_same_to_a_variable_of_ones_own_is_allowed(way, guard):
    locked(guard)
    own = tf.Variable(tf.zeros([2, 3]), name="own")
    if way == "count up":
        own = tf.Variable(0)
    run(way, own)


def test_a_function_of_v1_is_found(guard):
    v = locked(guard)
    with pytest.raises(LockError, match=r"rank 2 would write kernel"):
        by_wrapped_function(v)


def test_what_was_traced_before_the_lock_is_found_then(guard):
    v = tf.Variable(ONES)
    step = tf.function(lambda: v.assign(ONES))
    step()
    with pytest.raises(LockError):
        guard.lock([v])


def test_the_first_of_several_is_named_by_its_path(guard):
    layers = [keras.layers.Dense(3, name=name) for name in ("first", "second")]
    model = keras.Sequential([keras.Input([2]), *layers], name="model")
    guard.lock(model.trainable_variables)

    @tf.function
    def step():
        for variable in model.trainable_variables:
            variable.assign(variable * 2)

    with pytest.raises(LockError, match=r"write model/first/kernel, .* \(and 3 more\)"):
        step()


def test_what_is_allowed_may_write(guard):
    v = locked(guard)

    @tf.function
    def step():
        guard.allow(v.assign(ONES, read_value=False))

    step()
    np.testing.assert_array_equal(v.numpy(), ONES)


def test_python_that_reaches_nothing_is_left_alone(guard):
    v = locked(guard)
    seen = []

    @tf.function
    def step(x):
        tf.numpy_function(lambda value: seen.append(value), [v * x], [])
        return tf.py_function(lambda value: value + 1, [x], tf.float32)

    step(ONES)
    assert len(seen) == 1


def test_honest_steps_are_left_alone(guard):
    model = keras.Sequential(
        [
            keras.Input([8, 8, 1]),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    guard.lock(model.trainable_variables)
    loss, metric = keras.losses.SparseCategoricalCrossentropy(True), keras.metrics.Mean()

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        metric.update_state(value)
        return tape.gradient(value, model.trainable_variables)

    step(tf.ones([4, 8, 8, 1]), tf.zeros([4]))
    model(tf.ones([1, 8, 8, 1]))
