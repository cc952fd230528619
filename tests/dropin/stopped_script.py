"""Trains for ever, or for EPOCHS, and says when it has begun, and whether it could catch Ctrl-C."""

import os
import sys
import time

import keras
import numpy as np

rng = np.random.default_rng(0)
inputs = rng.standard_normal((64, 4)).astype("float32")
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
model.compile(
    keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
)


class Slow(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        assert logs["loss"] > 0

    def on_train_batch_end(self, batch, logs=None):
        time.sleep(0.05)
        if batch == 3 and self.epoch == 2:
            sys.stdout.write("training\n")
            sys.stdout.flush()


try:
    epochs = int(os.environ.get("EPOCHS", 10**6))
    labels = (inputs[:, 0] > 0).astype("int32")
    model.fit(inputs, labels, epochs=epochs, batch_size=8, verbose=0, callbacks=[Slow()])
except KeyboardInterrupt:
    sys.stdout.write("caught\n")
    sys.stdout.flush()
    if "raise" in sys.argv:
        raise
if "go on" not in sys.argv:
    raise RuntimeError("a rank has come here whose server was stopped")
