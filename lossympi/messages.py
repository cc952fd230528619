"""What ranks tell each other beside vectors: plain data, checked before it is used, never pickled.

Who unpickles what a worker sent runs what the worker likes. So a message is JSON of plain types,
or arrays behind a JSON header, and has a limit of bytes. ``read`` compares it with a Python type,
field by field. Text of another rank is printable before anybody sees it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from lossympi import mpi

MOST_BYTES = 64 << 10  # of a worker's message, but for its state
MOST_CHARACTERS = 4096  # of a text in one
_MOST_DIGITS = 40  # of a whole number: reading one takes time that grows with their square
_MOST_DEPTH = 32  # of lists in lists: who walks them would need a stack as deep
_POLL_S = 1e-3
_ALIGNED = 64  # bytes, where an array begins
_MOST_AXES, _MOST_VALUES = 32, 2**40  # of an array; axes of length 0 apart
_DTYPE = re.compile(r"[|<>][biufcSUV][1-9]\d{0,3}")  # none that holds Python objects
# Types of ml_dtypes, which NumPy knows by their names once that is imported.
_NAMED_DTYPE = re.compile(r"bfloat16|float[4-8]_e\dm\d[a-z0-9]{0,8}|u?int[1-4]")


class MessageError(ValueError):
    """A message is not what it must be; says which part of it."""


# Values.


def plain(value: Any) -> Any:
    """Returns a value as JSON has it: bytes as hexadecimal digits, a dataclass as a mapping.

    Raises:
      TypeError: it has a part that is no plain data.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"plain data travels between ranks, got {value!r}. Send numbers and text.")


