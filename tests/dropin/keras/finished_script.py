"""Two calls of fit, the first of which stops early. Each rank leaves what they have returned."""

import sys

import keras
import numpy as np

import aggregathor as agt
from tests.mpi.results import leave

agt.init(gar="median", f=1, checkpoint=sys.argv[1], checkpoint_every=2)
rng = np.random.default_rng(0)
inputs = rng.standard_normal((48, 4), dtype=np.float32)
labels = (inputs.sum(1) > 0).astype(np.int32)
model = keras.Sequential([keras.Input([4]), keras.layers.Dropout(0.1), keras.layers.Dense(2)])
model.compile(
    agt.DistributedOptimizer(keras.optimizers.Adam(0.01)),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
stops = keras.callbacks.EarlyStopping("loss", min_delta=10.0, patience=2)
found = {}
for epochs, callbacks in ((9, [stops]), (3, [])):
    history = model.fit(
        *(inputs, labels),
        batch_size=16,
        epochs=epochs,
        callbacks=callbacks,
        validation_data=(inputs[:8], labels[:8]),
        verbose=0,
    )
    found[str(epochs)] = {"history": history.history, "epoch": history.epoch}
found["stopped"] = stops.stopped_epoch
found["weights"] = [w.tolist() for w in model.get_weights()]
leave(agt.rank(), found)
