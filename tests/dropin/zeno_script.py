"""Trains where 2 of 3 workers send what leads away, judged by a loss of the server's.

zeno_script.py JOB. "judged" trains in every way, "rate known" in one; others end with an error.
"""

import sys

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import aggregathor as agt
from tests.mpi.results import leave

JOB = sys.argv[1]
rng = np.random.default_rng(0)
CENTRES = 2 * rng.standard_normal((3, 8))


def clouds(count):
    labels = rng.integers(0, 3, count)
    return (CENTRES[labels] + rng.standard_normal((count, 8))).astype(np.float32), labels


TRAIN, JUDGED_BY, TEST = clouds(600), clouds(90), clouds(300)
agt.init(
    gar="zeno",
    f=2,
    byzantine=2,
    attack="sign-flip",
    gar_args={"n_r": 16, **({"gamma": 0.1} if JOB == "judged" else {})},
    link_args={"timeout_s": 60.0},
    **({"validation_data": JUDGED_BY} if JOB == "judged" else {}),
)
keras.utils.set_random_seed(1)
loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network():
    return keras.Sequential(
        [
            keras.Input([8]),
            layers.Dense(16, "relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.1),
            layers.Dense(3, kernel_regularizer="l2"),
        ]
    )


def accuracy(model):
    points, labels = TEST
    return float(np.mean(np.argmax(model(points).numpy(), axis=1) == labels))


def by_fit(**given):
    model = network()
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 50, 0.9)
    optimizer = agt.DistributedOptimizer(keras.optimizers.SGD(rate))
    model.compile(optimizer, loss_of, metrics=["accuracy"], weighted_metrics=["accuracy"])
    history = model.fit(*TRAIN, batch_size=20, epochs=2, verbose=0, **given).history
    return {"accuracy": accuracy(model), "history": {name: v[-1] for name, v in history.items()}}


def dataset(arrays):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(32)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        part = slice(30 * index, 30 * index + 30)
        return JUDGED_BY[0][part], JUDGED_BY[1][part]


def by_loop(take_part):
    model = network()
    update = take_part()

    @tf.function
    def step(points, labels):
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(points, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        update(list(zip(gradients, model.trainable_variables, strict=True)))
        return loss

    def validation_loss(points, labels):
        return loss_of(labels, model(points, training=False))

    agt.validation(validation_loss, JUDGED_BY)
    for points, labels in tf.data.Dataset.from_tensor_slices(TRAIN).repeat().batch(20).take(60):
        step(points, labels)
    return {"accuracy": accuracy(model)}


def by_optimizer():
    return agt.DistributedOptimizer(keras.optimizers.SGD(0.1)).apply_gradients


def descend(pairs):
    for gradient, variable in pairs:
        variable.assign_sub(0.1 * gradient)


def by_own_rule():
    return lambda pairs: agt.apply(pairs, descend)


def in_a_session():
    v1 = tf.compat.v1
    v1.disable_eager_execution()
    variable = v1.get_variable("w", initializer=np.ones(3, np.float32))
    optimizer = agt.DistributedOptimizer(v1.train.GradientDescentOptimizer(0.5))
    optimizer.minimize(tf.reduce_sum(variable))


def judged():
    points, labels = JUDGED_BY
    weights = np.linspace(0.5, 1.5, len(labels))
    found = {
        "held out": by_fit(),
        "arrays": by_fit(validation_data=(points, labels, weights)),
        "dataset": by_fit(validation_data=dataset(JUDGED_BY)),
        "some batches": by_fit(validation_data=dataset(JUDGED_BY).repeat(), validation_steps=2),
        "PyDataset": by_fit(validation_data=Batches()),
        "loop": by_loop(by_optimizer),
        "own rule": by_loop(by_own_rule),
    }
    if agt.is_server():
        found["used"] = agt.last_round().usage_n.tolist()
    return found


def by_loop_without():
    variable = tf.Variable([1.0, 2.0])
    update = by_own_rule()
    update([(tf.ones(2), variable)])


JOBS = {
    "judged": judged,
    "fit without": by_fit,
    "loop without": by_loop_without,
    "rate unknown": lambda: by_loop(by_own_rule),
    "rate known": lambda: by_loop(by_optimizer),
    "session": in_a_session,
}

leave(agt.rank(), JOBS[JOB]())
