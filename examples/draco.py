"""Classifies handwritten digits with `Model.fit` while workers in groups of three compute the same.

DRACO's repetition code: a group draws the same batches and the same dropout, and the server takes
the median of its gradients. So one worker of each group may send anything, and the training is the
same, to the last bit. About 97% of held-out digits are told right, after 7 s.
"""

import argparse

import aggregathor as agt  # aggregathor
import keras
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def make_model():
    return keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    agt.init(protocol="draco", f=1, protocol_args={"code": "repetition"})  # aggregathor
    keras.utils.set_random_seed(args.seed)
    pixels, labels = load_digits(return_X_y=True)
    train_pixels, test_pixels, train_labels, test_labels = train_test_split(
        pixels / 16, labels, test_size=400, random_state=0
    )
    dataset = tf.data.Dataset.from_tensor_slices((train_pixels, train_labels))
    dataset = dataset.shuffle(len(train_pixels)).repeat().batch(32).prefetch(tf.data.AUTOTUNE)

    model = make_model()
    optimizer = keras.optimizers.Adam(2e-3)
    optimizer = agt.DistributedOptimizer(optimizer)  # aggregathor
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(dataset, steps_per_epoch=40, epochs=args.epochs, shuffle=False, verbose=2)
    _, accuracy = model.evaluate(test_pixels, test_labels, verbose=0)
    print(f"draco: accuracy {accuracy:.3f}")
    return model


if __name__ == "__main__":
    main()
