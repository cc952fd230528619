"""Ways to write a locked variable through kernels: each writes a free one, and no locked one."""

import contextlib
import functools
import os
import subprocess
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.framework import op_def_registry

from aggregathor import ops
from aggregathor.locking import KernelLock, NoKernelLock, kernels
from tests.mpi import launch
from tests.warm.start import python as warm_python

v1 = tf.compat.v1
raw = tf.raw_ops
ALLOWED = ("_aggregathor_writes", b"a token of tests")
SCRIPT = Path(__file__).with_name("kernel_lock_script.py")
LATECOMER = launch.ROOT / "tests" / "native" / "latecomer_op.cc"
ROWS = tf.fill([4, 3], 7.0)
ROW = tf.fill([1, 3], 7.0)


@pytest.fixture(scope="module")
def lock():
    with contextlib.closing(KernelLock("rank 2", ALLOWED)) as lock:
        yield lock


def test_each_variable_that_is_locked_before_is_no_other(lock):
    """What dies is forgotten: new variables get its memory, and are free."""
    for _ in range(100):
        v = tf.Variable(tf.ones([4, 3]))
        v.assign(ROWS)
        lock.lock(v, "one of many")


class Way(NamedTuple):
    """A write: what does it, the op that is refused, and the variable's type."""

    write: Any
    op: str
    dtype: tf.DType = tf.float32
    shape: tuple[int, ...] = (4, 3)


def optimizer_step(op, v):
    """Calls an op of an optimizer's on a variable, and on slots of its own."""
    is_sparse = "Sparse" in op
    known = {
        "grad": ROW if is_sparse else ROWS,
        "delta": ROWS,
        "momentum": tf.constant(0.25),
        "indices": tf.constant([0]),
        "global_step": tf.constant(1, tf.int64),
        "lr_power": tf.constant(-0.5),
    }
    arguments = {}
    for each in op_def_registry.get(op).input_arg:
        if each.type == tf.resource.as_datatype_enum:
            arguments[each.name] = (v if each.name == "var" else tf.Variable(ROWS)).handle
        else:
            arguments[each.name] = known.get(each.name, tf.constant(0.5))
    getattr(raw, op)(**arguments)


OPTIMIZERS = (
    *("AdaMax", "Adadelta", "Adagrad", "AdagradDA", "AdagradV2", "Adam", "AdamWithAmsgrad"),
    *("AddSign", "CenteredRMSProp", "Ftrl", "FtrlV2", "KerasMomentum", "Momentum", "PowerSign"),
    *("ProximalAdagrad", "ProximalGradientDescent", "RMSProp"),
)
DENSE_ONLY = ("AdaMax", "Adam", "AdamWithAmsgrad", "AddSign", "PowerSign")
OPTIMIZER_OPS = (
    "ResourceApplyGradientDescent",
    *(f"ResourceApply{name}" for name in OPTIMIZERS),
    *(f"ResourceSparseApply{name}" for name in OPTIMIZERS if name not in DENSE_ONLY),
)


def strided(v):
    raw.ResourceStridedSliceAssign(
        ref=v.handle, begin=[0, 0], end=[1, 3], strides=[1, 1], value=ROW
    )


def restored(v):
    with tempfile.TemporaryDirectory() as folder:
        path = tf.train.Checkpoint(w=tf.Variable(ROWS)).write(f"{folder}/saved")
        tf.train.Checkpoint(w=v).read(path).assert_consumed()


def in_function(v):
    tf.function(lambda: v.assign(ROWS), autograph=False)()


def in_cond(v):
    @tf.function(autograph=False)
    def f(x):
        return tf.cond(x > 0, lambda: v.assign(ROWS) + 0.0, lambda: v + 0.0)

    f(tf.constant(1.0))


def in_while(v):
    @tf.function(autograph=False)
    def f():
        def body(i):
            v.assign_add(ROWS)
            return (i + 1,)

        return tf.while_loop(lambda i: i < 2, body, [tf.constant(0)])

    f()


