"""Trains where the rule can be applied to no gradient of one round: a worker's is NaN then.

python refused_script.py v1|weights FOLDER. Every rank writes rank-R.json into the folder: what its
variable held before that round, and after each step from that round on.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

import aggregathor as agt

MODE, FOLDER = sys.argv[1], Path(sys.argv[2])
START = np.array([1.0, 2.0, 3.0], np.float32)
agt.init(gar="brute", link_args={"timeout_s": 20.0})
FAULTY = agt.rank() == 2
seen = []


def see(values):
    seen.append(np.ravel(values).tolist())
    (FOLDER / f"rank-{agt.rank()}.json").write_text(json.dumps(seen))


def in_a_session():
    v1 = tf.compat.v1
    v1.disable_eager_execution()
    variable = v1.get_variable("w", initializer=START)
    scale = v1.placeholder(tf.float32, [])
    optimizer = agt.DistributedOptimizer(v1.train.GradientDescentOptimizer(0.5))
    train = optimizer.minimize(tf.reduce_sum(variable) * scale)
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        see(session.run(variable))
        for step in range(3 if agt.is_server() else 4):  # it makes the refused round again
            session.run(train, {scale: np.nan if FAULTY and step == 0 else 1.0})
            see(session.run(variable))


def with_other_weights():
    import keras

    class Model(keras.Model):
        spoilt = False

        def __init__(self):
            super().__init__()
            self.w = self.add_weight(shape=[3], initializer="zeros", name="w")

        def train_step(self, data):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(self.w * (np.nan if Model.spoilt else 1.0))
            self.optimizer.apply(tape.gradient(loss, [self.w.value]), [self.w])
            return {"loss": loss}

    class See(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            see(self.model.w)
            Model.spoilt = False

    model = Model()
    model.compile(agt.DistributedOptimizer(keras.optimizers.SGD(0.5)), run_eagerly=True)
    data = np.zeros([2, 1], np.float32)
    model.fit(data, batch_size=1, verbose=0)
    model.w.assign(START)
    see(model.w)
    Model.spoilt = FAULTY
    model.fit(data, batch_size=1, verbose=0, callbacks=[See()])


in_a_session() if MODE == "v1" else with_other_weights()
