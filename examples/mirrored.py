"""Classifies handwritten digits on two devices, with `tf.distribute.MirroredStrategy`.

The devices are two logical CPUs, so that it runs anywhere. Shows `Model.fit` under a strategy and,
with --loop, a training loop of its own. About 97% of held-out digits are told right, after 12 s.
"""

import argparse

import aggregathor as agt  # aggregathor
import keras
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

BATCH_SIZE = 64  # over both devices


def make_strategy():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


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


def loop(strategy, model, optimizer, dataset, epochs):
    losses = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
    optimizer.build(model.trainable_variables)  # outside of the graph, where it may make variables

    def replica_step(pixels, labels):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(losses(labels, model(pixels, training=True))) / BATCH_SIZE
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        return loss

    @tf.function
    def train_step(pixels, labels):
        replica_losses = strategy.run(replica_step, args=(pixels, labels))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, replica_losses, axis=None)

    dataset = strategy.experimental_distribute_dataset(dataset)
    for epoch in range(epochs):
        epoch_losses = [train_step(pixels, labels) for pixels, labels in dataset]
        print(f"epoch {epoch + 1}: loss {tf.reduce_mean(epoch_losses):.4f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--loop", action="store_true", help="a training loop in place of fit")
    args = parser.parse_args()

    agt.init(gar="median", f=1)  # aggregathor
    strategy = make_strategy()
    keras.utils.set_random_seed(args.seed)
    train_pixels, test_pixels, train_labels, test_labels = load_data()
    dataset = tf.data.Dataset.from_tensor_slices((train_pixels, train_labels))
    dataset = dataset.shuffle(len(train_pixels)).batch(BATCH_SIZE, drop_remainder=True)

    with strategy.scope():
        model = make_model()
        optimizer = keras.optimizers.Adam(3e-3)
        optimizer = agt.DistributedOptimizer(optimizer)  # aggregathor
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, metrics=["accuracy"])
        if args.loop:
            loop(strategy, model, optimizer, dataset, args.epochs)
        else:
            model.fit(dataset, epochs=args.epochs, shuffle=False, verbose=2)
    _, accuracy = model.evaluate(test_pixels, test_labels, batch_size=BATCH_SIZE, verbose=0)
    print(f"mirrored: accuracy {accuracy:.3f}")
    return model


if __name__ == "__main__":
    main()
