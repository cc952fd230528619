"""Digests of tensors, against an oracle, and both kinds of store against what they promise."""

import ctypes
import random

import numpy as np
import pytest
import tensorflow as tf

from aggregathor import ops
from aggregathor.ops import digests, loader

PRIME, WORDS = 2**61 - 1, 256
SIZES = [0, 1, 3, 4, 1023, 1024, 1025, 2048, 65535, 65536, 65537, 3 * 65536 + 5, 300_001]


class Key(ctypes.Structure):
    _fields_ = (("words", ctypes.c_uint32 * WORDS), ("point", ctypes.c_uint64))


def oracle(key, data):
    """The digest in whole numbers of Python, as digest.h defines it."""
    value = len(data) % PRIME
    part = 65536
    for start in range(0, len(data), part):
        of_part = data[start : start + part]
        coefficients = []
        for at in range(0, len(of_part), 4 * WORDS):
            block = of_part[at : at + 4 * WORDS].ljust(4 * WORDS, b"\0")
            words = np.frombuffer(block, np.uint32).tolist()
            added = [(w + k) % 2**32 for w, k in zip(words, key.words, strict=True)]
            half = WORDS // 2
            total = sum(a * b for a, b in zip(added[:half], added[half:], strict=True)) % 2**64
            coefficients += [total >> 32, total % 2**32]
        value = value * pow(key.point, 2 * part // (4 * WORDS), PRIME)
        for at, coefficient in enumerate(coefficients):
            value += coefficient * pow(key.point, len(coefficients) - at, PRIME)
        value %= PRIME
    return value


@pytest.fixture(scope="module")
def digest():
    ops.kernels()
    function = ctypes.CDLL(str(loader.LIBRARY)).aggregathor_digest
    function.restype = ctypes.c_uint64
    function.argtypes = (ctypes.POINTER(Key), ctypes.c_char_p, ctypes.c_int64)
    return lambda key, data: function(ctypes.byref(key), data, len(data))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fill", ["random", "zeros", "ones"])
def test_the_digest_is_the_oracles(size, fill, digest):
    draws = random.Random(size)
    data = {"random": draws.randbytes(size), "zeros": bytes(size), "ones": b"\xff" * size}[fill]
    words = [2**32 - 1] * WORDS if fill == "ones" else [draws.getrandbits(32) for _ in range(WORDS)]
    key = Key((ctypes.c_uint32 * WORDS)(*words), draws.randrange(1, PRIME))
    assert digest(key, data) == oracle(key, data)


@pytest.fixture(params=["native", "tensorflow"])
def kind(request):
    with ops.using(request.param):
        yield ops.kernels()


@pytest.fixture
def opened(kind):
    """Opens stores; what they report is in ``told``."""
    made = []

    def open(every=1):
        told = []
        made.append(kind.digest_store(every, lambda places: told.append(sorted(places))))
        return made[-1], told

    yield open
    for each in made:
        each.close()


def as_graph(function):
    def without_result(*args):
        function(*args)

    return tf.function(without_result)


def eagerly(function):
    return function


MODES = pytest.mark.parametrize("mode", [as_graph, eagerly])


@MODES
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int32", "bool"])
def test_equal_bytes_are_no_change(mode, dtype, opened):
    values = [tf.cast(tf.zeros([7, 3]), dtype), tf.cast(tf.ones([]), dtype)]
    each, told = opened()
    mode(lambda: each.record(values, [0, 1]))()
    mode(lambda: each.compare(values, [0, 1]))()
    assert told == []
    mode(lambda: each.compare(values, [1, 0]))()
    assert told == [[0, 1]]


@MODES
@pytest.mark.parametrize("size", [1, 5, 255, 256, 257, 16384, 16385, 70000])
def test_one_bit_is_seen_wherever_it_is(mode, size, opened, rng):
    before = rng.standard_normal(size, dtype=np.float32)
    each, told = opened()
    note = mode(lambda x: each.record([x], [0]))
    compare = mode(lambda x: each.compare([x], [0]))
    note(tf.constant(before))
    places = {0, size // 2, size - 1, *rng.integers(0, size, 20).tolist()}
    for place in places:
        after = before.copy()
        after.view(np.uint32)[place] ^= np.uint32(1) << rng.integers(32, dtype=np.uint32)
        compare(tf.constant(after))
    assert told == [[0]] * len(places)


def test_values_that_are_not_finite_are_values_too(opened):
    each, told = opened()
    hostile = tf.constant([np.nan, np.inf, -np.inf, 1e30, -0.0])
    each.record([hostile], [0])
    each.compare([hostile], [0])
    assert told == []
    each.compare([tf.constant([np.nan, np.inf, -np.inf, 1e30, 0.0])], [0])
    assert told == [[0]]


def test_nothing_noted_is_nothing_to_compare_with(opened):
    each, told = opened()
    each.compare([tf.ones([3]), tf.ones([])], [0, 1])
    each.record([tf.ones([3]), tf.ones([])], [0, 1])
    each.forget()
    each.compare([tf.zeros([3]), tf.zeros([])], [0, 1])
    assert told == []


def test_replicas_have_the_place_of_their_value(opened):
    each, told = opened()
    each.record([tf.ones([3]), tf.zeros([3])], [0, 1])
    each.compare([tf.ones([3]), tf.ones([3]), tf.zeros([3]), tf.ones([3])], [0, 0, 1, 1])
    assert told == [[1]]


def test_every_third_is_noted(opened):
    each, told = opened(every=3)
    for _ in range(9):
        each.record([tf.ones([2])], [0])
        each.compare([tf.zeros([2])], [0])
    assert told == [[0]] * 3


def test_what_is_noted_last_counts_whoever_has_noted_it(opened):
    each, told = opened()
    each.record([tf.ones([2]), tf.ones([3])], [0, 1])
    each.record([tf.zeros([3]), tf.zeros([])], [1, 2])
    each.compare([tf.ones([2]), tf.zeros([3]), tf.zeros([])], [0, 1, 2])
    assert told == []
    each.compare([tf.ones([3])], [1])
    assert told == [[1]]


def test_a_closed_store_reports_nothing(opened):
    each, told = opened()
    each.record([tf.ones([2])], [0])
    each.close()
    each.compare([tf.zeros([2])], [0])
    each.record([tf.ones([2])], [0])
    assert told == []


def test_a_session_runs_them(opened):
    each, told = opened()
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        value = tf.compat.v1.placeholder(tf.float32, [2])
        note, compare = each.record([value], [0]), each.compare([value], [0])
        session.run(note, {value: [1, 2]})
        session.run(compare, {value: [1, 2]})
        assert told == []
        session.run(compare, {value: [1, 3]})
    assert told == [[0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda each: each.record([tf.ones([1])], [0, 1]), "places must be as many as values"),
        (lambda each: each.compare([tf.ones([1])], [0, 1]), "places must be as many as values"),
        (lambda each: each.compare([tf.constant("a")], [0]), "there is no digest of string"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with ops.using("native"):
        each = ops.kernels().digest_store(1, print)
    assert isinstance(each, digests.NativeDigestStore)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        call(each)
    each.close()