def in_dataset(v):
    for _ in tf.data.Dataset.range(2).map(lambda i: v.assign_add(ROWS)):
        pass


def in_python(v):
    tf.function(lambda: tf.py_function(lambda: v.assign(ROWS), [], tf.float32), autograph=False)()


def on_a_thread(v):
    failed = []

    def write():
        try:
            v.assign(ROWS)
        except tf.errors.OpError as error:
            failed.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def by_packed_handles(v):
    handles = tf.function(lambda: tf.stack([v.handle, v.handle]), autograph=False)()
    raw.AssignVariableOp(resource=tf.unstack(handles)[1], value=ROWS)


def by_keras(v):
    tf.keras.optimizers.SGD(1.0).apply([ROWS], [v])


def in_a_saved_function(v):
    module = tf.Module()
    module.v = v
    module.write = tf.function(lambda: v.assign(ROWS), input_signature=[], autograph=False)
    module.write.get_concrete_function()
    module.write()


def in_place(op, v):
    getattr(raw, op)(x=v.read_value(), i=[0], v=ROW)


def random(op, v):
    getattr(raw, op)(
        resource=v.handle, algorithm=tf.constant(1, tf.int64), shape=[2], dtype=tf.float32
    )


def skipped(v):
    raw.RngReadAndSkip(resource=v.handle, alg=1, delta=tf.constant(9, tf.uint64))


def counted(v):
    raw.ResourceCountUpTo(resource=v.handle, limit=9, T=tf.int64)


STATE = {"dtype": tf.int64, "shape": (3,)}
WAYS = {
    "assign": Way(lambda v: v.assign(ROWS), "AssignVariableOp"),
    "assign_add": Way(lambda v: v.assign_add(ROWS), "AssignAddVariableOp"),
    "assign_sub": Way(lambda v: v.assign_sub(ROWS), "AssignSubVariableOp"),
    "raw": Way(lambda v: raw.AssignVariableOp(resource=v.handle, value=ROWS), "AssignVariableOp"),
    "half": Way(
        lambda v: v.assign(tf.cast(ROWS, tf.bfloat16)), "AssignVariableOp", dtype=tf.bfloat16
    ),
    "bool": Way(lambda v: v.assign(tf.zeros([4, 3], tf.bool)), "AssignVariableOp", dtype=tf.bool),
    "strided slice": Way(strided, "ResourceStridedSliceAssign"),
    "sliced": Way(lambda v: v[1:2].assign(ROW), "ResourceStridedSliceAssign"),
    "Keras": Way(by_keras, "AssignSubVariableOp"),
    "restored": Way(restored, "AssignVariableOp"),
    "function": Way(in_function, "AssignVariableOp"),
    "saved function": Way(in_a_saved_function, "AssignVariableOp"),
    "cond": Way(in_cond, "AssignVariableOp"),
    "while": Way(in_while, "AssignAddVariableOp"),
    "dataset": Way(in_dataset, "AssignAddVariableOp"),
    "Python": Way(in_python, "AssignVariableOp"),
    "thread": Way(on_a_thread, "AssignVariableOp"),
    "packed handles": Way(by_packed_handles, "AssignVariableOp"),
    "skipped": Way(skipped, "RngReadAndSkip", **STATE),
    "count": Way(counted, "ResourceCountUpTo", dtype=tf.int64, shape=()),
    **{
        op: Way(functools.partial(random, op), op, **STATE)
        for op in ("StatefulStandardNormalV2", "StatefulUniform")
    },
    **{
        op: Way(functools.partial(in_place, op), op)
        for op in ("InplaceUpdate", "InplaceAdd", "InplaceSub")
    },
    **{
        f"scatter {how}": Way(
            lambda v, op=f"ResourceScatter{how}": getattr(raw, op)(
                resource=v.handle, indices=[0], updates=-ROW
            ),
            f"ResourceScatter{how}",
        )
        for how in ("Add", "Sub", "Mul", "Div", "Min", "Update")
    },
    "scatter Max": Way(
        lambda v: raw.ResourceScatterMax(resource=v.handle, indices=[0], updates=ROW),
        "ResourceScatterMax",
    ),
    **{
        f"scatter nd {how}": Way(
            lambda v, op=f"ResourceScatterNd{how}", sign=sign: getattr(raw, op)(
                ref=v.handle, indices=[[0]], updates=sign * ROW
            ),
            f"ResourceScatterNd{how}",
        )
        for how, sign in (("Add", 1), ("Sub", 1), ("Update", 1), ("Max", 1), ("Min", -1))
    },
    **{op: Way(functools.partial(optimizer_step, op), op) for op in OPTIMIZER_OPS},
}


