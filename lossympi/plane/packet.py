"""The bytes of ``WIRE.md``: headers, floats and bitmaps, there and back."""

import struct
from enum import IntEnum
from typing import NamedTuple

import numpy as np

VERSION = 1
HEADER_BYTES = 32
TAG_BYTES = 16
IP_UDP_BYTES = 28  # 20 of IPv4, 8 of UDP
PAUSE = 1  # `seq` of a READY from who sends on later
FLOAT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

_LAYOUT = struct.Struct("<BBHIQIIQ")


class Kind(IntEnum):
    """What a datagram is for."""

    PROBE = 1
    ECHO = 2
    GRANT = 3
    READY = 4
    DATA = 5
    END = 6
    NACK = 7
    DONE = 8
    BYE = 9


class Header(NamedTuple):
    """The first 32 bytes of a datagram, without the version; any number may stand in `kind`."""

    kind: int
    rank: int
    session: int
    round: int
    seq: int
    total: int
    counter: int


def pack(header: Header) -> bytes:
    """Returns the header's 32 bytes."""
    return _LAYOUT.pack(VERSION, *header)


def unpack(data: bytes) -> Header:
    """Returns the header of a datagram of at least 32 bytes; the version, data[0], is not read."""
    return Header(*_LAYOUT.unpack_from(data)[1:])


def floats_per_datagram(mtu: int, wire: str) -> int:
    """Returns k, how many floats fill the largest multiple of 64 bytes that fits the MTU.

    Args:
      mtu: bytes of an IP packet.
      wire: a key of `FLOAT_BYTES`.
    Raises:
      ValueError: an unknown wire type, or an MTU that IPv4 or 64 bytes of payload forbid.
    """
    if wire not in FLOAT_BYTES:
        raise ValueError(f"wire must be one of {', '.join(FLOAT_BYTES)}, got {wire!r}. Pass one.")
    around = IP_UDP_BYTES + HEADER_BYTES + TAG_BYTES
    if not around + 64 <= mtu <= 65535:
        raise ValueError(f"mtu must be in {around + 64}..65535 bytes, got {mtu}. 1500 is usual.")
    return (mtu - around) // 64 * 64 // FLOAT_BYTES[wire]


def encode_floats(floats: np.ndarray, wire: str) -> bytes:
    """Returns float32 values as they go on the wire, to the nearest, ties to even."""
    if wire == "float32":
        return floats.astype("<f4", copy=False).tobytes()
    if wire == "float16":
        with np.errstate(all="ignore"):  # what is too large becomes an infinity, as it should
            return floats.astype("<f2").tobytes()
    bits = np.ascontiguousarray(floats, np.float32).view(np.uint32)
    # Half of what is cut off, less one if the kept part is even: they differ only in a tie.
    nearest = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16
    # The sum may carry a NaN into the sign, a cut may leave an infinity: keep it, and quiet it.
    quiet = (bits >> 16) | 0x40
    return np.where(np.isnan(floats), quiet, nearest).astype("<u2").tobytes()


def decode_floats(payload: bytes, wire: str) -> np.ndarray:
    """Returns the values, float32, of bytes that `encode_floats` could have made."""
    if wire == "bfloat16":
        return (np.frombuffer(payload, "<u2").astype(np.uint32) << 16).view(np.float32)
    dtype = "<f4" if wire == "float32" else "<f2"
    return np.frombuffer(payload, dtype).astype(np.float32, copy=False)


def nack_payloads(missing_c: np.ndarray, max_payload_bytes: int) -> list[tuple[int, bytes]]:
    """Returns, ascending, (first index, bitmap) of the NACKs that tell all that is missing.

    Stretches of `max_payload_bytes` of bitmap in which nothing is missing need no NACK.
    """
    bitmap = np.packbits(missing_c, bitorder="little").tobytes()
    parts = (
        (8 * at, bitmap[at : at + max_payload_bytes])
        for at in range(0, len(bitmap), max_payload_bytes)
    )
    return [(first, part) for first, part in parts if any(part)]


def read_nack(first: int, payload: bytes, total: int) -> np.ndarray | None:
    """Returns which datagrams, ascending, a NACK asks for, or None if it is malformed."""
    if first % 8 or not payload or first + 8 * (len(payload) - 1) >= total:
        return None
    bits = np.unpackbits(np.frombuffer(payload, np.uint8), bitorder="little")
    indices = first + np.flatnonzero(bits)
    return None if indices.size and indices[-1] >= total else indices


def is_well_formed(
    header: Header, payload: bytes, c: int, max_payload_bytes: int, *, from_server: bool
) -> bool:
    """Returns whether a datagram is what its kind, sender and the vector's length demand.

    DATA is not: the assembler judges it.

    Args:
      header: of the datagram.
      payload: what follows the header, without the tag.
      c: datagrams of a vector.
      max_payload_bytes: of a DATA datagram, and so of a NACK.
      from_server: whether the server has sent it, or else a worker.
    """
    kind, _, _, round, seq, total, _ = header
    match kind:
        case Kind.PROBE | Kind.ECHO:
            return round == 0 and total == 0 and not any(payload)
        case Kind.GRANT:
            return from_server and round > 0 and seq > 0 and total == 0 and not payload
        case Kind.READY:
            return not from_server and round > 0 and seq <= PAUSE and total == 0 and not payload
        case Kind.DONE:
            return round > 0 and seq == 0 and total == 0 and not payload
        case Kind.BYE:
            return round == 0 and seq == 0 and total == 0 and not payload
        case Kind.END:
            return round > 0 and total == c and not payload
        case Kind.NACK:
            fits = round > 0 and total == c and len(payload) <= max_payload_bytes
            return fits and read_nack(seq, payload, c) is not None
    return False
