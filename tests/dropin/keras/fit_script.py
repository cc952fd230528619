"""Fits that end in many ways, on ranks whose data differ in length; leaves what a script reads."""

import sys

import keras
import numpy as np
import tensorflow as tf

import aggregathor as agt
from tests.mpi.results import digest, leave

agt.init(gar="average", lock="off")  # which would look at all graphs so far for each model
RANK = agt.rank()
random = np.random.RandomState(3)
LABELS = random.randint(0, 3, 240)
INPUTS = (np.eye(3, 6)[LABELS] * 3 + random.randn(240, 6)).astype("float32")
# Of the server 4 batches of 20; of one worker more, of the other fewer.
SHARE = slice(0, {0: 80, 1: 120, 2: 50}[RANK])
X, Y = INPUTS[SHARE], LABELS[SHARE]
TEST = INPUTS[120:], LABELS[120:]


class Enough(Exception):
    """What a callback raises, and the script catches."""


class Records(keras.callbacks.Callback):
    """Every hook of an epoch that is called, with its logs, and what the callback then computes."""

    def __init__(self, computes):
        super().__init__()
        self.computes = computes
        self.seen = []
        self.batches = 0

    def on_train_begin(self, logs=None):
        self.seen.append(["begin", self.params["epochs"], self.params["steps"]])

    def on_epoch_begin(self, epoch, logs=None):
        self.seen.append(["epoch", epoch])

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(["ended", epoch, logs])
        if self.computes:
            accuracy = self.model.evaluate(*TEST, verbose=0)[1]
            predicted = self.model.predict(TEST[0], verbose=0).argmax(1).sum()
            # Less than exact, as each rank has its own statistics of batch normalisation.
            self.seen[-1] += [round(accuracy, 1), len(self.seen), int(predicted) > 0]

    def on_train_end(self, logs=None):
        self.seen.append(["end", logs])


class StopsAt(keras.callbacks.Callback):
    """Stops after a batch, on some ranks."""

    def __init__(self, batch, ranks=(0, 1, 2)):
        super().__init__()
        self.left = batch if RANK in ranks else -1

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            self.model.stop_training = True


class Raises(keras.callbacks.Callback):
    """Fails after an epoch, or after a batch on the server alone."""

    def __init__(self, epoch=-1, batch=-1):
        super().__init__()
        self.epoch, self.batch = epoch, batch

    def on_train_batch_end(self, batch, logs=None):
        if batch == self.batch and RANK == 0:
            raise Enough("enough of batches")

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            raise Enough("enough of epochs")


class Restores(keras.callbacks.Callback):
    """Changes the server's weights, and its first epoch, as BackupAndRestore does."""

    def on_train_begin(self, logs=None):
        if RANK == 0:
            self.model.set_weights([w + 1 for w in self.model.get_weights()])
            self.model._initial_epoch = 2


class Doubles(keras.callbacks.Callback):
    """Changes the learning rate of the server."""

    def on_epoch_end(self, epoch, logs=None):
        if RANK == 0:
            self.model.optimizer.learning_rate = 0.01 * (epoch + 2)


