"""Ways in which a worker's script can write a locked variable, and which layers meet each.

A way takes a variable "kernel" of zeros, float32 [2, 3], and leaves it changed. The table of
`SECURITY.md` is made of `MATRIX`; `test_matrix.py` shows each of its cells.
"""

import contextlib
import ctypes
import tempfile
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import tensorflow as tf

from tests.locking import test_scan

ONES = test_scan.ONES


def eager_assign(v):
    v.assign(ONES)


def eager_part(v):
    v[0].assign([3.0, 3.0, 3.0])


def eager_handle(v):
    tf.raw_ops.AssignAddVariableOp(resource=tf.identity(v.handle), value=ONES)


def eager_other_optimizer(v):
    """An optimizer that is not the job's."""
    keras.optimizers.Adam(0.1).apply([ONES], [keras_variable(v)])


def eager_fused(v):
    tf.raw_ops.ResourceApplyGradientDescent(var=v.handle, alpha=-0.1, delta=ONES)


def set_weights(v):
    """What Keras's ``set_weights``, ``load_weights`` and ``load_own_variables`` do."""
    keras_variable(v).assign(np.ones([2, 3]))


def keras_variable(v):
    """Returns a variable of Keras whose value is a given one of TensorFlow."""
    made = keras.Variable(np.zeros([2, 3], np.float32))
    made._value = v
    return made


def restored(v):
    with tempfile.TemporaryDirectory() as folder:
        path = tf.train.Checkpoint(v=tf.Variable(ONES)).write(f"{folder}/a")
        tf.train.Checkpoint(v=v).read(path)


def other_thread(v):
    with ThreadPoolExecutor() as pool:
        pool.submit(eager_assign, v).result()


def eager_dataset(v):
    list(tf.data.Dataset.range(2).map(lambda i: v.assign_add(ONES)))


def top_level_argument(v):
    """A function that is given the variable, and is traced without knowing which."""
    tf.function(add_one)(v)


def add_one(variable):
    variable.assign(variable + 1)


def top_level_handle(v):
    test_scan.by_handle_as_argument(v)


def imported_graph(v):
    """A graph that comes as bytes, with a placeholder for the handle."""
    with tf.Graph().as_default() as graph:
        handle = tf.compat.v1.placeholder(tf.resource, [], name="handle")
        tf.raw_ops.AssignVariableOp(resource=handle, value=tf.ones([2, 3]), name="write")
    definition = graph.as_graph_def().SerializeToString()

    def write():
        parsed = tf.compat.v1.GraphDef.FromString(definition)
        tf.import_graph_def(parsed, input_map={"handle": tf.identity(v.handle)})

    tf.function(write)()


def compiled(v):
    tf.function(lambda: v.assign(v + 1), jit_compile=True)()


def compiled_argument(v):
    """By XLA, which is given the variable."""
    tf.function(add_one, jit_compile=True)(v)


def python_by_name(v):
    """A function of Python that finds the variable where nobody can follow it."""
    hidden = [id(v)]

    def write():
        ctypes.cast(hidden[0], ctypes.py_object).value.assign(ONES)

    @tf.function
    def step():
        tf.py_function(write, [], [])

    step()


def alias_in_python(v):
    """A function of Python that is given the value, whose memory is the variable's."""

    def write(value):
        with contextlib.suppress(ValueError):
            value.flags.writeable = True
        value[...] = 7
        return value

    tf.function(lambda: tf.numpy_function(write, [v], tf.float32))()


def in_place(v):
    """An op that changes what it is given, which is not the handle."""
    tf.function(lambda: tf.raw_ops.InplaceUpdate(x=v.read_value(), i=[0], v=tf.ones([1, 3])))()


def native_memory(v):
    address = np.asarray(memoryview(v.read_value())).ctypes.data
    ctypes.memset(address, 1, 4)


def in_function(name):
    """A way of the scan's tests, in a step of its own."""

    def way(v):
        test_scan.run(name, v)

    way.__name__ = name.replace(" ", "_")
    return way


IN_FUNCTIONS = [
    name for name in test_scan.WRITES if name not in ("count up", "destroyed", "wrapped function")
]

# "S": the scan refuses it, before it runs; "K": the kernels do; "C": they let it write a copy; "D":
# the digest sees it.
MATRIX = {
    **{in_function(name): "SKD" for name in IN_FUNCTIONS},
    in_function("destroyed"): "SK",  # a handle that counts its references keeps the variable
    test_scan.by_wrapped_function: "SKD",
    imported_graph: "SKD",
    compiled: "SD",
    eager_dataset: "SKD",
    eager_assign: "KD",
    eager_part: "KD",
    eager_handle: "KD",
    eager_other_optimizer: "KD",
    eager_fused: "KD",
    set_weights: "KD",
    restored: "KD",
    other_thread: "KD",
    top_level_argument: "KD",
    top_level_handle: "KD",
    compiled_argument: "D",
    python_by_name: "KD",
    alias_in_python: "CD",
    in_place: "KD",
    native_memory: "D",
}
