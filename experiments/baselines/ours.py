"""The same work as an ordinary TensorFlow script, which ``aggregathor.run`` distributes.

It does not import aggregathor; of MPI it knows only who prints.
"""

from __future__ import annotations

import os
import sys

import keras
import tensorflow as tf

from experiments.baselines import workload


def main() -> int:
    """Trains for a number of steps, prints how long they took; returns the exit status."""
    arguments = workload.parser(__doc__).parse_args()
    hidden = [keras.layers.Dense(width, "relu") for width in workload.HIDDEN[arguments.size]]
    model = keras.Sequential(
        [keras.Input([workload.PIXELS]), *hidden, keras.layers.Dense(workload.CLASSES)]
    )
    optimizer = keras.optimizers.SGD(workload.LEARNING_RATE)

    @tf.function
    def step() -> tf.Tensor:
        x, labels = workload.batch()
        with tf.GradientTape() as tape:
            loss = workload.mean_loss(labels, model(x))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    seconds = workload.timed(lambda: float(step()), arguments.steps)
    if os.environ.get("OMPI_COMM_WORLD_RANK", "0") == "0":
        workers = max(1, int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) - 1)  # and a server
        sys.stdout.write(workload.line("ours", arguments.size, workers, seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