def read(kind: Any, value: Any, where: str = "it") -> Any:
    """Returns what ``plain`` was given, if it is of a type: the inverse for that type.

    Args:
      kind: None, bool, int, float, str, bytes, ``tuple[...]``, ``list[...]``, ``dict[str, ...]``,
        ``dict[int, ...]``, ``... | None``, a dataclass or a NamedTuple of such; Any for any value
        as it is.
      value: of JSON.
      where: the words for it in an error.
    Raises:
      MessageError: it is of another type.
    """
    if kind is Any:
        return value
    origin, of = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        [some] = [each for each in of if each is not NoneType]
        return None if value is None else read(some, value, where)
    if kind in (None, NoneType):
        _need(value is None, where, "nothing", value)
        return None
    if kind in (bool, int):
        _need(type(value) is kind, where, "true or false" if kind is bool else "whole", value)
        return value
    if kind is float:
        _need(type(value) in (int, float), where, "a number", value)
        return float(value)
    if kind is str:
        _need(type(value) is str, where, "text", value)
        return printable(value)
    if kind is bytes:
        _need(type(value) is str and _is_hexadecimal(value), where, "hexadecimal", value)
        return bytes.fromhex(value)
    if origin in (list, tuple):
        many = origin is list or of[-1] is ...
        _need(
            type(value) is list and (many or len(value) == len(of)),
            where,
            "a list" if many else f"a list of {len(of)}",
            value,
        )
        kinds = [of[0]] * len(value) if many else of
        return origin(
            read(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is dict:
        _need(type(value) is dict, where, "a mapping", value)
        return {
            _read_key(of[0], k, where): read(of[1], v, f"{where}[{k!r:.40}]")
            for k, v in value.items()
        }
    hints = get_type_hints(kind)
    if "__dataclass_fields__" in vars(kind):
        names = [field.name for field in fields(kind)]
        fits = type(value) is dict and sorted(value) == sorted(names)
        _need(fits, where, f"a mapping of {', '.join(names)}", value)
        return kind(**{name: read(hints[name], value[name], f"{where}.{name}") for name in names})
    names = kind._fields  # of a NamedTuple
    fits = type(value) is list and len(value) == len(names)
    _need(fits, where, f"a list of {', '.join(names)}", value)
    return kind(*(read(hints[n], v, f"{where}.{n}") for n, v in zip(names, value, strict=True)))


def _need(fits: bool, where: str, what: str, value: Any) -> None:
    if not fits:
        raise MessageError(f"{where} must be {what}, got {shown(value)}")


def _is_hexadecimal(text: str) -> bool:
    return len(text) % 2 == 0 and re.fullmatch("[0-9a-f]*", text) is not None


def _read_key(kind: type, key: str, where: str) -> Any:
    if kind is str:
        return printable(key)
    _need(re.fullmatch(r"-?\d{1,18}", key, re.ASCII) is not None, where, "by whole numbers", key)
    return int(key)


def shown(value: Any) -> str:
    """Returns a value of another rank as an error shows it."""
    return printable(repr(value), 80)


def printable(text: str, most: int = MOST_CHARACTERS) -> str:
    """Returns text of another rank as a terminal or a log may have it.

    What a terminal would obey is escaped, a line that is not the first is indented, so that it
    cannot pass for one of ours, and what is longer than `most` characters is cut.

    >>> printable("no\\x1b[2Jroom")
    'no\\\\x1b[2Jroom'
    """
    cut = text if len(text) <= most else f"{text[:most]} ... ({len(text)} characters)"
    return "".join(
        character
        if character.isprintable()
        else "\n  "
        if character == "\n"
        else character.encode("unicode_escape").decode()
        for character in cut
    )


# Their bytes.


def encode(value: Any) -> bytes:
    """Returns the JSON of ``plain(value)``."""
    return json.dumps(plain(value), separators=(",", ":")).encode()


def decode(message: bytes | bytearray) -> Any:
    """Returns the value of JSON.

    Raises:
      MessageError: it is none.
    """
    try:
        value = json.loads(message.decode(), parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"not JSON: {printable(str(error), 80)}") from None
    level = [value]
    for _ in range(_MOST_DEPTH):
        level = [part for each in level for part in _parts(each)]
        if not level:
            return value
    raise MessageError(f"not JSON of at most {_MOST_DEPTH} levels")


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def pack_arrays(arrays: Mapping[str, Any]) -> bytes:
    """Returns arrays by name as one message.

    8 bytes with the length of a header, the header, and the arrays' bytes, each from a multiple of
    64 on. The header is JSON: a list of (name, dtype, shape). Of what NumPy has no code for, such
    as bfloat16, the dtype is the name in ml_dtypes.

    Raises:
      TypeError: an array has no fixed size, such as one of Python objects.
    """
    heads, parts, at = [], [], 0
    for name, given in arrays.items():
        array = np.asarray(given)
        heads.append((name, _dtype_name(name, array.dtype), array.shape))
        parts += [bytes(-at % _ALIGNED), array.tobytes()]
        at += -at % _ALIGNED + array.nbytes
    header = encode(heads)
    header += b" " * (-(8 + len(header)) % _ALIGNED)
    return b"".join([len(header).to_bytes(8, "little"), header, *parts])


def unpack_arrays(message: bytearray) -> dict[str, np.ndarray]:
    """Returns what ``pack_arrays`` was given, as views of the message.

    Raises:
      MessageError: it is not what that returns.
    """
    begin = 8 + int.from_bytes(message[:8], "little")
    _need(begin <= len(message), "the header", f"within {len(message)} bytes", begin)
    heads = read(list[tuple[str, str, list[int]]], decode(message[8:begin]), "the header")
    arrays, at = {}, begin
    for name, dtype, shape in heads:
        at += -(at - begin) % _ALIGNED
        named = _NAMED_DTYPE.fullmatch(dtype) is not None
        known = named or _DTYPE.fullmatch(dtype) is not None
        _need(known, f"{name}'s dtype", "one of numbers", dtype)
        try:
            if named:
                import_module("ml_dtypes")
            kind = np.dtype(dtype)
        except (TypeError, ImportError):
            raise MessageError(
                f"{name}'s dtype must be one of NumPy's, got {shown(dtype)}"
            ) from None
        most = math.prod(length or 1 for length in shape)
        fits = len(shape) <= _MOST_AXES and min(shape, default=0) >= 0 and most <= _MOST_VALUES
        _need(fits, f"{name}'s shape", "one", shape)
        size = math.prod(shape)
        left = max(0, len(message) - at)
        fits = size * kind.itemsize <= left
        _need(fits, name, f"at most {left} bytes, as many as are left", shape)
        _need(name not in arrays, name, "there once", shape)
        # Of what holds nothing there may be no byte to begin at.
        array = (
            np.frombuffer(message, kind, size, at) if size * kind.itemsize else np.empty(size, kind)
        )
        arrays[name] = array.reshape(shape)
        at += size * kind.itemsize
    _need(at == len(message), "the message", f"of {at} bytes", len(message))
    return arrays


def _dtype_name(name: str, dtype: np.dtype) -> str:
    if _NAMED_DTYPE.fullmatch(dtype.name):
        return dtype.name
    if not _DTYPE.fullmatch(dtype.str):
        raise TypeError(f"arrays of numbers travel, {name} is of {dtype}")
    return dtype.str


# Their way.


class Receiver:
    """Receives the messages of one rank with one tag, never waits, and never takes too long ones.

    Attributes:
      coming: how many bytes a message has that has begun and is not whole; 0 if there is none.
    """

    def __init__(self, comm: Any, source: int, tag: int, most_bytes: int | None) -> None:
        """Begins with no message.

        Args:
          comm: an mpi4py communicator.
          source: the rank.
          tag: of the messages.
          most_bytes: that one may have; None of a rank that is trusted.
        """
        self.most_bytes = most_bytes
        self.coming = 0
        self._comm = comm
        self._source = source
        self._tag = tag
        self._buffer = bytearray()
        self._request: Any = None

    def poll(self) -> bytearray | None:
        """Returns the next message; None while there is none that is whole.

        Raises:
          MessageError: it is too long, or MPI cannot receive it. It is dropped.
          MPI.Exception: the rank has died.
        """
        if (self._request is None and not self._begin()) or not self._is_whole():
            return None
        message, self._request, self.coming = self._buffer, None, 0
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(message))
        return message

    def _is_whole(self) -> bool:
        try:
            return bool(self._request.Test())
        except mpi.import_mpi().Exception as error:
            self._request, self.coming = None, 0
            raise MessageError(f"a message cannot be received: {printable(str(error))}") from None

    def _begin(self) -> bool:
        MPI = mpi.import_mpi()
        status = MPI.Status()
        message = self._comm.Improbe(self._source, self._tag, status)
        if message is None:
            return False
        length = status.Get_count(MPI.BYTE)
        # Below 0 is what MPI cannot count.
        if length < 0 or (self.most_bytes is not None and length > self.most_bytes):
            with contextlib.suppress(MPI.Exception):  # which calls it truncated
                message.Irecv([None, 0, MPI.BYTE])
            raise MessageError(
                f"a message of {length} bytes, and at most {self.most_bytes} may come"
            )
        self._buffer, self.coming = bytearray(length), length
        # MPI may write into it for as long as the process lives.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._buffer))
        self._request = message.Irecv([self._buffer, length, MPI.BYTE])
        return True


def wait_for(is_so: Callable[[], bool], wait_s: float) -> bool:
    """Returns whether something came to be so within a time; looks each millisecond."""
    until = time.monotonic() + wait_s
    while not is_so():
        if time.monotonic() >= until:
            return False
        time.sleep(_POLL_S)
    return True
