"""A script whose server has no training data: digits, with every worker's own part."""

import keras
import pytest
from sklearn.datasets import load_digits

import aggregathor as agt
from aggregathor.errors import UserError
from tests.dropin.results import digest, leave

agt.init(gar="median", f=1)
keras.utils.set_random_seed(1)
model = keras.Sequential(
    [keras.Input([64]), keras.layers.Dense(32, "relu"), keras.layers.Dense(10)]
)
optimizer = agt.DistributedOptimizer(keras.optimizers.Adam(0.01))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(optimizer, loss, metrics=["accuracy"])
images, labels = load_digits(return_X_y=True)
result = {}
if agt.is_server():
    history = model.fit(None, steps_per_epoch=30, epochs=2, verbose=0)
    result["epochs"], result["history"] = history.epoch, history.history
    result["accuracy"] = model.evaluate(images[1400:] / 16, labels[1400:], verbose=0)[1]
    with pytest.raises(UserError) as caught:
        model.fit(None)
    result["error"] = str(caught.value)
else:
    part = slice(agt.rank() - 1, 1400, agt.num_workers())
    model.fit(images[part] / 16, labels[part], verbose=0)
leave(agt.rank(), {**result, "digest": digest(model.get_weights())})
