"""The exchange op with a function instead of a transport, and its stand-in: the same bits."""

import ctypes
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from aggregathor import ops
from aggregathor.errors import UserError
from aggregathor.flat import FlatLayout
from aggregathor.ops.exchange import NativeChannel
from tests.native_rounds import Writer

SHAPES = [(3, 2), (), (0, 4), (5,)]
DIM = 12
WAIT_S = 20.0
KINDS = ["native", "tensorflow"]


@pytest.fixture
def opened():
    """Returns a function that opens a channel of a kind; closes them in the end."""
    channels = []

    def open_channel(kind, function, dim=DIM, native=None):
        with ops.using(kind):
            channels.append(ops.kernels().channel(function, dim, native))
        assert isinstance(channels[-1], NativeChannel) == (kind == "native")
        return channels[-1]

    yield open_channel
    for channel in channels:
        channel.close(WAIT_S)


def specs(dtype=tf.float32, shapes=SHAPES):
    return [tf.TensorSpec(shape, dtype) for shape in shapes]


def values(rng, dtype=tf.float32, shapes=SHAPES):
    return [tf.cast(rng.standard_normal(shape), dtype) for shape in shapes]


def flat(tensors):
    return np.concatenate([np.asarray(tensor, np.float32).ravel() for tensor in tensors])


def as_function(function):
    @tf.function
    def traced(*lists):
        results = function(*lists)
        return results if isinstance(results, list) else None  # an operation is no output

    return traced


def as_graph(function):
    """Runs it in a v1 graph: returns what a session gives for it."""

    def run(*lists):
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            results = function(*[[tf.constant(np.asarray(x)) for x in given] for given in lists])
            return session.run(results)

    return run


MODES = {"eager": lambda f: f, "function": as_function, "graph": as_graph}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_values_pass_bit_for_bit(mode, kind, opened, rng):
    sent = []

    def function(sent_d):
        sent.append(sent_d.copy())
        return sent_d * np.float32(3) + np.float32(0.1)

    channel = opened(kind, function)
    run = MODES[mode](lambda given: channel.call(given, specs()))
    for _ in range(3):
        given = values(rng)
        results = run(given)
        np.testing.assert_array_equal(sent.pop(), flat(given))
        np.testing.assert_array_equal(flat(results), flat(given) * np.float32(3) + np.float32(0.1))
        assert [tuple(np.shape(result)) for result in results] == SHAPES


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_number_is_lost(kind, opened):
    bits = np.array([0x7FC00001, 0xFFC12345, 0x7F800000, 1, 0x80000000, 0x7F7FFFFF], np.uint32)
    channel = opened(kind, lambda sent_d: sent_d, 6)
    spec = [tf.TensorSpec((6,), tf.float32)]
    results = tf.function(lambda x: channel.call([x], spec))(tf.bitcast(bits, tf.float32))
    np.testing.assert_array_equal(results[0].numpy().view(np.uint32), bits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [tf.float64, tf.float16, tf.bfloat16, tf.int32], ids=str)
