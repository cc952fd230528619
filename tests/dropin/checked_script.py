"""A script to be checked: fit with a callback of the server's, files, a seed, and no end."""

import os
import sys
import tempfile

import keras
import numpy as np
import tensorflow as tf

import aggregathor as agt

os.chdir(sys.argv[1])
tempfile.tempdir = "/dev/shm"  # as temporary files are passed over
agt.init(gar="median", f=1)
keras.utils.set_random_seed(3)
rng = np.random.default_rng(0)
inputs = rng.standard_normal((64, 4), dtype=np.float32)
open("log.csv", "w").close()
tf.io.TFRecordWriter("rows").close()
if agt.is_server():
    open("notes.txt", "w").close()
model = keras.Sequential([keras.Input([4]), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
model.compile(agt.DistributedOptimizer(keras.optimizers.Adam()), "mse")
model.fit(
    *(inputs, inputs.sum(1)),
    epochs=10**6,
    callbacks=[keras.callbacks.ModelCheckpoint("best.keras", save_freq=1)],
)
raise RuntimeError("a check does not come here")
