"""Classifies handwritten digits by ``fit`` where no worker waits for another.

The server averages gradients in three buffers as they come, and steps with the median of these once
none is empty (BASGD): one worker of three may send anything at all, and a slow one keeps nobody
waiting. ``fit`` ends when the server has made its steps; then all ranks hold the same model. About
96% of held-out digits are told right, after 8 s. Let one of four workers lie:

    mpirun -n 5 --with-ft ulfm -x AGGREGATHOR_BYZANTINE=1 -x AGGREGATHOR_ATTACK=negative-gradient \\
        python examples/async_fit.py
"""

import argparse

import aggregathor as agt  # aggregathor
import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def load_data():
    pixels, labels = load_digits(return_X_y=True)
    pixels = (pixels / 16).astype("float32")
    return train_test_split(pixels, labels, test_size=400, random_state=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    agt.init(protocol="basgd", gar="median", f=1, protocol_args={"buffers": 3})  # aggregathor
    keras.utils.set_random_seed(args.seed)
    train_pixels, test_pixels, train_labels, test_labels = load_data()

    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(10),
        ]
    )
    optimizer = keras.optimizers.SGD(0.1)
    optimizer = agt.DistributedOptimizer(optimizer)  # aggregathor
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(
        train_pixels,
        train_labels,
        batch_size=32,
        epochs=args.epochs,
        validation_data=(test_pixels, test_labels),
        verbose=0,
    )
    _, accuracy = model.evaluate(test_pixels, test_labels, verbose=0)
    print(f"async_fit: accuracy {accuracy:.3f}")
    return model


if __name__ == "__main__":
    main()
