"""A script whose server has no training data: digits, with every worker's own part."""

import hashlib
import sys

import keras
import pytest
from sklearn.datasets import load_digits

import aggregathor as agt
from aggregathor.errors import UserError

agt.init(gar="median", f=1)
keras.utils.set_random_seed(1)
model = keras.Sequential(
    [keras.Input([64]), keras.layers.Dense(32, "relu"), keras.layers.Dense(10)]
)
optimizer = agt.DistributedOptimizer(keras.optimizers.Adam(0.01))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(optimizer, loss, metrics=["accuracy"])
images, labels = load_digits(return_X_y=True)
if agt.is_server():
    history = model.fit(None, steps_per_epoch=30, epochs=2, verbose=0)
    assert (history.epoch, history.history) == ([0, 1], {"rounds": [30, 60]})
    accuracy = model.evaluate(images[1400:] / 16, labels[1400:], verbose=0)[1]
    with pytest.raises(UserError, match="needs steps_per_epoch, how many rounds"):
        model.fit(None)
    sys.stdout.write(f"accuracy {accuracy}\n")
else:
    part = slice(agt.rank() - 1, 1400, agt.num_workers())
    model.fit(images[part] / 16, labels[part], verbose=0)
digest = hashlib.sha256(b"".join(w.tobytes() for w in model.get_weights())).hexdigest()
sys.stdout.write(f"rank {agt.rank()}: {digest}\n")
