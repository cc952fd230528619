"""Trains with gradients that leave in parts, where a step fails half-way, and as a whole."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import aggregathor as agt
from aggregathor.ops.exchange import exchange_op
from tests.mpi.results import digest, leave

STEPS = 5
agt.init(gar="average", transport="udp")
inputs = np.random.default_rng(agt.rank()).standard_normal((STEPS, 8, 64), dtype=np.float32)
weights = None
results = {}


class Failed(Exception):
    """What a step fails with."""


def train(name, fails=False):
    """Trains a model from the same weights on; each step of rank 1 may fail once."""
    global weights
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input([64]), keras.layers.Dense(300, "tanh"), keras.layers.Dense(100)]
    )
    weights = weights or model.get_weights()
    model.set_weights(weights)
    optimizer = agt.DistributedOptimizer(keras.optimizers.Adam(0.01))

    def fail_if_asked(fails, grad):
        if fails:
            raise Failed
        return grad

    @tf.function
    def step(x, fails):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(x) ** 2)
        first, *others = tape.gradient(loss, model.trainable_variables)
        shape = first.shape
        first = tf.numpy_function(fail_if_asked, [fails, first], tf.float32, stateful=False)
        first.set_shape(shape)
        optimizer.apply([first, *others], model.trainable_variables)
        return loss

    for x in inputs:
        if fails and agt.rank() == 1:
            with pytest.raises(tf.errors.UnknownError, match="Failed"):
                step(x, True)
        step(x, False)
    graph = step.get_concrete_function(inputs[0], False).graph
    parts = sum(op.type == "AggregathorFill" for op in graph.get_operations())
    results[name] = {"parts": parts, "digest": digest(model.get_weights())}


train("in parts")
train("with failures", fails=True)
exchange_op.LEAST_PART = 10**9
train("as a whole")
leave(agt.rank(), results)