class Nested(keras.callbacks.Callback):
    """Fits another model."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def on_epoch_end(self, epoch, logs=None):
        found = self.other.fit(X, Y, batch_size=20, epochs=2, verbose=0).history["loss"]
        logs["other"] = found[-1]


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return len(X) // 20

    def __getitem__(self, at):
        return X[20 * at : 20 * at + 20], Y[20 * at : 20 * at + 20]


def make(frozen=False, **options):
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.BatchNormalization(), keras.layers.Dense(3)]
    )
    if frozen:
        for layer in model.layers:
            layer.trainable = False
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = agt.DistributedOptimizer(keras.optimizers.Adam(0.01))
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False, **options)
    return model


def generated(number=None):
    """A dataset whose length nobody knows; it can be begun anew."""
    number = len(X) // 20 if number is None else number

    def batches():
        for at in range(number):
            yield X[:20] + at, Y[:20]

    shapes = tf.TensorSpec((20, 6)), tf.TensorSpec((20,), tf.int64)
    return tf.data.Dataset.from_generator(batches, output_signature=shapes)


def once(number):
    """A generator that gives so many batches and no more."""
    for _ in range(number):
        yield X[:20], Y[:20]


def once_of(dataset):
    """The same as a dataset that cannot be begun anew; Keras begins generators with two batches."""
    batches = iter(dataset)
    shapes = tf.TensorSpec((20, 6)), tf.TensorSpec((20,), tf.int64)
    return tf.data.Dataset.from_generator(lambda: batches, output_signature=shapes)


def fit(model, *data, callbacks=(), computes=False, **options):
    records = Records(computes)
    options = {"verbose": 0, "epochs": 3, **options}
    raised = ""
    try:
        history = model.fit(*data, callbacks=[*callbacks, records], **options)
    except Enough as error:
        raised, history = str(error), model.history
    optimizer = model.optimizer
    return {
        "history": history.history,
        "epoch": history.epoch,
        "params": history.params,
        "stop": model.stop_training,
        "rate": float(optimizer.learning_rate.numpy()),
        "iterations": int(optimizer.iterations.numpy()),
        "digest": digest(v for v in model.variables if "seed" not in v.path),
        "seen": records.seen,
        "raised": raised,
    }, records.batches


def validated():
    """Two phases; the second is stopped early, and gives the best weights back."""
    model = make()
    options = {"batch_size": 20, "validation_data": TEST}
    first, _ = fit(model, X, Y, **options, validation_freq=2, computes=True)
    stopper = keras.callbacks.EarlyStopping(
        "val_loss", patience=2, min_delta=10, restore_best_weights=True
    )
    plateau = keras.callbacks.ReduceLROnPlateau("val_loss", patience=0, min_delta=10, min_lr=1e-4)
    made, batches = fit(
        model, X, Y, **options, callbacks=[stopper, plateau], initial_epoch=3, epochs=20
    )
    numbers = [stopper.stopped_epoch, stopper.wait, stopper.best_epoch, stopper.best, plateau.wait]
    return {**made, "first": first, "numbers": numbers}, batches


def left_by(**how):
    """What raises is caught by the script, which then trains on."""
    model = make()
    made, _ = fit(model, X, Y, batch_size=20, callbacks=[Raises(**how)])
    after, batches = fit(model, X, Y, batch_size=20)
    # Where the server alone raises, workers know of no error.
    raised = made["raised"] if "epoch" in how else ""
    return {"raised": raised, "after": after}, batches


CASES = {
    "validated": validated,
    "unknown length": lambda: fit(make(), generated()),
    "several steps a call": lambda: fit(
        make(steps_per_execution=3), X, Y, batch_size=20, validation_split=0.25
    ),
    "stopped in an epoch": lambda: fit(make(), X, Y, batch_size=20, callbacks=[StopsAt(6)]),
    "stopped by a worker": lambda: fit(
        make(), X, Y, batch_size=20, callbacks=[StopsAt(3, ranks=(1,))]
    ),
    "no epochs": lambda: fit(make(), X, Y, epochs=0),
    "nothing to train": lambda: fit(make(frozen=True), X, Y, batch_size=20),
    "nothing to train, unknown length": lambda: fit(make(frozen=True), generated()),
    "data that run out": lambda: fit(
        make(), once_of(once(100 if RANK != 2 else 10)), steps_per_epoch=4, epochs=3
    ),
    "the server's data run out": lambda: fit(
        make(), once(100 if RANK else 6), steps_per_epoch=4, epochs=3
    ),
    "objects": lambda: fit(make(), Batches(), class_weight={0: 1.0, 1: 2.0, 2: 0.5}),
    "changed at the beginning": lambda: fit(
        make(), X, Y, batch_size=20, callbacks=[Restores()], epochs=4
    ),
    "rates": lambda: fit(make(), X, Y, batch_size=20, callbacks=[Doubles()]),
    "nested": lambda: fit(make(), X, Y, batch_size=20, callbacks=[Nested(make())]),
    "left after an epoch": lambda: left_by(epoch=1),
    "left by the server": lambda: left_by(batch=2),
}
results = {}
for name in sys.argv[1:] or CASES:
    found, batches = CASES[name]()
    results[name] = {"found": found, "batches": batches}
leave(RANK, results)
