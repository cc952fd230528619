"""A job whose second worker changes a shared variable between two steps, in ways no graph shows."""

import ctypes
import os
import threading

import keras
import numpy as np
import tensorflow as tf

import aggregathor as agt
from aggregathor import api
from tests.mpi.results import digest, leave

agt.init(gar="average", lock="scan,digest")
inputs = np.random.default_rng(agt.rank()).standard_normal((32, 4), dtype=np.float32)
keras.utils.set_random_seed(1)
model = keras.Sequential([keras.Input([4]), keras.layers.Dense(3), keras.layers.Dense(1)])
kernel = model.trainable_variables[0].value
zeros = tf.train.Checkpoint(kernel=tf.Variable(tf.zeros_like(kernel)))
saved = zeros.write(os.path.join(os.environ["RESULTS"], "zeros"))  # by the server
optimizer = agt.DistributedOptimizer(keras.optimizers.SGD(0.01))
model.compile(optimizer, "mse")


def step(x, optimizer=optimizer):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(x) ** 2)
    optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)


graph_step = tf.function(step)
other = agt.DistributedOptimizer(keras.optimizers.Adam(0.01))
other_step = tf.function(lambda x: step(x, other))


def in_graphs(between):
    graph_step(inputs)
    between()
    graph_step(inputs)


def by_two_optimizers(between):
    """Each of which writes what the other has noted."""
    graph_step(inputs)
    other_step(inputs)
    between()
    graph_step(inputs)


def first_of_fit(between):
    class Before(keras.callbacks.Callback):
        begun = False

        def on_train_batch_begin(self, batch, logs=None):
            if not self.begun:  # a worker begins one more than the server makes
                between()
            self.begun = True

    model.fit(inputs, inputs[:, :1], verbose=0, batch_size=32, callbacks=[Before()])


def eager(between):
    step(inputs)
    between()
    step(inputs)


def fit(between):
    class Between(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 0:
                between()

    model.fit(inputs, inputs[:, :1], verbose=0, batch_size=16, callbacks=[Between()])


def nothing():
    """What an honest script does."""
    model(inputs)
    np.mean(kernel.numpy())


def eagerly():
    kernel.assign_add(tf.ones_like(kernel))


def by_one_bit():
    bits = tf.bitcast(kernel, tf.int32)
    kernel.assign(tf.bitcast(tf.tensor_scatter_nd_add(bits, [[0, 0]], [1]), tf.float32))


def in_another_thread():
    thread = threading.Thread(target=eagerly)
    thread.start()
    thread.join()


def in_memory():
    """As native code can, which asks nobody."""
    address = np.asarray(memoryview(kernel.read_value())).ctypes.data
    ctypes.c_float.from_address(address).value = 7.0


def restored():
    tf.train.Checkpoint(kernel=kernel).read(saved)


def seen():
    """How often a change was seen, on a worker."""
    return 0 if agt.is_server() else api._dropin.guard._digest.changed.total()


results = {}
for way in (nothing, eagerly, by_one_bit, in_another_thread, in_memory, restored):
    results[way.__name__] = {}
    for train in (in_graphs, by_two_optimizers, eager, fit, first_of_fit):
        before = seen()
        train(way if agt.rank() == 2 else nothing)
        changed = seen() - before
        result = {"seen": changed, "digest": digest(model.get_weights())}
        results[way.__name__][train.__name__] = result
leave(agt.rank(), results)
