"""Classifies handwritten digits with a convolutional network and `Model.fit`.

Shows batch normalization, dropout, validation data and the usual callbacks. Stops by itself where
the validation loss no longer falls. About 99% of held-out digits are told right, after 13 s.
"""

import argparse

import aggregathor as agt  # aggregathor
import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def load_data():
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
    return train_test_split(images, labels, test_size=400, random_state=0)


def make_model():
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(32, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=40, help="at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--schedule", action="store_true", help="a schedule for the learning rate")
    parser.add_argument("--checkpoint", help="file for the best model so far, *.keras")
    parser.add_argument("--save", help="file for the model at the end, *.keras")
    args = parser.parse_args()

    agt.init(gar="median", f=1)  # aggregathor
    keras.utils.set_random_seed(args.seed)
    train_images, test_images, train_labels, test_labels = load_data()
    batch_size, num_validation = 32, 200
    steps_per_epoch = (len(train_images) - num_validation) // batch_size

    callbacks = [keras.callbacks.EarlyStopping(patience=4, restore_best_weights=True)]
    if args.checkpoint:
        callbacks.append(keras.callbacks.ModelCheckpoint(args.checkpoint, save_best_only=True))
    if args.schedule:
        rate = keras.optimizers.schedules.CosineDecay(2e-3, args.epochs * steps_per_epoch)
    else:
        rate = 2e-3
        callbacks.append(keras.callbacks.ReduceLROnPlateau(factor=0.3, patience=2))

    model = make_model()
    optimizer = keras.optimizers.Adam(rate)
    optimizer = agt.DistributedOptimizer(optimizer)  # aggregathor
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(
        train_images[num_validation:],
        train_labels[num_validation:],
        batch_size=batch_size,
        epochs=args.epochs,
        validation_data=(train_images[:num_validation], train_labels[:num_validation]),
        callbacks=callbacks,
        verbose=2,
    )
    if args.save:
        model.save(args.save)
    _, accuracy = model.evaluate(test_images, test_labels, verbose=0)
    print(f"keras_fit: accuracy {accuracy:.3f}")
    return model


if __name__ == "__main__":
    main()
