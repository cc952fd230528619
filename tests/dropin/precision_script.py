"""Trains variables of each type, in each style, and beside them the same without AggregaThor."""

import functools
import os
import sys

import keras
import ml_dtypes
import numpy as np
import tensorflow as tf

import aggregathor as agt
import lossympi
from tests.mpi.results import leave

v1 = tf.compat.v1
STEPS = 3
# What float32 holds not at all, or only in part; and the least of the half types.
START = {
    "float32": np.array([1 + 2**-23, 3e38, -2.5], np.float32),
    "float64": np.array([1 + 1e-12, 1e300, -1e-300, 1e-50]),
    "complex64": np.array([1 + 2j, -1.5j, 0.5], np.complex64),
    "complex128": np.array([1 + 1e-12j, 1e300 - 1e-300j]),
    "bfloat16": np.array([1.0, 9.2e-41, -3e38], ml_dtypes.bfloat16),
    "float16": np.array([1.0, 6e-8, -65504.0], np.float16),
}
# Of more than one type, with what no optimizer trains among them.
TOGETHER = ("float32", "bfloat16", "complex64", "float64")


def gradient_of(start):
    """Returns a gradient that changes every coordinate, but for the least."""
    return (start * np.asarray(0.5 + 1e-13, start.dtype)).astype(start.dtype)


def eager(optimizer, variables, grads):
    for _ in range(STEPS):
        optimizer.apply_gradients(zip(grads, variables, strict=True))


def traced(optimizer, variables, grads):
    @tf.function
    def step():
        optimizer.apply_gradients(zip(grads, variables, strict=True))

    for _ in range(STEPS):
        step()


def trained(style, starts, marked):
    """Returns the bytes of what variables with these values are after the training."""
    grads = [None if start.dtype.kind in "iO" else gradient_of(start) for start in starts]
    if style == "v1":
        return trained_in_a_graph(starts, grads, marked)
    optimizer = keras.optimizers.SGD(0.25)
    if marked:
        optimizer = agt.DistributedOptimizer(optimizer)
    variables = [tf.Variable(start, trainable=True) for start in starts]
    grads = [None if grad is None else tf.constant(grad) for grad in grads]
    # Every rank but the server, whose start counts, begins elsewhere.
    if marked and agt.rank():
        for variable, grad in zip(variables, grads, strict=True):
            if grad is not None:
                variable.assign(variable * tf.cast(0.5, variable.dtype))
    {"eager": eager, "function": traced}[style](optimizer, variables, grads)
    return b"".join(v.numpy().tobytes() for v in variables if v.dtype != tf.string)


def trained_in_a_graph(starts, grads, marked):
    with tf.Graph().as_default(), v1.Session() as session:
        variables = [v1.get_variable(f"v{i}", initializer=x) for i, x in enumerate(starts)]
        optimizer = v1.train.GradientDescentOptimizer(0.25)
        if marked:
            optimizer = agt.DistributedOptimizer(optimizer)
        grads = [None if grad is None else tf.constant(grad) for grad in grads]
        step = optimizer.apply_gradients(zip(grads, variables, strict=True))
        session.run(v1.global_variables_initializer())
        for _ in range(STEPS):
            session.run(step)
        values = session.run([v for v in variables if v.dtype.base_dtype != tf.string])
    return b"".join(value.tobytes() for value in values)


if os.environ.get("PLANE"):
    lossympi.connect = functools.partial(lossympi.connect, plane=os.environ["PLANE"])
agt.init(gar=sys.argv[2], transport=sys.argv[1])
cases = {name: [start] for name, start in START.items()}
cases["together"] = [START[name] for name in TOGETHER]
cases["untrained"] = [
    START["float64"],
    np.array([3, 4], np.int64),
    np.array(["cat", "dog"], object),
]
differ = []
for name, starts in cases.items():
    for style in ("eager", "function", "v1"):
        alone = trained(style, starts, marked=False)
        if trained(style, starts, marked=True) != alone:
            differ.append(f"{name} {style}")
leave(agt.rank(), differ)