def variable(way):
    return tf.Variable(tf.ones(way.shape, way.dtype), name="kernel")


def is_as_it_was(v):
    try:
        return np.all(v.numpy() == np.ones(v.shape))
    except tf.errors.OpError:  # it is gone
        return False


@pytest.mark.parametrize("name", WAYS)
def test_a_locked_variable_is_not_written(name, lock):
    way = WAYS[name]
    free, locked = variable(way), variable(way)
    lock.lock(locked, "dense/kernel")
    way.write(free)
    assert not is_as_it_was(free)
    before = lock.refused()
    with pytest.raises(
        tf.errors.UnknownError if name == "Python" else tf.errors.PermissionDeniedError,
        match=rf"rank 2 would write dense/kernel, which only the server writes: {way.op}\b.* Let "
        r"the server do it, where agt.is_server\(\), or write to a variable of your own\.",
    ):
        way.write(locked)
    assert is_as_it_was(locked)
    assert set(lock.refused() - before) == {way.op}


@pytest.mark.parametrize("name", WAYS)
def test_a_variable_that_has_the_memory_of_a_locked_one_is_written_elsewhere(name, lock):
    """Assigning what was read shares memory, until one of the two is written."""
    way = WAYS[name]
    locked, free = variable(way), variable(way)
    lock.lock(locked, "dense/kernel")
    free.assign(locked.read_value())
    if name.startswith("Inplace"):
        with pytest.raises(tf.errors.PermissionDeniedError, match="would write dense/kernel"):
            way.write(free)
        free.assign(variable(way))  # of memory of its own
    way.write(free)
    assert not is_as_it_was(free)
    assert is_as_it_was(locked)


def fill(array):
    array.fill(7)
    return np.float32(array.sum())


@pytest.mark.parametrize(
    "call",
    [
        lambda v: tf.numpy_function(fill, [v], tf.float32),
        lambda v: tf.py_function(lambda value: fill(value._numpy()), [v], tf.float32),
    ],
    ids=["NumPy", "eager"],
)
@pytest.mark.parametrize("is_locked", [False, True])
def test_python_in_a_graph_has_a_copy_of_a_locked_variable(call, is_locked, lock):
    """It is told not to write what it is given, and could: that is the variable's memory."""
    v = tf.Variable(tf.ones([4, 3]))
    if is_locked:
        lock.lock(v, "v")
    assert tf.function(lambda: call(v), autograph=False)() == 7 * 12
    assert is_as_it_was(v) == is_locked


def test_each_op_of_an_optimizer_is_tried():
    registered = {each.op for each in kernels.registered_kernels() if each.device_type == "CPU"}
    prefixes = ("ResourceApply", "ResourceSparseApply")
    assert {op for op in registered if op.startswith(prefixes)} == {*OPTIMIZER_OPS}


