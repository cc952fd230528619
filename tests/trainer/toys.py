"""Small problems to simulate: three clouds of points, and a few networks."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from aggregathor.protocols.setting import Setting
from aggregathor.trainer.sampling import batches
from aggregathor.trainer.simulation import Simulation

FEATURES, CLASSES = 16, 3


def clouds():
    rng = np.random.default_rng(0)
    labels = rng.integers(CLASSES, size=300).astype(np.int32)
    centres = 2 * rng.standard_normal((CLASSES, FEATURES))
    points = centres[labels] + rng.standard_normal((300, FEATURES))
    return points.astype(np.float32), labels


def held_out():
    """Other points of the same clouds, as near to their centres."""
    points, labels = clouds()
    centres = np.stack([points[labels == label].mean(axis=0) for label in range(CLASSES)])
    rng = np.random.default_rng(1)
    labels = rng.integers(CLASSES, size=100).astype(np.int32)
    points = centres[labels] + rng.standard_normal((100, FEATURES))
    return points.astype(np.float32), labels


def validation_for(setting, data=None):
    """What rules get that judge gradients by a loss."""
    return (data or held_out()) if setting.rule.needs_validation else None


def network(*hidden):
    return keras.Sequential([keras.Input([FEATURES]), *hidden, layers.Dense(CLASSES)])


def linear():  # d = 51, one datagram a gradient
    return network()


def mlp():  # d = 1283, four datagrams a gradient
    return network(layers.Dense(64, "relu"))


def cross_entropy(labels, logits):
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))


def sgd(**parameters):
    return keras.optimizers.SGD(**{"learning_rate": 0.1} | parameters)


def simulate(
    model=linear, *, optimizer=None, objective=cross_entropy, data=None, init_seed=0, **setting
):
    keras.utils.set_random_seed(init_seed)
    setting = Setting(**{"num_workers": 7} | setting)
    parts = {"num_workers": setting.num_workers, "batch_size": 8, "seed": setting.seed}
    drawn = batches(*(data or clouds()), **parts)
    validation = validation_for(setting, data)
    return Simulation(setting, model(), objective, optimizer or sgd(), drawn, validation)


def run(simulation, steps):
    return [simulation.step() for _ in range(steps)]


def weights(simulation):
    return np.concatenate([v.numpy().ravel() for v in simulation.model.trainable_variables])


def accuracy(simulation):
    points, labels = clouds()
    return np.mean(np.argmax(simulation.model(points).numpy(), axis=1) == labels)
