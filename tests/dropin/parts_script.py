"""Trains with gradients that leave in parts, and as a whole; then a step fails half-way."""

import hashlib
import sys

import keras
import numpy as np
import tensorflow as tf

import aggregathor as agt
from aggregathor.ops import channel

STEPS = 5
agt.init(gar="average-nan", transport="udp", link_args={"timeout_s": 2.0})
inputs = np.random.default_rng(agt.rank()).standard_normal((STEPS, 8, 64), dtype=np.float32)
weights = None


class Failed(Exception):
    """What a step fails with."""


def train(name):
    """Trains a model from the same weights on; returns it and its step."""
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
        step(x, False)
    graph = step.get_concrete_function(inputs[0], False).graph
    parts = sum(op.type == "AggregathorFill" for op in graph.get_operations())
    sys.stdout.write(f"rank {agt.rank()}, {name}: {parts} parts, weights {digest(model)}\n")
    return model, step


def digest(model):
    return hashlib.sha256(b"".join(w.tobytes() for w in model.get_weights())).hexdigest()


model, step = train("in parts")
if agt.rank() == 1:
    try:
        step(inputs[0], True)
    except tf.errors.UnknownError as error:
        assert "Failed" in str(error)  # noqa: PT017
    step(inputs[0], False)
else:
    step(inputs[0], False)
if agt.is_server():
    last = agt.last_round()
    sys.stdout.write(f"delivered {last.delivered_n.tolist()}\n")
step(inputs[0], False)
if agt.is_server():
    sys.stdout.write(f"then {agt.last_round().delivered_n.tolist()}\n")
sys.stdout.write(f"rank {agt.rank()}, after it: weights {digest(model)}\n")
channel.LEAST_PART = 10**9
train("as a whole")
