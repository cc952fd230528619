"""Trains a user's script without rounds: by fit, twice, of two models, then by a loop.

arrivals_script.py JOB. "turns" and "zeno++ without" end with an error, "stops" with a signal.
"""

import os
import signal
import sys

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import aggregathor as agt
from tests.mpi.results import leave

JOB = sys.argv[1]
ATTACK = {"attack": "negative-gradient"}
rng = np.random.default_rng(0)
CENTRES = 2 * rng.standard_normal((3, 8))


def clouds(count):
    labels = rng.integers(0, 3, count)
    return (CENTRES[labels] + rng.standard_normal((count, 8))).astype(np.float32), labels


TRAIN, JUDGED_BY, TEST = clouds(600), clouds(90), clouds(300)
BASGD = {"protocol": "basgd", "gar": "median", "f": 1, "byzantine": 1, **ATTACK}
SAVING = {**BASGD, "checkpoint_every": 20}
ZENOPP = {"protocol": "zeno++", "byzantine": 3, **ATTACK}
agt.init(
    **{
        "basgd": BASGD,
        "stops": SAVING,
        "resumes": SAVING,
        "zeno++": ZENOPP,
        "zeno++ without": {"protocol": "zeno++"},
        "kardam": {"protocol": "kardam", "f": 1},
    }.get(JOB, {"protocol": "async"})
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
            layers.Dense(3),
        ]
    )


def compiled():
    model = network()
    optimizer = agt.DistributedOptimizer(keras.optimizers.SGD(0.1))
    model.compile(optimizer, loss_of, metrics=["accuracy"])
    return model


def accuracy(model):
    points, labels = TEST
    return float(np.mean(np.argmax(model(points).numpy(), axis=1) == labels))


def found_of(model, optimizer):
    return {
        "accuracy": accuracy(model),
        "values": [float(np.sum(np.float64(v))) for v in model.get_weights()],
        "iterations": int(optimizer.iterations),
    }


def by_fit(model, **given):
    history = model.fit(*TRAIN, batch_size=20, verbose=0, **given).history
    return {**found_of(model, model.optimizer), "epochs": len(history["loss"])}


def by_loop(steps):
    model = network()
    optimizer = agt.DistributedOptimizer(keras.optimizers.SGD(0.1))

    @tf.function
    def step(points, labels):
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(points, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    for points, labels in tf.data.Dataset.from_tensor_slices(TRAIN).repeat().batch(20).take(steps):
        step(points, labels)
    return found_of(model, optimizer)


def by_turns():
    for _ in range(2):
        optimizer = agt.DistributedOptimizer(keras.optimizers.SGD(0.1))
        variable = tf.Variable([1.0, 2.0])
        optimizer.apply_gradients([(tf.ones(2), variable)])


def in_a_session():
    v1 = tf.compat.v1
    v1.disable_eager_execution()
    variable = v1.get_variable("w", initializer=np.ones(3, np.float32))
    optimizer = agt.DistributedOptimizer(v1.train.GradientDescentOptimizer(0.5))
    step = optimizer.minimize(tf.reduce_sum(variable**2) / 4)
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        for _ in range(60 if agt.is_server() else 10**6):
            session.run(step)
        return session.run(variable).tolist()


class Kills(keras.callbacks.Callback):
    """Ends the job in the middle of the second epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations >= 50 and agt.is_server():
            os.kill(os.getpid(), signal.SIGKILL)


def by_fits():
    model = compiled()
    return {
        "fit": by_fit(model, epochs=2),
        "fit again": by_fit(model, epochs=1, steps_per_epoch=10),
        "fit another": by_fit(compiled(), epochs=1),
    }


JOBS = {
    "turns": by_turns,
    "zeno++": lambda: {"fit": by_fit(compiled(), epochs=2, validation_data=JUDGED_BY)},
    "zeno++ without": lambda: by_fit(compiled(), epochs=2),
    "stops": lambda: by_fit(compiled(), epochs=2, callbacks=[Kills()]),
    "resumes": lambda: {"fit": by_fit(compiled(), epochs=2)},
}
if JOB == "session":
    if not agt.is_server():
        leave(agt.rank(), {})
    leave(agt.rank(), {"session": in_a_session()})
elif JOB in JOBS:
    leave(agt.rank(), JOBS[JOB]())
elif agt.is_server():
    leave(0, {**by_fits(), "last": agt.last_round().verdict, "loop": by_loop(60)})
else:
    leave(agt.rank(), by_fits())
    by_loop(10**6)
    raise AssertionError("a worker's loop ends with the server's script")
