"""What a session runs of a graph of v1: variables are known by name, be they resources or not."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf

from aggregathor.locking import Guard, LockError

v1 = tf.compat.v1


@pytest.fixture
def guard():
    with contextlib.closing(Guard("rank 1")) as guard:
        yield guard


@pytest.fixture(params=[True, False], ids=["resource", "reference"])
def weights(request):
    """Returns a variable in a graph of its own."""
    with tf.Graph().as_default():
        yield v1.get_variable("w", [3], use_resource=request.param)


def of_the_same_name(weights):
    """Writes by another op that names the variable."""
    definition = tf.Graph().as_graph_def()
    maker = weights.handle.op if hasattr(weights, "handle") else weights.op
    definition.node.append(maker.node_def)
    definition.node[0].attr["shared_name"].s = b"w"
    definition.node[0].name = "another"
    del definition.node[0].attr["_class"]  # beside whom it is
    (alias,) = tf.import_graph_def(definition, return_elements=["another:0"])
    if alias.dtype == tf.resource:
        return tf.raw_ops.AssignVariableOp(resource=alias, value=tf.ones([3]))
    return tf.raw_ops.Assign(ref=alias, value=tf.ones([3]))


def in_frame(weights):
    """Writes in a while loop of v1, with its frames."""
    v1.disable_control_flow_v2()
    try:
        return tf.while_loop(
            lambda i: i < 2,
            lambda i: i + tf.cast(v1.assign_add(weights, tf.ones([3]))[0] > 9, tf.int32) + 1,
            [tf.constant(0)],
        )
    finally:
        v1.enable_control_flow_v2()


WRITES = {
    "assign": lambda w: v1.assign(w, tf.ones([3])),
    "assign_add": lambda w: v1.assign_add(w, tf.ones([3])),
    "initializer": lambda w: w.initializer,
    "scatter": lambda w: v1.scatter_update(w, [0], [1.0]),
    "optimizer": lambda w: v1.train.AdamOptimizer().minimize(tf.reduce_sum(w**2), var_list=[w]),
    "control dependency": lambda w: _after(v1.assign(w, tf.ones([3]))),
    "same name": of_the_same_name,
    "frame": in_frame,
}


def _after(write):
    with tf.control_dependencies([write]):
        return tf.constant(1)


def operation(fetch):
    fetch = tf.nest.flatten(fetch)[0]
    return fetch if isinstance(fetch, tf.Operation) else fetch.op


@pytest.mark.parametrize("way", WRITES)
def test_a_write_is_found(way, weights, guard):
    fetch = WRITES[way](weights)
    reads = tf.reduce_sum(weights * 2)
    guard.lock([weights])
    with pytest.raises(LockError, match=r"rank 1 would write w, which only"):
        guard.check(weights.graph, [operation(fetch)])
    guard.check(weights.graph, [reads.op])


def test_the_line_of_the_script_is_named(weights, guard):
    fetch = v1.assign(weights, tf.ones([3]))
    guard.lock([weights])
    with pytest.raises(LockError, match=r"made at .*test_v1\.py:\d+, in test_the_line"):
        guard.check(weights.graph, [operation(fetch)])


def test_what_is_allowed_may_write(weights, guard):
    fetch = operation(v1.assign(weights, tf.ones([3])))
    guard.lock([weights])
    guard.allow(fetch)
    guard.check(weights.graph, [fetch])
    with v1.Session() as session:
        session.run(weights.initializer)
        session.run(fetch)
        np.testing.assert_array_equal(session.run(weights), 1)


def test_the_gradients_of_a_variable_are_no_writes(weights, guard):
    other = v1.get_variable("other", [3])
    loss = tf.reduce_sum(weights * other)
    gradient = tf.gradients(loss, weights)[0]
    step = v1.train.MomentumOptimizer(0.1, 0.9).minimize(loss, var_list=[other])
    guard.lock([weights])
    guard.check(weights.graph, [gradient.op, step])
