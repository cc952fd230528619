"""Trains in ways of a script's own; all ranks have the same batches.

updates_script.py WAY...
"""

import sys
import threading
import warnings

import keras
import numpy as np
import tensorflow as tf

import aggregathor as agt
from tests.mpi.results import leave

agt.init(gar="average", link_args={"timeout_s": 60.0})
rng = np.random.default_rng(0)
inputs = rng.standard_normal((48, 5), dtype=np.float32)
labels = rng.integers(0, 3, 48)
batches = [
    (tf.constant(inputs[i : i + 8]), tf.constant(labels[i : i + 8])) for i in range(0, 48, 8)
]
loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
distributed = agt.DistributedOptimizer
IS_ALONE = agt.num_workers() == 1


def dense(units, activation=None):
    """Returns a layer that begins with the same values on all ranks, by a seed of its own."""
    start = keras.initializers.GlorotUniform(seed=units)
    return keras.layers.Dense(units, activation, kernel_initializer=start)


def dense_model(*, built=True):
    """Returns a model that begins with the same values each time."""
    parts = [dense(8, "tanh"), dense(3)]
    return keras.Sequential([*([keras.Input([5])] if built else []), *parts])


def gradients_of(model, x, y):
    with tf.GradientTape() as tape:
        loss = loss_of(y, model(x, training=True))
    return tape.gradient(loss, model.trainable_variables)


class Momentum:
    """An optimizer that derives from nothing, whose slots are made late."""

    def __init__(self):
        self.slots = None

    def apply_gradients(self, grads_and_vars):
        pairs = list(grads_and_vars)
        with tf.init_scope():
            self.slots = self.slots or [tf.Variable(tf.zeros(v.shape)) for _, v in pairs]
        for (gradient, variable), slot in zip(pairs, self.slots, strict=True):
            if tf.norm(gradient) > 0.1:  # for AutoGraph
                gradient = 0.1 * gradient / tf.norm(gradient)
            slot.assign(0.9 * slot + gradient)
            variable.assign_sub(0.1 * slot)


def own_rule(decorate):
    model, optimizer = dense_model(), Momentum()

    @decorate
    def step(x, y):
        gradients = gradients_of(model, x, y)
        agt.apply(zip(gradients, model.trainable_variables, strict=True), optimizer.apply_gradients)

    for x, y in batches:
        step(x, y)
    return model.get_weights()


def own_rule_eagerly():
    return own_rule(lambda step: step)


def own_rule_in_function():
    return own_rule(tf.function)


def own_rule_by_xla():
    return own_rule(tf.function(jit_compile=True))


def own_rule_of_keras():
    """An update that calls an optimizer which would take part by itself."""
    model, optimizer = dense_model(), distributed(keras.optimizers.Adam(0.02))
    optimizer.build(model.trainable_variables)
    for x, y in batches:
        gradients = gradients_of(model, x, y)
        agt.apply(zip(gradients, model.trainable_variables, strict=True), optimizer.apply_gradients)
    return model.get_weights()


def own_rule_in_a_session():
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        weights = tf.compat.v1.get_variable("w", initializer=tf.ones([5, 3]))
        x = tf.compat.v1.placeholder(tf.float32, [None, 5])
        gradient = tf.gradients(tf.reduce_mean((x @ weights) ** 2), weights)[0]

        def descend(pairs):
            return tf.group(*(tf.compat.v1.assign_sub(v, 0.1 * g) for g, v in pairs))

        pairs = [(gradient, weights)]
        train = agt.apply(pairs, descend)
        session.run(tf.compat.v1.global_variables_initializer())
        for batch, _ in batches:
            session.run(train, {x: batch.numpy()})
        return [session.run(weights)]


def v1_optimizer(decorate):
    model = dense_model()
    optimizer = distributed(tf.compat.v1.train.AdamOptimizer(0.02))
    count = tf.Variable(0, dtype=tf.int64)

    @decorate
    def step(x, y):
        gradients = gradients_of(model, x, y)
        variables = [v.value for v in model.trainable_variables]
        optimizer.apply_gradients(zip(gradients, variables, strict=True), global_step=count)

    for x, y in batches:
        step(x, y)
    return [*model.get_weights(), count.numpy()]


def v1_optimizer_eagerly():
    return v1_optimizer(lambda step: step)


def v1_optimizer_in_function():
    return v1_optimizer(tf.function)


def in_threads(decorate):
    """The same gradients from each thread, whose turns may come in any order."""
    model, optimizer = dense_model(), distributed(keras.optimizers.SGD(0.1))
    optimizer.build(model.trainable_variables)
    fixed = [tf.ones_like(v) for v in model.trainable_variables]
    step = decorate(lambda: optimizer.apply(fixed, model.trainable_variables))

    def work():
        for _ in range(5):
            step()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert int(optimizer.iterations.numpy()) == 15
    return model.get_weights()


def threads_eagerly():
    return in_threads(once_at_a_time if IS_ALONE else lambda step: step)


