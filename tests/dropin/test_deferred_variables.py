import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager.polymorphic_function import polymorphic_function

from aggregathor.dropin.deferred_variables import initialise, keep_initial_values
from aggregathor.errors import UserError


@pytest.fixture(autouse=True)
def noted(monkeypatch):
    kind = polymorphic_function.UnliftedInitializerVariable
    monkeypatch.setattr(kind, "__init__", kind.__init__)  # as before, afterwards
    keep_initial_values(None)


def traced_once(make):
    """Returns the values that variables have within the first trace, and a step that reads them."""
    made, seen = [], []

    @tf.function(autograph=False)
    def step(x):
        if not made:
            made.extend(make(x))
            with tf.init_scope():
                initialise(made)
                seen.extend(v.numpy() for v in made)
        return [v.read_value() for v in made]

    return seen, step


def after_the_data(x):
    """In ops that wait for the data."""
    with tf.control_dependencies([x]):
        return [tf.Variable(lambda: tf.random.normal([2])), *of_layer(x)]


def of_layer(x):
    layer = keras.layers.Dense(3)
    layer.build(x.shape)
    return [weight.value for weight in layer.weights]


@pytest.mark.parametrize(
    "make",
    [
        lambda x: [tf.Variable(tf.ones([3])), tf.Variable(2.0)],
        lambda x: [tf.Variable(tf.random.normal([4]))],
        lambda x: [tf.Variable(tf.range(x.shape[0]))],
        of_layer,
        after_the_data,
    ],
    ids=["constants", "random", "by its shape", "of a layer", "after the data"],
)
def test_they_are_what_the_step_begins_with(make):
    seen, step = traced_once(make)
    for value, in_step in zip(seen, step(tf.ones([2, 2])), strict=True):
        np.testing.assert_array_equal(in_step, value)


def test_what_has_a_value_keeps_it():
    with_value = tf.Variable(3.0)
    initialise([with_value])
    assert with_value.numpy() == 3


def test_what_depends_on_the_data_is_refused():
    _, step = traced_once(lambda x: [tf.Variable(2 * x, name="scaled")])
    with pytest.raises(UserError, match=r"scaled.* is made by the step .* Build the model before"):
        step(tf.ones([2, 2]))
