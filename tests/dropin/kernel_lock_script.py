"""Trains in a way that is named, with the lock of kernels; a worker tries to write then."""

import sys

import keras
import numpy as np
import tensorflow as tf

import aggregathor as agt
from tests.mpi.results import digest, leave

agt.init(gar="average", link_args={"timeout_s": 5.0})
inputs = np.random.default_rng(0).standard_normal([16, 4]).astype(np.float32)
v1 = tf.compat.v1


def model_of():
    layers = keras.layers
    return keras.Sequential(
        [keras.Input([4]), layers.Dense(3), layers.BatchNormalization(), layers.Dense(1)]
    )


def fit(**compiled):
    """Keras's ``fit``, which ends with the server's variables."""
    model = model_of()
    model.compile(agt.DistributedOptimizer("adam"), "mse", **compiled)
    model.fit(inputs, inputs[:, :1], epochs=3, batch_size=4, verbose=0)
    end(model.trainable_variables, lambda: model.layers[0].kernel.assign(np.ones([4, 3])))


def fit_eagerly():
    fit(run_eagerly=True)


def fit_compiled():
    fit(jit_compile=True)


def tape(step_of=tf.function):
    """A loop of one's own."""
    model = model_of()
    optimizer = agt.DistributedOptimizer(keras.optimizers.SGD(0.05))

    @step_of
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(inputs) - inputs[:, :1]) ** 2)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)

    for _ in range(6):
        step()
    end(model.trainable_variables, lambda: model.layers[0].kernel.assign(np.ones([4, 3])))


def tape_eagerly():
    tape(lambda step: step)


def mirrored():
    """Two replicas in each rank, on two devices that are one CPU."""
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = model_of()
        model.compile(agt.DistributedOptimizer(keras.optimizers.SGD(0.05)), "mse")
    data = tf.data.Dataset.from_tensor_slices((inputs, inputs[:, :1])).batch(8)
    model.fit(data, epochs=3, verbose=0)
    replica = model.layers[0].kernel.value.values[1]
    end(model.trainable_variables, lambda: replica.assign(np.ones([4, 3])))


def session(use_resource=True):
    """v1: a session."""
    with tf.Graph().as_default(), v1.Session() as session:
        w = v1.get_variable("w", [4, 1], use_resource=use_resource)
        optimizer = agt.DistributedOptimizer(v1.train.AdamOptimizer(0.1))
        step = optimizer.minimize(tf.reduce_sum((inputs @ w - 1.0) ** 2))
        session.run(v1.global_variables_initializer())
        for _ in range(6):
            session.run(step)
        end([session.run(w)], lambda: session.run(v1.assign(w, tf.ones([4, 1]))))


def session_of_references():
    session(use_resource=False)


def end(values, write):
    """Leaves what all ranks must have alike, and why a write is refused."""
    found = digest(values)
    refused = None
    try:
        write()
    except tf.errors.PermissionDeniedError as error:
        refused = error.message
    leave(agt.rank(), {"digest": found, "refused": refused})


WAYS = (fit, fit_eagerly, fit_compiled, tape, tape_eagerly, mirrored, session)
WAYS += (session_of_references,)
{way.__name__: way for way in WAYS}[sys.argv[1]]()