def threads_in_function():
    return in_threads(once_at_a_time if IS_ALONE else tf.function)


def once_at_a_time(step):
    lock = threading.Lock()

    def locked():
        with lock:
            step()

    return locked


def own_xla_step(body):
    """A step for XLA; returns what it warns of too."""
    model, optimizer = dense_model(), distributed(keras.optimizers.SGD(0.1))
    optimizer.build(model.trainable_variables)
    step = tf.function(lambda x, y: body(model, optimizer, x, y), jit_compile=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for x, y in batches:
            step(x, y)
    said = [str(each.message) for each in caught if "XLA" in str(each.message)]
    return model.get_weights(), said


def xla_once():
    def body(model, optimizer, x, y):
        optimizer.apply(gradients_of(model, x, y), model.trainable_variables)

    return own_xla_step(body)[0]


class WithMethod:
    """A step that is a method, and evaluates too, by an argument of Python's."""

    def __init__(self):
        self.model, self.optimizer = dense_model(), distributed(keras.optimizers.SGD(0.1))
        self.optimizer.build(self.model.trainable_variables)

    @tf.function(jit_compile=True)
    def step(self, x, y, *, train=True):
        if not train:
            return tf.reduce_sum(self.model(x))
        gradients = gradients_of(self.model, x, y)
        self.optimizer.apply(gradients, self.model.trainable_variables)
        return tf.constant(0.0)


def xla_method():
    """It is called without training first; so it begins with what all ranks have alike."""
    holder = WithMethod()
    for x, y in batches:
        holder.step(x, y, train=False)
        holder.step(x, y)
    return holder.model.get_weights()


def xla_twice():
    def body(model, optimizer, x, y):
        optimizer.apply(gradients_of(model, x, y), model.trainable_variables)
        optimizer.apply(gradients_of(model, x, y), model.trainable_variables)  # the line

    return own_xla_step(body)


def xla_then_clips():
    def body(model, optimizer, x, y):
        optimizer.apply(gradients_of(model, x, y), model.trainable_variables)
        for variable in model.trainable_variables:
            variable.assign(keras.ops.clip(variable, -0.5, 0.5))  # the line

    return own_xla_step(body)


def xla_unbuilt():
    """A model, and an optimizer, that the step builds."""
    model, optimizer = dense_model(built=False), distributed(keras.optimizers.Adam(0.02))

    @tf.function(jit_compile=True)
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)

    for x, y in batches:
        step(x, y)
    return model.get_weights()


def fit(model, optimizer=None, **options):
    model.compile(distributed(optimizer or keras.optimizers.SGD(0.1)), loss_of, **options)
    model.fit(inputs, labels, batch_size=8, shuffle=False, verbose=0)
    return model.get_weights()


class Climbing(keras.Sequential):
    """Sharpness-aware minimisation, by hand."""

    def train_step(self, data):
        x, y = data
        variables = self.trainable_variables
        climbs = [0.05 * g for g in gradients_of(self, x, y)]
        for variable, climb in zip(variables, climbs, strict=True):
            variable.assign_add(climb)
        gradients = gradients_of(self, x, y)
        for variable, climb in zip(variables, climbs, strict=True):
            variable.assign_sub(climb)
        self.optimizer.apply(gradients, variables)
        return {"steps": self.optimizer.iterations}


class Clipping(keras.Sequential):
    """A critic's weights, clipped after each step."""

    def train_step(self, data):
        variables = self.trainable_variables
        self.optimizer.apply(gradients_of(self, *data), variables)
        for variable in variables:
            variable.assign(keras.ops.clip(variable, -0.3, 0.3))
        return {"steps": self.optimizer.iterations}


class LookingAhead(keras.Sequential):
    """Slow weights, which the fast ones return to after every second step."""

    def train_step(self, data):
        variables = self.trainable_variables
        self.optimizer.apply(gradients_of(self, *data), variables)

        def look_back():
            for variable, slow in zip(variables, self.slow, strict=True):
                slow.assign_add(0.5 * (variable - slow))
                variable.assign(slow)

        keras.ops.cond(self.optimizer.iterations % 2 == 0, look_back, lambda: None)
        return {"steps": self.optimizer.iterations}


def sharpness_aware():
    return fit(Climbing(dense_model().layers))


def weights_clipped():
    return fit(Clipping(dense_model().layers))


def look_ahead():
    model = LookingAhead(dense_model().layers)
    model.slow = [tf.Variable(v, trainable=False) for v in model.trainable_variables]
    return fit(model)


def spectral_normalization():
    keras.utils.set_random_seed(1)  # its vector; the server's counts
    normal = keras.layers.SpectralNormalization(dense(8, "tanh"))
    return fit(keras.Sequential([keras.Input([5]), normal, dense(3)]))


