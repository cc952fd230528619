"""Scripts whose workers write a shared variable in a step: each names the line that does it."""

import sys
from functools import partial

import keras
import numpy as np
import tensorflow as tf

import aggregathor as agt
from tests.mpi.results import leave

agt.init(gar="average", link_args={"timeout_s": 2.0})
inputs = np.ones([8, 4], np.float32)


def clipping():
    """Keras: a train step that clips the weights, as a critic's does."""

    class Critic(keras.Sequential):
        def train_step(self, data):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(self(data[0]))
            variables = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, variables), variables)
            for variable in variables:
                variable.assign(keras.ops.clip(variable, -0.1, 0.1))  # the line
            return {"loss": loss}

    model = Critic([keras.layers.Dense(1)])  # not built yet
    model.compile(agt.DistributedOptimizer(keras.optimizers.SGD(1.0)))
    model.fit(inputs, inputs[:, :1], epochs=3, verbose=0)
    leave(agt.rank(), bool(np.abs(model.get_weights()[0]).max() < 0.11))


def session():
    """v1: a session that a worker sets a weight in, between two steps."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        weights = v1.get_variable("weights", [4], use_resource=True)
        optimizer = agt.DistributedOptimizer(v1.train.GradientDescentOptimizer(0.1))
        step = optimizer.minimize(tf.reduce_sum((inputs @ weights[:, None]) ** 2))
        reset = v1.assign(weights, tf.zeros([4]))  # the line
        session.run(v1.global_variables_initializer())
        make_step, make_reset = (
            session.make_callable(each)
            if sys.argv[2:] == ["callable"]
            else partial(session.run, each)
            for each in (step, reset)
        )
        for _ in range(3):
            make_step()
        if not agt.is_server():
            make_reset()
        make_step()
        leave(agt.rank(), True)


def frozen():
    """A layer that is not trained, which the script locks itself, in front of a loop."""
    embedding = tf.Variable(tf.ones([4]), name="embedding")
    dense = tf.Variable(tf.ones([4, 1]))
    agt.lock([embedding], on_violation=sys.argv[2])
    optimizer = agt.DistributedOptimizer(keras.optimizers.SGD(0.1))

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(((inputs * embedding) @ dense) ** 2)
        optimizer.apply(tape.gradient(loss, [dense]), [dense])
        if agt.rank() > 0:
            embedding.assign(2 * embedding)  # the line

    for _ in range(3):
        step()
    values = np.asarray(embedding)
    leave(agt.rank(), bool(values.min() == values.max() == 1))


{"clipping": clipping, "session": session, "frozen": frozen}[sys.argv[1]]()