def test_a_slot_may_be_the_locked_variable(lock):
    v, slot = tf.Variable(ROWS), tf.Variable(ROWS)
    lock.lock(slot, "slot")
    with pytest.raises(tf.errors.PermissionDeniedError, match="rank 2 would write slot, which"):
        raw.ResourceApplyMomentum(var=v.handle, accum=slot.handle, lr=0.5, grad=ROWS, momentum=0.5)
    np.testing.assert_array_equal(v, ROWS)


def test_another_name_is_the_same_variable(lock):
    maker = functools.partial(
        raw.VarHandleOp, dtype=tf.float32, shape=[4, 3], shared_name="w", container="c"
    )
    raw.AssignVariableOp(resource=maker(), value=tf.ones([4, 3]))
    lock.lock(SimpleNamespace(handle=maker(), device="/CPU:0"), "w")
    with pytest.raises(tf.errors.PermissionDeniedError):
        raw.AssignVariableOp(resource=maker(), value=ROWS)
    with pytest.raises(tf.errors.PermissionDeniedError):
        raw.DestroyResourceOp(resource=maker())
    np.testing.assert_array_equal(raw.ReadVariableOp(resource=maker(), dtype=tf.float32), 1)


def test_what_has_run_before_the_variable_was_locked_is_refused_then(lock):
    v = tf.Variable(tf.zeros([4, 3]))
    count = tf.function(lambda: v.assign_add(tf.ones([4, 3])), autograph=False)
    count()
    v.assign_add(tf.ones([4, 3]))
    lock.lock(v, "v")
    for write in (count, lambda: v.assign_add(tf.ones([4, 3]))):
        with pytest.raises(tf.errors.PermissionDeniedError):
            write()
    np.testing.assert_array_equal(v, 2)


def test_reads_are_as_ever(lock):
    v = tf.Variable(tf.reshape(tf.range(12.0), [4, 3]))
    lock.lock(v, "v")

    @tf.function(autograph=False)
    def read(v_again):
        return tf.gather(v, [1])[0] + v_again[1] + tf.cond(v[0, 1] > 0, lambda: v[1], lambda: v[0])

    np.testing.assert_array_equal(read(v), [9, 12, 15])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(v**2)
    np.testing.assert_array_equal(tape.gradient(loss, v), 2 * v.numpy())
    assert v.is_initialized()


def test_with_leave_this_thread_writes_and_no_other(lock):
    v = tf.Variable(tf.ones([4, 3]))
    lock.lock(v, "v")
    with lock.writing():
        with pytest.raises(tf.errors.PermissionDeniedError):
            on_a_thread(v)
        v.assign(ROWS)
        with context.execution_mode(context.ASYNC), lock.writing():
            v.assign_add(ROWS)
    np.testing.assert_array_equal(v, 2 * ROWS)
    with pytest.raises(tf.errors.PermissionDeniedError):
        v.assign(ROWS)


def test_leave_takes_the_token(lock):
    assert lock._library.aggregathor_lock_let_thread_write(b"a token of other", 16, 1) == 0


def test_a_node_with_the_token_writes(lock):
    v = tf.Variable(tf.ones([4, 3]))
    lock.lock(v, "v")

    def write(value):
        name, token = ALLOWED
        operation = v.assign(tf.ones([4, 3]) * x, read_value=False)
        operation._set_attr(name, tf.compat.v1.AttrValue(s=token if value else b"another token"))

    x = tf.constant(7.0)
    with pytest.raises(tf.errors.PermissionDeniedError):
        tf.function(write, autograph=False)(False)
    np.testing.assert_array_equal(v, 1)
    tf.function(write, autograph=False)(True)
    np.testing.assert_array_equal(v, 7)


def test_once_closed_all_may_be_written(lock):
    v = tf.Variable(tf.ones([4, 3]))
    with contextlib.closing(KernelLock("rank 2", ALLOWED)) as again:
        again.lock(v, "v")
        with pytest.raises(tf.errors.PermissionDeniedError):
            v.assign(ROWS)
    v.assign(ROWS)
    np.testing.assert_array_equal(v, ROWS)


