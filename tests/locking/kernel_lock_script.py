"""What takes a process of its own: the lock of kernels changes a process for good."""

import functools
import hashlib
import sys

import keras
import numpy as np
import tensorflow as tf

from aggregathor.locking import KernelLock

ALLOWED = ("_aggregathor_writes", b"a token of tests")
v1 = tf.compat.v1


def honest():
    """Trains and computes on variables of one's own, without the lock and with it."""
    free = digest()
    lock = KernelLock("rank 2", ALLOWED)
    locked = tf.Variable(tf.ones([8]))
    lock.lock(locked, "locked")
    assert digest() == free
    assert not lock.refused()
    sys.stdout.write("the same bits\n")


def digest():
    keras.utils.set_random_seed(1)
    found = hashlib.sha256()
    for value in (*trained(), *tables(), *loops(), *sessions()):
        found.update(np.ascontiguousarray(value).tobytes())
    return found.hexdigest()


def trained():
    """Optimizers, batch normalisation, dropout, embeddings, metrics and an iterator."""
    inputs = np.random.default_rng(0).integers(0, 9, [64, 4])
    for optimizer in ("sgd", "adam", "adagrad", "ftrl", "rmsprop"):
        layers = keras.layers
        model = keras.Sequential(
            [
                layers.Embedding(9, 5),
                layers.Flatten(),
                layers.BatchNormalization(),
                layers.Dropout(0.3),
                layers.Dense(3),
            ]
        )
        model.compile(optimizer, "mse", metrics=["mae", keras.metrics.AUC()])
        history = model.fit(inputs, inputs[:, :3] > 4, batch_size=8, epochs=2, verbose=0)
        yield from model.get_weights()
        yield from history.history.values()
    generator = tf.random.Generator.from_seed(3)
    yield generator.normal([7])
    yield generator.state


def tables():
    """Resources that are no variables."""
    table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0.0)
    table.insert(tf.constant([1, 2], tf.int64), [0.5, 0.25])
    yield table.lookup(tf.constant([2, 9, 1], tf.int64))
    queue = tf.queue.FIFOQueue(3, tf.float32)
    queue.enqueue(2.5)
    yield queue.dequeue()
    dataset = tf.data.Dataset.range(100).shuffle(10, seed=1).batch(7).prefetch(2)
    yield np.concatenate(list(dataset.as_numpy_iterator()))


def loops():
    """Variables, arrays of tensors and lists in a function."""
    v = tf.Variable(tf.zeros([3]))

    @tf.function
    def count(n):
        array = tf.TensorArray(tf.float32, n)
        for i in tf.range(n):
            v.assign_add(tf.fill([3], tf.cast(i, tf.float32)))
            array = array.write(i, v.read_value())
        v.scatter_nd_update([[1]], [0.5])
        v[2:].assign([0.75])
        return array.stack()

    yield count(5)
    yield v


def sessions():
    """References and resources of v1."""
    for use_resource in (True, False):
        with tf.Graph().as_default(), v1.Session() as session:
            w = v1.get_variable(
                "w", [3], initializer=v1.ones_initializer(), use_resource=use_resource
            )
            step = v1.train.AdamOptimizer(0.1).minimize(tf.reduce_sum((w - 3.0) ** 2))
            session.run(v1.global_variables_initializer())
            for _ in range(3):
                session.run(step)
            yield session.run(w)


def before():
    """Shows what was made before the lock and is refused all the same, and what is not."""
    ones = tf.ones([2])
    v = tf.Variable(ones)

    def write():
        v.assign_add(ones)

    ran = tf.function(write, autograph=False)
    traced = tf.function(write, autograph=False)
    dataset = tf.data.Dataset.range(9).map(lambda i: v.assign_add(ones))
    in_turn = tf.data.Options()  # nothing is made before it is asked for
    in_turn.experimental_optimization.inject_prefetch = False
    dataset = dataset.with_options(in_turn)
    begun = iter(dataset)
    write()
    ran()
    traced.get_concrete_function()
    next(begun)
    with tf.Graph().as_default() as graph:
        w = v1.get_variable("w", [2], initializer=v1.ones_initializer(), use_resource=True)
        add = v1.assign_add(w, tf.ones([2]))
    session, session_that_ran = v1.Session(graph=graph), v1.Session(graph=graph)
    for each in (session, session_that_ran):
        each.run(w.initializer)
    session_that_ran.run(add)

    lock = KernelLock("rank 2", ALLOWED)
    lock.lock(v, "v")
    with graph.as_default():
        locked = lock.lock(w, "w")
    for each in (session, session_that_ran):
        each.run(locked)
    say_what_happens("eager", write, v.numpy)
    say_what_happens("traced function", traced, v.numpy)
    say_what_happens("function that had run", ran, v.numpy)
    say_what_happens("iterator", lambda: next(iter(dataset)), v.numpy)
    say_what_happens("iterator that had begun", lambda: next(begun), v.numpy)
    for name, each in (("session", session), ("session that had run", session_that_ran)):
        say_what_happens(name, lambda s=each: s.run(add), lambda s=each: s.run(w))


def say_what_happens(name, write, value):
    before = value()
    try:
        write()
    except tf.errors.PermissionDeniedError:
        assert np.all(value() == before)
        sys.stdout.write(f"{name}: refused\n")
    else:
        assert np.all(value() > before)
        sys.stdout.write(f"{name}: written\n")


def served():
    """Shows that variables which sessions share are locked in all of them."""
    target = v1.train.Server.create_local_server().target
    for use_resource in (True, False):
        with tf.Graph().as_default() as graph:
            w = v1.get_variable(
                f"w{use_resource}",
                [2],
                initializer=v1.ones_initializer(),
                use_resource=use_resource,
            )
            add = v1.assign_add(w, tf.ones([2]))
            lock = KernelLock("rank 2", ALLOWED)
            locked = lock.lock(w, "w")
        one, other = v1.Session(target, graph=graph), v1.Session(target, graph=graph)
        one.run(w.initializer)
        other.run(add)
        one.run(locked)
        write, value = functools.partial(other.run, add), functools.partial(one.run, w)
        say_what_happens("another session", write, value)


{"honest": honest, "before": before, "served": served}[sys.argv[1]]()
