"""A Keras script in which ranks do what FAULTS says: "rank:step:fault ...", step 0 before all.

kill, raise, stop (and go on after 4 s), exit, nan, huge, late (half a second a step), garbage (raw
MPI messages to the server), and flood (whole gradients, of this ticket and of others). The script
knows nothing of AggregaThor; it leaves its accuracy and a digest of its parameters, on the server
also how many steps it made and from how many rounds each worker was missing. In the third step it
leaves a file named like its process in the folder STARTED, if there is one.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from tests.mpi.results import digest, leave

RANK = int(os.environ["OMPI_COMM_WORLD_RANK"])
FAULTS = {}
SENT = []  # whose memory MPI may still read
for word in os.environ.get("FAULTS", "").split():
    rank, step, fault = word.split(":")
    if int(rank) == RANK:
        FAULTS[int(step)] = fault


class Model(keras.Sequential):
    """A model whose steps go wrong; the step is counted in Python, so it runs eagerly."""

    step = 0
    fault = ""

    def train_step(self, data):
        Model.step += 1
        if Model.step == 3 and "STARTED" in os.environ:
            Path(os.environ["STARTED"], str(os.getpid())).touch()
        Model.fault = FAULTS.get(Model.step, Model.fault)
        return super().train_step((self.spoilt(data[0]), *data[1:]))

    def spoilt(self, images):
        if Model.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if Model.fault == "exit":
            sys.exit(3)
        if Model.fault == "stop":
            Model.fault = ""
            subprocess.Popen(["sh", "-c", f"sleep 4; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)
        if Model.fault == "late":
            time.sleep(0.5)
        if Model.fault == "garbage":
            garbage()
        if Model.fault == "flood":
            flood()
        if Model.fault == "nan":
            return images * np.nan
        return images * 1e30 if Model.fault == "huge" else images


def garbage():
    """Sends what no worker should, on the communicator of the link itself."""
    from aggregathor import api

    comm = api.current().halves[0]._link._comm
    random = np.random.default_rng(Model.step)
    for tag in (0, 1, Model.step, Model.step + 1, 2**30):
        comm.Isend(random.bytes(int(random.integers(1, 5000))), dest=0, tag=tag).Free()


def flood():
    """Sends 100 gradients where one is due, on the communicator of the link itself."""
    from aggregathor import api

    half = api.current().halves[0]
    grad_d = np.full(half._link.dim, 1e6, np.float32)
    for number in range(100):
        half._link._comm.Isend(grad_d, dest=0, tag=half.round + number % 3 - 1).Free()
    SENT.append(grad_d)


def main():
    if FAULTS.get(0) == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if FAULTS.get(0) == "raise":
        raise OSError("no data on this host")
    keras.utils.set_random_seed(1)
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32")
    model = Model([keras.Input([64]), keras.layers.Dense(32, "relu"), keras.layers.Dropout(0.1)])
    model.add(keras.layers.Dense(10))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    steps = int(os.environ.get("STEPS", "30"))
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"], run_eagerly=True)
    data = tf.data.Dataset.from_tensor_slices((images[:1400], labels[:1400]))
    data = data.shuffle(1400).batch(32).repeat().take(steps // 2)
    model.fit(data, epochs=2, verbose=0)
    _, accuracy = model.evaluate(images[1400:], labels[1400:], verbose=0)
    sys.stdout.write(f"rank {RANK} has ended\n")
    result = {"accuracy": accuracy, "digest": digest(model.trainable_variables)}
    if RANK == 0:
        result |= {"steps": Model.step, **seen()}
    leave(RANK, result)


def seen():
    """What the server has seen: from how many rounds each worker was missing, or its gradients."""
    from aggregathor import api

    observer = api.current()._observer
    if observer._arrivals:
        (arrivals,) = observer._arrivals
        rejections = arrivals.rejections
        counts = {"arrivals": rejections.arrivals_n, "rejected": rejections.rejected_n}
        return {name: each.tolist() for name, each in counts.items()}
    (rounds,) = observer._optimizers
    return {"missing": rounds.suspicion.missing_n.tolist()}


main()
