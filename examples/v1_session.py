"""Classifies handwritten digits with a graph and a `Session`, as scripts for TensorFlow 1 do.

Shows placeholders, MomentumOptimizer and variables of either kind: resources or, with
--reference-variables, references. About 97% of held-out digits are told right, after 6 s.
"""

import argparse

import aggregathor as agt  # aggregathor
import numpy as np
import tensorflow.compat.v1 as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def dense(name, inputs, width):
    with tf.variable_scope(name):
        weights = tf.get_variable("weights", [inputs.shape[-1], width])
        biases = tf.get_variable("biases", [width], initializer=tf.zeros_initializer())
        return tf.matmul(inputs, weights) + biases


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--reference-variables", action="store_true")
    args = parser.parse_args()

    tf.disable_v2_behavior()  # turns to reference variables as well
    if not args.reference_variables:
        tf.enable_resource_variables()
    agt.init(gar="median", f=1)  # aggregathor
    tf.set_random_seed(args.seed)
    np.random.seed(args.seed)

    data, targets = load_digits(return_X_y=True)
    train_data, test_data, train_targets, test_targets = train_test_split(
        data / 16, targets, test_size=400, random_state=0
    )

    pixels = tf.placeholder(tf.float32, [None, 64])
    labels = tf.placeholder(tf.int64, [None])
    logits = dense("output", tf.nn.relu(dense("hidden", pixels, 128)), 10)
    loss = tf.losses.sparse_softmax_cross_entropy(labels, logits)
    accuracy = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, axis=1), labels), tf.float32))

    optimizer = tf.train.MomentumOptimizer(learning_rate=0.1, momentum=0.9)
    optimizer = agt.DistributedOptimizer(optimizer)  # aggregathor
    train = optimizer.minimize(loss, global_step=tf.train.get_or_create_global_step())

    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for step in range(1, args.steps + 1):
            batch = np.random.randint(len(train_data), size=32)
            feed = {pixels: train_data[batch], labels: train_targets[batch]}
            _, batch_loss = session.run([train, loss], feed)
            if step % 100 == 0:
                print(f"step {step}: loss {batch_loss:.4f}")
        score = session.run(accuracy, {pixels: test_data, labels: test_targets})
        values = session.run(tf.trainable_variables())
    print(f"v1_session: accuracy {score:.3f}")
    return values


if __name__ == "__main__":
    main()
