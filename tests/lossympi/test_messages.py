"""What a worker may send beside vectors, and what is made of the rest."""

import json
import pickle
from dataclasses import dataclass
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from lossympi.messages import (
    MessageError,
    decode,
    encode,
    pack_arrays,
    plain,
    printable,
    read,
    unpack_arrays,
)


class Point(NamedTuple):
    x: int
    name: str


@dataclass(frozen=True)
class Box:
    points: tuple[Point, ...]
    key: bytes
    size: float | None
    open: bool


BOX = Box((Point(1, "a"), Point(-2, "b")), b"\0\xff", None, True)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Box, BOX),
        (int, 2**64),
        (float, float("inf")),
        (str | None, None),
        (str | None, "é"),
        (dict[int, int], {1: 1500, -2: 0}),
        (dict[str, float], {"a": 1.5}),
        (list[tuple[str, bool]], [("a", True)]),
        (tuple[int, ...], ()),
        (None, None),
    ],
    ids=str,
)
def test_a_value_comes_as_it_was(kind, value):
    assert read(kind, decode(encode(value))) == value


def test_numbers_of_numpy_are_numbers():
    assert plain({"a": np.float32(0.5), "b": (np.int64(3),)}) == {"a": 0.5, "b": [3]}


def test_what_is_no_plain_data_does_not_travel():
    with pytest.raises(TypeError, match="plain data travels between ranks, got"):
        plain([object()])


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (int, True, "it must be whole, got True"),
        (int, 1.0, "it must be whole, got 1.0"),
        (bool, 1, "it must be true or false, got 1"),
        (float, "1", "it must be a number, got '1'"),
        (float, True, "it must be a number, got True"),
        (str, 1, "it must be text, got 1"),
        (None, 0, "it must be nothing, got 0"),
        (bytes, "0", "it must be hexadecimal, got '0'"),
        (bytes, "zz", "it must be hexadecimal, got 'zz'"),
        (tuple[int, str], [1], r"it must be a list of 2, got \[1\]"),
        (list[int], {"0": 1}, "it must be a list, got {'0': 1}"),
        (list[int], [1, 2, "x"], r"it\[2\] must be whole, got 'x'"),
        (dict[int, int], {"x": 1}, "it must be by whole numbers, got 'x'"),
        (dict[int, int], {"1": "x"}, r"it\['1'\] must be whole"),
        (dict[str, int], [], r"it must be a mapping, got \[\]"),
        (Point, [1], r"it must be a list of x, name, got \[1\]"),
        (Point, [1, 2], "it.name must be text, got 2"),
        (Box, {**plain(BOX), "more": 1}, "it must be a mapping of points, key, size, open, got"),
        (Box, {**plain(BOX), "size": "big"}, "it.size must be a number, got 'big'"),
        (Box, {**plain(BOX), "points": [["1", "a"]]}, r"it.points\[0\].x must be whole, got '1'"),
    ],
    ids=str,
)
def test_what_is_of_another_type_is_refused_by_its_part(kind, value, words):
    with pytest.raises(MessageError, match=f"^{words}"):
        read(kind, value)


class Evil:
    """Leaves a mark where it is unpickled."""

    unpickled = False

    def __reduce__(self):
        return setattr, (Evil, "unpickled", True)


@pytest.mark.parametrize(
    "message",
    [
        pickle.dumps(Evil()),
        b"",
        b"\xff\xfe",
        b"{",
        b"[" * 60_000,
        b"9" * 60_000,
        b'"\\ud800',
    ],
    ids=lambda message: repr(message[:9]),
)
def test_what_is_no_json_is_refused(message):
    with pytest.raises(MessageError, match=r"^not JSON: "):
        decode(message)
    assert not Evil.unpickled


@pytest.mark.parametrize("brackets", [b"[%s]", b'{"a":%s}'], ids=["list", "mapping"])
def test_what_is_nested_deeply_is_refused(brackets):
    """It is JSON, and who would show it or send it on would run out of stack."""
    message = b"1"
    for depth in range(1, 900):
        message = brackets % message
        if depth == 31:
            decode(message)
    with pytest.raises(MessageError, match="not JSON of at most 32 levels"):
        decode(message)


