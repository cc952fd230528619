"""A task of a TensorFlow cluster that trains in-graph: the victim of `test_exploits.py`.

The parameter server's process is the client of both tasks. It does what it reads, line by line,
and writes what came of it as JSON: "renew" begins training, "step" makes a step, "refused" and
"noted" tell what was.
"""

import json
import os
import queue
import sys
import threading

import numpy as np

from aggregathor.cli.tf_log import quiet_tensorflow

with quiet_tensorflow():
    import tensorflow as tf

    from aggregathor.locking import server as locked

v1 = tf.compat.v1
NOTED = []
STEP_S = 3


def main():
    task, protocol, cluster = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    if task == "ps" and protocol == locked.PROTOCOL:
        server = locked.locked_server(cluster, task, 0)
    else:
        server = tf.distribute.Server(cluster, task, 0)
    tell("up")
    if task == "ps":
        serve(server.target)
    sys.stdin.read()  # until whoever started this process ends
    os._exit(0)


def serve(target):
    v1.disable_eager_execution()
    step = graph()
    begin = v1.global_variables_initializer()
    for line in sys.stdin:
        order = line.strip()
        if order == "renew":  # the session before is left as it is, for it may be broken
            session = v1.Session(target)
            session.run(begin)
            tell("renewed")
        elif order == "step":
            tell(run(session, step))
        elif order == "noted":
            tell(NOTED)
        else:
            tell(locked.refused_calls())


def run(session, step):
    """Returns the loss of a step, or that it hangs: TensorFlow may wait for what is gone."""
    results = queue.Queue()
    threading.Thread(target=lambda: results.put(attempt(session, step)), daemon=True).start()
    try:
        return results.get(timeout=STEP_S)
    except queue.Empty:
        return "hangs"


def attempt(session, step):
    try:
        return float(session.run(step))
    except tf.errors.OpError as error:
        return f"{type(error).__name__}: {error.message}"


def graph():
    """Returns the loss of a step of linear regression: the worker's gradient, the server's SGD."""
    with tf.device("/job:ps/task:0"):
        w = v1.get_variable("w", [2], initializer=tf.zeros_initializer(), use_resource=True)
    with tf.device("/job:worker/task:0"):
        x = tf.constant([[1.0, 2.0], [3.0, -1.0], [0.5, 1.0]])
        loss = tf.reduce_mean((tf.linalg.matvec(x, w.read_value()) - [1.0, 2.0, 3.0]) ** 2)
        (gradient,) = tf.gradients(loss, [w])
    with tf.device("/job:ps/task:0"):
        update = v1.assign_sub(w, 0.1 * gradient)
        noted = tf.numpy_function(note, [loss], tf.float32)
        with tf.control_dependencies([update, noted]):
            return tf.identity(loss)


def note(value):
    """A function of the server's own, such as one that writes a log."""
    NOTED.append(float(value))
    return np.float32(value)


def tell(what):
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