def test_threads_that_lock_and_write_do_not_meet(lock):
    """Each locks variables of its own, which die; kernels are checked anew meanwhile."""
    went_well = []

    def churn():
        for _ in range(100):
            v, free = tf.Variable(ROWS), tf.Variable(ROWS)
            lock.lock(v, "v")
            with contextlib.suppress(tf.errors.PermissionDeniedError):
                v.assign(-ROWS)
                return
            free.assign_add(v)
            raw.InplaceAdd(x=free.read_value(), i=[0], v=ROW)
        went_well.append(True)

    before = lock.refused()["AssignVariableOp"]
    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()
    lock._install()
    for thread in threads:
        thread.join()
    assert went_well == [True] * 3
    assert lock.refused()["AssignVariableOp"] == before + 300


@contextlib.contextmanager
def session_of(use_resource, dtype=tf.float32, shape=(4, 3)):
    with tf.Graph().as_default(), v1.Session() as session:
        make = functools.partial(v1.get_variable, dtype=dtype, use_resource=use_resource)
        ones = v1.ones_initializer()
        w = make("w", shape, initializer=ones)
        slot = make("slot", shape, initializer=ones)
        yield session, w, slot


def same_name(w):
    definition = tf.Graph().as_graph_def()
    definition.node.append((w.handle.op if hasattr(w, "handle") else w.op).node_def)
    definition.node[0].attr["shared_name"].s = b"w"
    definition.node[0].name = "another"
    del definition.node[0].attr["_class"]
    (alias,) = tf.import_graph_def(definition, return_elements=["another:0"])
    if alias.dtype == tf.resource:
        return raw.AssignVariableOp(resource=alias, value=tf.fill([4, 3], 7.0))
    return raw.Assign(ref=alias, value=tf.fill([4, 3], 7.0))


def rows():
    return tf.fill([4, 3], 7.0)


V1_WAYS = {
    "assign": lambda w, slot: v1.assign(w, rows()),
    "assign_add": lambda w, slot: v1.assign_add(w, rows()),
    "initializer": lambda w, slot: w.initializer,
    "scatter": lambda w, slot: v1.scatter_update(w, [0], [[7.0] * 3]),
    "scatter nd": lambda w, slot: v1.scatter_nd_add(w, [[0]], [[7.0] * 3]),
    "sliced": lambda w, slot: w[0].assign([7.0] * 3),
    "momentum": lambda w, slot: v1.train.MomentumOptimizer(0.1, 0.9).minimize(
        tf.reduce_sum(w**2), var_list=[w]
    ),
    "same name": lambda w, slot: same_name(w),
}
REFERENCE_WAYS = {
    "ApplyMomentum": lambda w, slot: raw.ApplyMomentum(
        var=w._ref(), accum=slot._ref(), lr=0.5, grad=rows(), momentum=0.5
    ),
    "SparseApplyAdagrad": lambda w, slot: raw.SparseApplyAdagrad(
        var=w._ref(), accum=slot._ref(), lr=0.5, grad=[[7.0] * 3], indices=[0]
    ),
    "through a switch": lambda w, slot: raw.Assign(
        ref=raw.RefSwitch(data=w._ref(), pred=True).output_true, value=rows()
    ),
}


@pytest.mark.parametrize(
    ("way", "use_resource"),
    [
        *((way, kind) for way in V1_WAYS for kind in (True, False)),
        *((way, False) for way in REFERENCE_WAYS),
    ],
)
def test_a_session_writes_no_locked_variable(way, use_resource, lock):
    with session_of(use_resource) as (session, w, slot):
        write = {**V1_WAYS, **REFERENCE_WAYS}[way](w, slot)
        locks = [lock.lock(w, "layer/w")]
        session.run(v1.global_variables_initializer())
        if way != "initializer":
            session.run(write)
            assert np.any(session.run(w) != 1)
        value = session.run(w)
        session.run(locks)
        before = lock.refused().total()
        with pytest.raises(tf.errors.PermissionDeniedError, match="would write layer/w, which"):
            session.run(write)
        np.testing.assert_array_equal(session.run(w), value)
        assert lock.refused().total() == before + 1