def test_an_error_shows_little_of_what_is_wrong():
    with pytest.raises(MessageError) as raised:
        read(int, "\x1b[2J" * 9999)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no room in /tmp: é", "no room in /tmp: é"),
        ("\x1b[2J\x1b]0;x\x07", "\\x1b[2J\\x1b]0;x\\x07"),
        ("a\r\b\x7f\x9b31m", "a\\r\\x08\\x7f\\x9b31m"),
        ("one\naggregathor: error", "one\n  aggregathor: error"),
        ("\u202e\u200b\u2028", "\\u202e\\u200b\\u2028"),  # other orders, no width, other lines
        ("\ud800", "\\ud800"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text, shown):
    assert printable(text) == shown
    assert read(str, json.loads(json.dumps(text))) == shown


def test_long_text_is_cut():
    assert printable("x" * 5000) == "x" * 4096 + " ... (5000 characters)"


ARRAYS = {
    "step": np.array(3),
    "w": np.arange(6, dtype=np.float64).reshape(2, 3),
    "none": np.zeros((0, 2), np.float32),
    "flag": np.array([True, False]),
    "text": np.array(["a", "bc"]),
    "half": np.ones(3, np.float16),
    "complex": np.array([1 + 2j, -3j]),
    "brain": np.array([1.0, -2.5, 9.2e-41], ml_dtypes.bfloat16),
    "eighths": np.array([[0.5], [448.0]], ml_dtypes.float8_e4m3fn),
    "fifths": np.array([0.25], ml_dtypes.float8_e5m2),
}


def test_arrays_come_as_they_were():
    got = unpack_arrays(bytearray(pack_arrays(ARRAYS)))
    assert list(got) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(got[name], array)
        got[name][...] = array  # it is the receiver's own
    assert unpack_arrays(bytearray(pack_arrays({}))) == {}


def test_arrays_of_objects_do_not_travel():
    with pytest.raises(TypeError, match="arrays of numbers travel, a is of object"):
        pack_arrays({"a": np.array([Evil()], object)})


def packed(heads: Any, rest: bytes = b"") -> bytearray:
    header = json.dumps(heads).encode()
    return bytearray(len(header).to_bytes(8, "little") + header + rest)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (bytearray(), "the header must be within 0 bytes"),
        (bytearray(b"\xff" * 8), "the header must be within 8 bytes"),
        (bytearray(pickle.dumps({"a": Evil()})), "the header must be within"),
        (packed({}), "the header must be a list"),
        (packed([["a", "|O8", [1]]], bytes(8)), r"a's dtype must be one of numbers, got '\|O8'"),
        (packed([["a", "<f4,<f4", [1]]]), "a's dtype must be one of numbers"),
        (packed([["a", "float8_e9m9", [1]]], bytes(1)), "a's dtype must be one of NumPy's"),
        (packed([["a", "<f3", [1]]], bytes(3)), "a's dtype must be one of NumPy's, got '<f3'"),
        (packed([["a", "<f4", [-1]]]), r"a's shape must be one, got \[-1\]"),
        (packed([["a", "<f4", [1] * 65]], bytes(4)), "a's shape must be one"),
        (packed([["a", "<f4", [2**40]]], bytes(4)), "a must be at most 4 bytes, as many as are"),
        (packed([["a", "<f4", [2**20] * 9]], bytes(4)), "a's shape must be one"),
        (packed([["a", "<f4", [2**62, 0]]]), "a's shape must be one"),
        (packed([["a", "<U0", [2**62]]]), "a's dtype must be one of numbers"),
        (packed([["a", "<f4", [1]]], bytes(5)), "the message must be of"),
        (packed([["a", "|b1", [1]]] * 2, bytes(65)), "a must be there once"),
    ],
)
def test_what_are_no_arrays_is_refused_before_it_is_allocated(message, words):
    with pytest.raises(MessageError, match=words):
        unpack_arrays(message)
    assert not Evil.unpickled
