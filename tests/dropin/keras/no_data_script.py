"""Trains where the server has no training data, and once more where it has; workers have parts."""

import keras
import pytest
from sklearn.datasets import load_digits

import aggregathor as agt
from aggregathor.errors import UserError
from tests.mpi.results import digest, leave

EPOCHS = {"steps_per_epoch": 30, "epochs": 2, "verbose": 0}
agt.init(gar="median", f=1)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
images, labels = load_digits(return_X_y=True)
images = images / 16
weights = None


def train(fit_on_server):
    """Trains from the same weights, with the same batches; returns what `fit` has on the server."""
    global weights
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input([64]), keras.layers.Dense(32, "relu"), keras.layers.Dense(10)]
    )
    weights = weights or model.get_weights()
    model.set_weights(weights)
    optimizer = agt.DistributedOptimizer(keras.optimizers.Adam(0.01))
    model.compile(optimizer, loss, metrics=["accuracy"])
    if agt.is_server():
        untrained = accuracy(model)
        history = fit_on_server(model)
        result = {"epochs": history.epoch, "history": history.history}
        return model, {**result, "untrained": untrained, "accuracy": accuracy(model)}
    part = slice(agt.rank() - 1, 1400, agt.num_workers())
    model.fit(images[part], labels[part], shuffle=False, verbose=0)
    return model, {}


def accuracy(model):
    return model.evaluate(images[1400:], labels[1400:], verbose=0)[1]


model, without = train(lambda model: model.fit(None, **EPOCHS))
without["digest"] = digest(model.get_weights())
if agt.is_server():
    with pytest.raises(UserError) as caught:
        model.fit(None)
    without["error"] = str(caught.value)
model, with_data = train(lambda model: model.fit(images[:1400], labels[:1400], **EPOCHS))
with_data["digest"] = digest(model.get_weights())
leave(agt.rank(), {"without": without, "with data": with_data})