@pytest.mark.parametrize("use_resource", [True, False])
@pytest.mark.parametrize("is_locked", [False, True])
def test_python_in_a_session_has_a_copy_of_a_locked_variable(is_locked, use_resource, lock):
    with session_of(use_resource) as (session, w, _):
        call = tf.numpy_function(fill, [w.value()], tf.float32)
        session.run(w.initializer)
        if is_locked:
            session.run(lock.lock(w, "w"))
        assert session.run(call) == 7 * 12
        assert np.all(session.run(w) == 1) == is_locked


@pytest.mark.parametrize("use_resource", [True, False])
def test_a_lock_waits_for_nothing_that_the_graph_does(use_resource, lock):
    with session_of(use_resource) as (session, w, _):
        never = tf.debugging.Assert(False, ["this is not run"])
        with tf.control_dependencies([never]):
            locked = lock.lock(w, "w")
        session.run(w.initializer)
        session.run(locked)
        with pytest.raises(tf.errors.PermissionDeniedError):
            session.run(w.initializer)


@pytest.mark.parametrize("use_resource", [True, False])
def test_another_session_has_variables_of_its_own(use_resource, lock):
    """Those of a session that has ended do not lock others that take over their memory."""
    for _ in range(10):
        with session_of(use_resource) as (session, w, _):
            session.run(w.initializer)
            session.run(v1.assign(w, rows()))
            session.run(lock.lock(w, "w"))


@pytest.mark.parametrize("use_resource", [True, False])
def test_the_memory_of_a_session_is_not_written_in_place(use_resource, lock):
    with session_of(use_resource) as (session, w, _):
        session.run(w.initializer)
        write = raw.InplaceUpdate(x=w.value(), i=[0], v=[[7.0] * 3])
        session.run(write)
        value = session.run(w)
        assert np.any(value != 1)
        again = raw.InplaceUpdate(x=w.value(), i=[1], v=[[7.0] * 3])
        session.run(lock.lock(w, "w"))
        with pytest.raises(
            tf.errors.PermissionDeniedError, match=r"rank 2 would write (w,|what may)"
        ):
            session.run(again)
        np.testing.assert_array_equal(session.run(w), value)


def test_a_variable_that_is_on_no_cpu_is_left_alone(lock):
    assert lock.lock(SimpleNamespace(device="/job:localhost/device:GPU:0"), "w") is None


@pytest.mark.long
def test_what_sessions_share_is_locked_in_all_of_them():
    assert run("served") == "another session: refused\n" * 2


@pytest.mark.long
def test_a_library_that_is_loaded_later_writes_no_locked_variable(lock, tmp_path):
    library = tmp_path / "latecomer.so"
    flags = (*tf.sysconfig.get_compile_flags(), *tf.sysconfig.get_link_flags())
    compiler = [os.environ.get("CXX", "g++"), "-shared", "-fPIC", "-w"]
    subprocess.run([*compiler, LATECOMER, *flags, "-o", library], check=True)
    checked = lock.num_checked
    latecomer = tf.load_op_library(str(library)).latecomer
    assert lock.num_checked == checked + 1
    free, locked = tf.Variable(tf.ones([4, 3])), tf.Variable(tf.ones([4, 3]))
    lock.lock(locked, "locked")
    latecomer(free.handle)
    np.testing.assert_array_equal(free, 7)
    with pytest.raises(tf.errors.PermissionDeniedError, match="server writes: Latecomer"):
        latecomer(locked.handle)
    np.testing.assert_array_equal(locked, 1)


