"""Trains models whose variables are made by the first call of their step, in a `tf.function`.

Those of Keras train once more, built before: both ways begin with the same values and draw the same
batches and dropouts.
"""

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import aggregathor as agt
from tests.mpi.results import digest, leave

agt.init(gar="median", f=1)
pixels, labels = load_digits(return_X_y=True)
pixels = (pixels / 16).astype(np.float32)
loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def of_layers():
    """Keras's layers, some of which have statistics and seeds, and an optimizer with slots."""
    keras.utils.set_random_seed(agt.rank())  # the server's values count
    model = keras.Sequential(
        [
            *(keras.layers.Dense(32, "relu"), keras.layers.BatchNormalization()),
            *(keras.layers.Dropout(0.1), keras.layers.Dense(10)),
        ]
    )
    return model, model, keras.optimizers.Adam(0.01)


def nested():
    """The model's call is a function of its own within the step."""
    model, _, optimizer = of_layers()
    return model, tf.function(model), optimizer


def of_a_module():
    """A module of TensorFlow's, which draws its initial values while it is traced."""

    class Lazy(tf.Module):
        weights = None

        def __call__(self, x, training):
            if self.weights is None:
                self.weights = tf.Variable(tf.random.normal([64, 10], stddev=0.1))
                self.bias = tf.Variable(tf.zeros([10]))
            return x @ self.weights + self.bias

    model = Lazy()
    return model, model, keras.optimizers.SGD(0.5)


def train(model, call, optimizer):
    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(y, call(x, training=True))
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    rng = np.random.default_rng(agt.rank())
    for _ in range(60):
        batch = rng.integers(0, 1400, 64)
        step(pixels[batch], labels[batch])


def accuracy(model):
    scores = model(pixels[1400:], training=False)
    return float(np.mean(np.argmax(scores, axis=1) == labels[1400:]))


def result_of(make, *, build=False):
    model, call, optimizer = make()
    if build:
        model.build([None, 64])
    train(model, call, agt.DistributedOptimizer(optimizer))
    return {"accuracy": accuracy(model), "digest": digest(model.trainable_variables)}


# The first round of a script moves the seeds of each rank apart, for both ways alike if before.
results = {
    "of_a_module": result_of(of_a_module),
    "of_layers": result_of(of_layers),
    "nested": result_of(nested),
    "built": result_of(of_layers, build=True),
    "untrained": {
        "of_a_module": accuracy(of_a_module()[0]),
        "of_layers": accuracy(of_layers()[0]),
    },
}
leave(agt.rank(), results)
