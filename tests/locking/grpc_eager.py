"""Writes the variable "w" of a parameter server eagerly.

Prints "done" or which error was raised, and after how many seconds.
"""

import sys
import time

from aggregathor.cli.tf_log import quiet_tensorflow

with quiet_tensorflow():
    import tensorflow as tf

begun = time.monotonic()
try:
    tf.config.experimental_connect_to_host(sys.argv[1], job_name="ps")
    with tf.device("/job:ps/replica:0/task:0/device:CPU:0"):
        handle = tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[2], shared_name="w")
        tf.raw_ops.AssignVariableOp(resource=handle, value=tf.constant([666.0, 666.0]))
        value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)
    word = "done" if value.numpy()[0] == 666 else "kept"
except tf.errors.OpError as error:
    word = type(error).__name__
sys.stdout.write(f"{word} {time.monotonic() - begun:.3f}\n")
sys.stdout.flush()