class TestNotGuarded:
    """What SECURITY.md says that this layer does not see: a change here is to be told there."""

    def test_what_xla_has_compiled(self, lock):
        v = tf.Variable(tf.ones([4, 3]))
        lock.lock(v, "v")
        tf.function(lambda: v.assign(ROWS), jit_compile=True, autograph=False)()
        np.testing.assert_array_equal(v, ROWS)

    def test_memory_that_numpy_shares(self, lock):
        v = tf.Variable(tf.ones([4, 3]))
        lock.lock(v, "v")
        v.read_value()._numpy()[:] = 7
        np.testing.assert_array_equal(v, ROWS)


class TestWithout:
    """Where it cannot be had it says why, and changes nothing."""

    @pytest.fixture(autouse=True)
    def _nothing_has_changed(self, lock):
        yield
        v = tf.Variable(tf.ones([4, 3]))
        v.assign(ROWS)
        lock.lock(v, "v")
        with pytest.raises(tf.errors.PermissionDeniedError, match="rank 2 would"):
            v.assign(ROWS)

    def test_it_takes_the_very_tensorflow_that_it_was_built_for(self, monkeypatch):
        state = ops.state()
        build = {**state.build, "tensorflow": "2.21.9"}
        monkeypatch.setattr(ops, "state", lambda: type(state)(state.in_use, "", build))
        with pytest.raises(NoKernelLock, match=r"built for TensorFlow 2\.21\.9 and 2\.21\.\d+ is"):
            KernelLock("rank 3", ALLOWED)

    def test_it_takes_the_native_library(self, monkeypatch):
        state = type(ops.state())("tensorflow", "it was not built", {})
        monkeypatch.setattr(ops, "state", lambda: state)
        with pytest.raises(NoKernelLock, match="native library: it was not built"):
            KernelLock("rank 3", ALLOWED)

    @pytest.mark.parametrize("offset", [8, 32, 64])
    def test_it_takes_tensorflow_to_keep_kernels_where_it_looks(self, offset):
        with pytest.raises(NoKernelLock, match="does not keep its kernels where"):
            KernelLock("rank 3", ALLOWED, factory_offset=offset)

    def test_it_takes_all_kernels_that_tensorflow_lists(self, monkeypatch):
        listed = list(kernels.registered_kernels())
        wanted = ("AssignVariableOp", "CPU")
        missing = next(each for each in listed if (each.op, each.device_type) == wanted)
        listed.remove(missing)
        monkeypatch.setattr(kernels, "registered_kernels", lambda: listed)
        with pytest.raises(NoKernelLock, match=r"lists \d+ kernels of these ops and has \d+"):
            KernelLock("rank 3", ALLOWED)


def run(what):
    return launch.check(launch.run([*warm_python(), "-W", "error", SCRIPT, what], timeout_s=120))


def test_honest_steps_give_the_same_bits():
    assert run("honest") == "the same bits\n"


def test_what_was_made_before_it_is_checked_unless_it_keeps_its_kernels():
    assert run("before").splitlines() == [
        "eager: refused",
        "traced function: refused",
        "function that had run: refused",
        "iterator: refused",
        "iterator that had begun: written",
        "session: refused",
        "session that had run: written",
    ]


def test_an_asynchronous_kernel_is_refused_too(lock):
    """A queue takes handles, and would give them to who knows whom."""
    v = tf.Variable(tf.ones([2]), name="kernel")
    lock.lock(v, "kernel")
    queue = tf.queue.FIFOQueue(2, tf.resource)
    with pytest.raises(tf.errors.PermissionDeniedError, match="rank 2 would write kernel"):
        queue.enqueue(v.handle)

    @tf.function(autograph=False)
    def step():
        queue.enqueue(v.handle)

    with pytest.raises(tf.errors.PermissionDeniedError, match="rank 2 would write kernel"):
        step()
    assert queue.size() == 0