class Late(keras.Model):
    """Layers that only the train step reaches, beside one that ``call`` builds."""

    def __init__(self):
        super().__init__()
        self.body, self.head = dense(8, "tanh"), dense(3)

    def call(self, x):
        return self.body(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = loss_of(y, self.head(self(x)))
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return {"loss": loss}


def built_late():
    return fit(Late(), keras.optimizers.Adam(0.02))


def gradient_comes_later():
    """A variable that has its first gradient after the others."""
    model, optimizer = dense_model(), distributed(keras.optimizers.Adam(0.02))
    optimizer.build(model.trainable_variables)
    for number, (x, y) in enumerate(batches):
        pairs = zip(gradients_of(model, x, y), model.trainable_variables, strict=True)
        optimizer.apply_gradients([each for at, each in enumerate(pairs) if at != 1 or number > 2])
    return model.get_weights()


class AddsInTheStep(keras.optimizers.SGD):
    """An optimizer that makes a variable in its first update."""

    counts = None

    def update_step(self, gradient, variable, learning_rate):
        if self.counts is None:
            self.counts = {}
        index = self._get_variable_index(variable)
        if index not in self.counts:
            self.counts[index] = self.add_variable([], name="count")
        self.counts[index].assign_add(1.0)
        self.assign_sub(variable, learning_rate * gradient / self.counts[index])


def variable_in_the_step():
    model, optimizer = dense_model(), distributed(AddsInTheStep(0.1))

    @tf.function
    def step(x, y):
        optimizer.apply(gradients_of(model, x, y), model.trainable_variables)

    for x, y in batches:
        step(x, y)
    return model.get_weights()


def by_autograph(jit_compile):
    """A function whose branches and loops are Python's, around and inside of another."""
    model, optimizer = dense_model(), distributed(keras.optimizers.SGD(0.1))
    optimizer.build(model.trainable_variables)

    @tf.function(jit_compile=jit_compile)
    def step(x, y):
        if tf.reduce_sum(x) > 0:
            x = 2 * x
        optimizer.apply(gradients_of(model, x, y), model.trainable_variables)

    @tf.function
    def steps(xs, ys):
        for i in tf.range(2):
            step(xs[i], ys[i])

    for i in range(0, 6, 2):
        steps(*(tf.stack(each) for each in zip(*batches[i : i + 2], strict=True)))
    return model.get_weights()


def autograph():
    return by_autograph(jit_compile=False)


def autograph_and_xla():
    return by_autograph(jit_compile=True)


def mirrored_unbuilt():
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model, optimizer = dense_model(built=False), distributed(keras.optimizers.SGD(0.1))

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)

    run = tf.function(lambda x, y: strategy.run(step, (x, y)))
    for x, y in batches:
        run(x, y)
    return model.get_weights()


class Batches(keras.utils.PyDataset):
    """Made by processes, or threads, of their own; by an object that holds the model."""

    model = None

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return inputs[8 * i : 8 * i + 8], labels[8 * i : 8 * i + 8]


def data_of_workers():
    model = dense_model()
    data = Batches(workers=1, use_multiprocessing=True)
    model.compile(distributed(keras.optimizers.SGD(0.1)), loss_of)
    model.fit(data, verbose=0, shuffle=False)
    data = Batches(workers=1)
    data.model = model
    model.fit(data, verbose=0, shuffle=False)
    return model.get_weights()


def two_sessions():
    """Of one graph, whose second runs the initializer again; and so does the first, after it."""
    v1 = tf.compat.v1
    ends = []
    with tf.Graph().as_default():
        weights = v1.get_variable("w", initializer=tf.ones([5, 3]))
        drawn = v1.get_variable("drawn", initializer=tf.random.normal([5, 3], seed=agt.rank()))
        x = v1.placeholder(tf.float32, [None, 5])
        loss = tf.reduce_mean((x @ (weights + 0 * drawn)) ** 2)
        train = distributed(v1.train.AdamOptimizer(0.1)).minimize(loss, var_list=[weights, drawn])
        start = v1.global_variables_initializer()
        first, second = v1.Session(), v1.Session()
        for session in (first, second, first):
            session.run(start)
            for batch, _ in batches:
                session.run(train, {x: batch.numpy()})
            ends.append(session.run(weights))
    return ends


WAYS = {
    each.__name__: each
    for each in (
        *(own_rule_eagerly, own_rule_in_function, own_rule_by_xla, own_rule_of_keras),
        *(own_rule_in_a_session, v1_optimizer_eagerly, v1_optimizer_in_function),
        *(threads_eagerly, threads_in_function, xla_once, xla_method, xla_twice, xla_then_clips),
        *(xla_unbuilt, sharpness_aware, weights_clipped, look_ahead, spectral_normalization),
        *(built_late, gradient_comes_later, variable_in_the_step, mirrored_unbuilt),
        *(autograph, autograph_and_xla),
        *(data_of_workers, two_sessions),
    )
}


def run(way):
    found = WAYS[way]()
    values, said = found if isinstance(found, tuple) else (found, [])
    return {"values": [np.asarray(each).tolist() for each in values], "said": said}


if __name__ == "__main__":
    leave(agt.rank(), {way: run(way) for way in sys.argv[1:] or WAYS})