def test_other_types_are_cast(dtype, kind, opened, rng):
    channel = opened(kind, lambda sent_d: sent_d + np.float32(0.3))
    given = values(rng, dtype)
    results = tf.function(lambda given: channel.call(given, specs(dtype)))(given)
    assert [result.dtype for result in results] == [dtype] * len(SHAPES)
    for value, result in zip(given, results, strict=True):
        tf.debugging.assert_equal(
            result, tf.cast(tf.cast(value, tf.float32) + np.float32(0.3), dtype)
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_either_list_may_be_empty(mode, kind, opened, rng):
    seen = []

    def function(sent_d):
        seen.append(None if sent_d is None else sent_d.copy())
        return np.arange(DIM, dtype=np.float32) if sent_d is None else None

    channel = opened(kind, function)
    given = values(rng)
    MODES[mode](lambda given: channel.call(given, []))(given)
    results = MODES[mode](lambda: channel.call([], specs()))()
    np.testing.assert_array_equal(seen[0], flat(given))
    assert seen[1] is None
    np.testing.assert_array_equal(flat(results), np.arange(DIM))


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_without_results_is_called_for_its_own_sake(kind, opened):
    seen = []
    channel = opened(kind, lambda sent_d: seen.append(sent_d.copy()), 1)
    variable = tf.Variable([1.0])

    @tf.function
    def step():
        variable.assign_add([1.0])
        channel.call([variable.read_value()], [])  # nobody uses what it gives
        variable.assign_add([10.0])

    step()
    step()
    np.testing.assert_array_equal(seen, [[2.0], [13.0]])


@pytest.mark.parametrize("kind", KINDS)
def test_no_memory_is_shared(kind, opened):
    memory_d = np.zeros(DIM, np.float32)
    kept = []

    def function(sent_d):
        kept.append(sent_d)
        memory_d[:] = sent_d
        return memory_d

    channel = opened(kind, function)
    exchange = tf.function(lambda x: channel.call([x], [tf.TensorSpec((DIM,), tf.float32)])[0])
    given = np.full(DIM, 5, np.float32)
    first = exchange(tf.constant(given))
    second = exchange(tf.constant(given + 1))
    memory_d[:] = -1
    np.testing.assert_array_equal(first, given)
    np.testing.assert_array_equal(second, given + 1)
    for tensor in (first, second):
        assert not np.may_share_memory(tensor.numpy(), memory_d)
        assert not any(np.may_share_memory(tensor.numpy(), each) for each in kept[-1:])
    variable = tf.Variable(tf.zeros([DIM]))
    variable.assign(exchange(tf.constant(given)))
    variable.assign_add(tf.ones([DIM]))  # in place
    np.testing.assert_array_equal(memory_d, given)


class OfOurs(RuntimeError):
    """Something that TensorFlow does not know."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OfOurs("it went\nwrong"), tf.errors.UnknownError),
        (UserError("it went\nwrong"), tf.errors.InvalidArgumentError),
        (tf.errors.CancelledError(None, None, "it went\nwrong"), tf.errors.CancelledError),
    ],
)
@pytest.mark.parametrize("kernels", KINDS)
def test_errors_become_those_of_tensorflow(error, kind, kernels, opened):
    def function(sent_d):
        raise error

    channel = opened(kernels, function)
    with pytest.raises(tf.errors.OpError, match="it went\nwrong") as caught:
        tf.function(lambda: channel.call([], specs()))()
    if kernels == "native":
        assert isinstance(caught.value, kind)
        assert type(error).__name__ in str(caught.value)


def test_long_messages_are_cut(opened):
    def function(sent_d):
        raise OfOurs("ä" * 2000)

    channel = opened("native", function)
    with pytest.raises(tf.errors.UnknownError, match="OfOurs: ää"):
        tf.function(lambda: channel.call([], specs()))()


@pytest.mark.parametrize("result", [None, np.zeros(DIM - 1), np.zeros((1, DIM))])
def test_wrong_results_are_refused(result, opened):
    channel = opened("native", lambda sent_d: result)
    with pytest.raises(tf.errors.OpError, match=r"float32 \[12\]"):
        tf.function(lambda: channel.call([], specs()))()


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_sizes_are_refused(kind, opened):
    channel = opened(kind, lambda sent_d: np.zeros(DIM, np.float32))
    if kind == "native":  # the other cannot tell what is sent
        with pytest.raises(tf.errors.InvalidArgumentError, match="takes and gives 12 numbers"):
            channel.call([tf.zeros([11])], specs())
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        channel.call([tf.zeros([12])], specs(shapes=[(11,)]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_channel_is_unknown(kind, opened):
    channel = opened(kind, lambda sent_d: np.zeros(DIM, np.float32))
    function = tf.function(lambda: channel.call([], specs()))
    function()
    channel.close(WAIT_S)
    channel.close(WAIT_S)
    with pytest.raises(tf.errors.OpError, match="the training has ended") as caught:
        function()
    assert kind != "native" or isinstance(caught.value, tf.errors.NotFoundError)


def run_in_thread(function):
    """Starts it; returns a function that waits for it and returns what it raised, or None."""
    raised = []

    def run():
        try:
            function()
            raised.append(None)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def join():
        thread.join(WAIT_S)
        assert raised, "it hangs"
        return raised[0]

    return join


class Gate:
    """A function that waits in the middle."""

    def __init__(self):
        self.entered, self.open, self.left = (threading.Event() for _ in range(3))

    def __call__(self, sent_d):
        self.entered.set()
        assert self.open.wait(WAIT_S)
        self.left.set()
        return np.ones(DIM, np.float32)


def test_a_session_that_is_closed_does_not_hang(opened):
    gate = Gate()
    channel = opened("native", gate)
    with tf.Graph().as_default():
        results = channel.call([], specs())
        session = tf.compat.v1.Session()
        join = run_in_thread(lambda: session.run(results))
        assert gate.entered.wait(WAIT_S)
        assert not gate.left.is_set()
        session.close()
        assert isinstance(join(), tf.errors.CancelledError)
        gate.open.set()  # what the function still does concerns nobody
        with tf.compat.v1.Session() as other:
            np.testing.assert_array_equal(flat(other.run(results)), np.ones(DIM))


def test_an_exchange_that_waits_for_its_turn_is_cancelled(opened):
    gate = Gate()
    calls = []

    def function(sent_d):
        calls.append(sent_d is None)
        return gate(sent_d)

    channel = opened("native", function)
    with tf.Graph().as_default():
        first, second = channel.call([], specs()), channel.call([tf.ones([DIM])], specs())
        one, other = tf.compat.v1.Session(), tf.compat.v1.Session()
        join_one = run_in_thread(lambda: one.run(first))
        assert gate.entered.wait(WAIT_S)
        join_other = run_in_thread(lambda: other.run(second))
        time.sleep(0.1)  # it comes to the channel
        other.close()
        assert isinstance(join_other(), tf.errors.CancelledError)
        gate.open.set()
        assert join_one() is None
        one.close()
    assert calls == [True]


def test_an_error_beside_it_ends_it(opened):
    gate = Gate()
    channel = opened("native", gate)

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        results = channel.call([], specs())
        wrong = tf.debugging.check_numerics(tf.constant(np.nan) + 0.0, "not a number")
        join = run_in_thread(lambda: session.run([results, wrong]))
        assert isinstance(join(), tf.errors.InvalidArgumentError)
        gate.open.set()


def test_closing_ends_what_waits_and_waits_for_what_runs(opened):
    gate = Gate()
    channel = opened("native", gate)
    spec = specs()
    join_running = run_in_thread(tf.function(lambda: channel.call([], spec)))
    assert gate.entered.wait(WAIT_S)
    join_waiting = run_in_thread(tf.function(lambda: channel.call([tf.ones([DIM])], spec)))
    time.sleep(0.2)
    channel.close(0.01)  # does not wait for long
    assert isinstance(join_waiting(), tf.errors.OpError)
    gate.open.set()
    assert join_running() is None
    channel.close(WAIT_S)
    assert gate.left.is_set()


@pytest.mark.parametrize("kind", KINDS)
def test_two_channels_at_once(kind, opened):
    meeting = threading.Barrier(2, timeout=WAIT_S)

    def function_of(number):
        def function(sent_d):
            meeting.wait()  # both are in their function, or the barrier breaks
            return sent_d + np.float32(number)

        return function

    channels = [opened(kind, function_of(number)) for number in (1, 2)]
    one = [tf.TensorSpec((DIM,), tf.float32)]

    if kind == "native":
        # No thread of TensorFlow's waits, so that one is enough.
        config = tf.compat.v1.ConfigProto(
            inter_op_parallelism_threads=1, use_per_session_threads=True
        )
        with tf.Graph().as_default(), tf.compat.v1.Session(config=config) as session:
            x = tf.zeros([DIM])
            both = [channel.call([x], one)[0] for channel in channels]
            for _ in range(20):
                first, second = session.run(both)
                np.testing.assert_array_equal(first, np.ones(DIM))
                np.testing.assert_array_equal(second, 2 * np.ones(DIM))
    joins = [
        run_in_thread(lambda channel=channel: channel.call([tf.zeros([DIM])], one))
        for channel in channels
    ]
    assert [join() for join in joins] == [None, None]


def test_calls_of_one_channel_take_turns(opened):
    inside = []

    def function(sent_d):
        inside.append(1)
        assert len(inside) == 1
        time.sleep(0.001)
        inside.pop()
        return sent_d

    channel = opened("native", function)
    spec = [tf.TensorSpec((DIM,), tf.float32)]
    joins = [
        run_in_thread(
            lambda i=i: [
                np.testing.assert_array_equal(
                    channel.call([tf.fill([DIM], float(i))], spec)[0], np.full(DIM, i)
                )
                for _ in range(20)
            ]
        )
        for i in range(4)
    ]
    assert [join() for join in joins] == [None] * 4


def test_gradients_of_every_form(opened):
    table, bias, unused = tf.Variable(tf.ones([4, 2])), tf.Variable([1.0]), tf.Variable([2.0, 3.0])
    layout = FlatLayout([table, bias, unused])
    sparse = tf.IndexedSlices(tf.ones([2, 2]), tf.constant([1, 1]), tf.constant([4, 2]))
    sent = []
    channel = opened("native", lambda sent_d: sent.append(sent_d.copy()), layout.dim)
    channel.call(layout.dense([sparse, tf.constant([5.0]), None]), [])
    np.testing.assert_array_equal(sent[0], [0, 0, 2, 2, 0, 0, 0, 0, 5, 0, 0])


class FunctionsOfC:
    """Native rounds that the op calls by address, with memory of its own; the first n are torn."""

    def __init__(self, torn=0, code=0, has=("run", "outgoing", "is_intact")):
        self.out_d, self.in_d = np.zeros(DIM, np.float32), np.zeros(DIM, np.float32)
        self.calls, self._torn, self._code = [], torn, code
        functions = {name: getattr(self, f"_{name}") for name in has}
        self._c = Writer(1234, DIM, **functions)
        self.address = self._c.address

    def _run(self, context, sent, received, message):
        self.calls.append((context, sent == self.out_d.ctypes.data, sent is None))
        self.in_d += self.out_d
        ctypes.c_void_p.from_address(received).value = self.in_d.ctypes.data
        ctypes.memmove(message, b"no more", 7)
        return self._code

    def _outgoing(self, context):
        assert context == 1234
        return self.out_d.ctypes.data

    def _is_intact(self, context):
        assert context == 1234
        return len(self.calls) > self._torn


@pytest.mark.parametrize("mode", MODES)
def test_functions_of_c_are_called_until_what_is_received_is_intact(mode, opened):
    native = FunctionsOfC(torn=2)
    channel = opened("native", None, native=native)
    sent = values(np.random.default_rng(3))
    received = MODES[mode](lambda given: channel.call(given, specs()))(sent)
    np.testing.assert_array_equal(native.out_d, flat(sent))
    np.testing.assert_array_equal(flat(received), native.in_d)
    assert native.calls == [(1234, True, False)] + 2 * [(1234, False, True)]


def test_what_a_function_of_c_says_is_raised(opened):
    channel = opened("native", None, native=FunctionsOfC(code=9))
    with pytest.raises(tf.errors.FailedPreconditionError, match="no more"):
        channel.call(values(np.random.default_rng(3)), specs())


class TakesParts(FunctionsOfC):
    """One that takes parts; the first of them fails where there is a code."""

    def __init__(self, code=0):
        self.parts, self.steps = [], []
        self.came = threading.Event()
        self._part_code = code
        super().__init__(has=("run", "send_part", "outgoing", "is_intact"))

    def _send_part(self, context, sent, step, first, count, message):
        assert (context, sent) == (1234, self.out_d.ctypes.data)
        part = self.out_d[first : first + count].tolist()
        self.parts.append((len(self.calls), first, part))
        self.steps.append(step)
        self.came.set()
        ctypes.memmove(message, b"not that", 8)
        return self._part_code if len(self.parts) == 1 else 0


@pytest.fixture
def small_parts(monkeypatch):
    """Lets tensors of 5 values leave early, though it has few threads."""
    monkeypatch.setattr("aggregathor.ops.exchange.exchange_op.LEAST_PART", 5)
    monkeypatch.setattr("aggregathor.ops.exchange.exchange_op.num_op_threads", lambda: 2)


def step_with(function, channel):
    """Returns a step whose first value, and no other, has to pass a function of Python."""

    @tf.function
    def step(given):
        first = tf.numpy_function(function, [given[0]], tf.float32, stateful=False)
        first.set_shape(SHAPES[0])
        return channel.call([first, *given[1:]], specs())

    return step


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64, tf.int32], ids=str)
@pytest.mark.parametrize("mode", ["function", "graph"])
def test_parts_that_are_long_come_before_the_rest(mode, dtype, opened, small_parts, rng):
    native = TakesParts()
    channel = opened("native", None, native=native)
    run = MODES[mode](lambda given: channel.call(given, specs()))
    for step in range(3):
        sent = [tf.cast(100 * value, dtype) for value in values(rng)]
        before = native.in_d.copy()
        received = run(sent)
        np.testing.assert_array_equal(native.out_d, flat(sent))
        np.testing.assert_array_equal(flat(received), before + native.out_d)
        parts = [(step, first, flat([sent[at]]).tolist()) for first, at in ((7, 3), (0, 0))]
        came = native.parts[2 * step :]
        assert (came if mode == "function" else sorted(came, reverse=True)) == parts
        assert native.steps[-1] == native.steps[-2]
    assert len(set(native.steps)) == 3
    assert native.calls == [(1234, True, False)] * 3


@pytest.mark.parametrize("shapes", [[(5,), (7,)], [(12,)]], ids=str)
def test_all_may_come_in_parts(shapes, opened, small_parts, rng):
    native = TakesParts()
    channel = opened("native", None, dim=12, native=native)
    sent = values(rng, shapes=shapes)
    as_function(lambda given: channel.call(given, specs(shapes=shapes)))(sent)
    np.testing.assert_array_equal(native.out_d, flat(sent))
    assert len(native.parts) == len(shapes)


def test_a_part_does_not_wait_for_the_others(opened, small_parts, rng):
    native = TakesParts()
    channel = opened("native", None, native=native)

    def after_it_came(value):
        assert native.came.wait(WAIT_S)
        return value

    sent = values(rng)
    step_with(after_it_came, channel)(sent)
    np.testing.assert_array_equal(native.out_d, flat(sent))
    assert [first for _, first, _ in native.parts] == [7, 0]


def test_a_part_that_fails_fails_the_exchange_and_no_other(opened, small_parts, rng):
    native = TakesParts(code=9)
    channel = opened("native", None, native=native)
    run = as_function(lambda given: channel.call(given, specs()))
    with pytest.raises(tf.errors.FailedPreconditionError, match="not that"):
        run(values(rng))
    assert native.calls == []
    run(values(rng))
    assert len(native.calls) == 1


@pytest.mark.parametrize("mode", ["function", "eager"])
def test_a_step_may_fail_after_a_part_has_come(mode, opened, small_parts, rng):
    """The next one, which may come as a whole, is told to be another."""
    native = TakesParts()
    channel = opened("native", None, native=native)

    def fails(value):
        assert native.came.wait(WAIT_S)
        raise ValueError("as it shall")

    sent = values(rng)
    with pytest.raises(tf.errors.InvalidArgumentError, match="as it shall"):
        step_with(fails, channel)(values(rng))
    MODES[mode](lambda given: channel.call(given, specs()))(sent)
    np.testing.assert_array_equal(native.out_d, flat(sent))
    came = [(first, len(part)) for _, first, part in native.parts]
    assert came == [(7, 5), *([(7, 5), (0, 6)] if mode == "function" else [])]
    assert len(set(native.steps)) == (2 if mode == "function" else 1)
    assert native.calls == [(1234, True, False)]


@pytest.mark.parametrize("mode", ["eager", "one thread", "no function"])
def test_where_nothing_is_won_there_are_no_parts(mode, opened, small_parts, rng, monkeypatch):
    if mode == "one thread":
        monkeypatch.setattr("aggregathor.ops.exchange.exchange_op.num_op_threads", lambda: 1)
    native = FunctionsOfC() if mode == "no function" else TakesParts()
    channel = opened("native", None, native=native)
    sent = values(rng)
    run = MODES["eager" if mode == "eager" else "function"]
    run(lambda given: channel.call(given, specs()))(sent)
    np.testing.assert_array_equal(native.out_d, flat(sent))
    assert not getattr(native, "parts", [])


@pytest.mark.parametrize("first", [8, 13, 2**62])
def test_a_part_stays_within_the_vector(first, opened):
    channel = opened("native", None, native=TakesParts())
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"5 from {first} on"):
        channel._ops.aggregathor_fill(value=tf.zeros(5), first=first, handle=channel._handle)


def test_only_where_to_write_may_be_of_c(opened):
    native = FunctionsOfC(has=("outgoing",))
    taken = []

    def function(sent_d):
        taken.append(sent_d.ctypes.data)
        return sent_d + 1

    channel = opened("native", function, native=native)
    sent = values(np.random.default_rng(3))
    np.testing.assert_array_equal(flat(channel.call(sent, specs())), flat(sent) + 1)
    assert taken == [native.out_d.ctypes.data]


def test_native_rounds_of_another_length_are_refused(opened):
    with pytest.raises(ValueError, match="not 13 floats"):
        opened("native", None, dim=13, native=FunctionsOfC())


def test_a_gradient_of_another_shape_is_named():
    layout = FlatLayout([tf.Variable(tf.ones([4, 2]), name="table")])
    with pytest.raises(UserError, match=r"the gradient of table:0 has the shape \[2, 4\], and"):
        layout.dense([tf.ones([2, 4])])


MIXED = [tf.float64, tf.float32, tf.bfloat16, tf.float16]  # of `SHAPES`


def hard_values():
    """Returns values that a narrower type does not hold, of each type of `MIXED`.

    No subnormal float32: TensorFlow's cast to float64, in the stand-in, takes them for 0.
    """
    flats = [[1 + 1e-12, 1e300, -0.0, 5e-324, 1 / 3, -1e-300], [1 + 2**-23], [], [6e-8] * 5]
    return [
        tf.constant(np.reshape(each, shape), dtype)
        for each, shape, dtype in zip(flats, SHAPES, MIXED, strict=True)
    ]


def mixed_specs():
    return [tf.TensorSpec(shape, dtype) for shape, dtype in zip(SHAPES, MIXED, strict=True)]


def check_same_bits(results, given):
    for result, value in zip(results, given, strict=True):
        assert np.asarray(result).dtype == value.dtype.as_numpy_dtype
        assert np.asarray(result).tobytes() == value.numpy().tobytes()


def as_float64(values):
    return np.concatenate([np.asarray(value, np.float64).ravel() for value in values])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_in_float64_nothing_is_lost(mode, kind, opened):
    sent = []

    def function(sent_d):
        sent.append(sent_d.copy())
        return sent_d

    with ops.using(kind):
        channel = ops.kernels().channel(function, DIM, None, np.float64)
    given = hard_values()
    check_same_bits(MODES[mode](lambda x: channel.call(x, mixed_specs()))(given), given)
    assert sent[0].dtype == np.float64
    assert sent[0].tobytes() == as_float64(given).tobytes()
    channel.close(WAIT_S)


class TwoFloatsEach(TakesParts):
    """One of C whose vectors are [2 d] floats, and which gives back what it was sent."""

    def __init__(self):
        super().__init__()
        self.out_d = np.zeros(2 * DIM, np.float32)
        self._c = Writer(
            1234,
            2 * DIM,
            run=self._run,
            send_part=self._send_part,
            outgoing=self._outgoing,
        )
        self.address = self._c.address

    def _run(self, context, sent, received, message):
        ctypes.c_void_p.from_address(received).value = sent
        return 0


@pytest.mark.parametrize("mode", ["function", "graph"])
def test_rounds_of_c_see_a_double_as_two_floats(mode, small_parts):
    native = TwoFloatsEach()
    with ops.using("native"):
        channel = ops.kernels().channel(None, DIM, native, np.float64)
        with pytest.raises(ValueError, match="have not 48 floats"):
            ops.kernels().channel(None, 2 * DIM, native, np.float64)
    given = hard_values()
    check_same_bits(MODES[mode](lambda x: channel.call(x, mixed_specs()))(given), given)
    assert native.out_d.tobytes() == as_float64(given).tobytes()
    parts = {first: len(part) for _, first, part in native.parts}
    assert parts == {2 * 7: 2 * 5, 0: 2 * 6}
    channel.close(WAIT_S)


def test_a_function_computes_as_on_a_thread_of_pythons(opened):
    """TensorFlow's threads take subnormal numbers for 0, and one that they start inherits that."""
    products = []

    def function(sent_d):
        products.append(float(sent_d[0] * np.float32(0.1)))
        return sent_d

    def open_here():
        channels.append(opened("native", function, dim=1))
        return 0

    channels = []
    tf.function(lambda: tf.numpy_function(open_here, [], tf.int64))()  # on TensorFlow's thread
    tf.function(lambda x: channels[0].call([x], [tf.TensorSpec([1])]))(tf.constant([1e-38]))
    assert products == [float(np.float32(1e-38) * np.float32(0.1))] != [0.0]
