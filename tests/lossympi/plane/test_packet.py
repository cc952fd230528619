import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lossympi.plane.packet import (
    PAUSE,
    Header,
    Kind,
    decode_floats,
    encode_floats,
    floats_per_datagram,
    is_well_formed,
    nack_payloads,
    pack,
    read_nack,
    unpack,
)

U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))


def test_a_datagram_is_these_bytes():
    header = Header(
        kind=Kind.DATA,
        rank=0x0102,
        session=0x12345678,
        round=0x0102030405060708,
        seq=3,
        total=4,
        counter=0x1112131415161718,
    )
    golden = bytes.fromhex(
        "01 05 0201 78563412 0807060504030201 03000000 04000000 18171615141312110000803f 000000c0"
    )
    assert pack(header) + encode_floats(np.array([1.0, -2.0], np.float32), "float32") == golden
    assert unpack(golden) == header
    np.testing.assert_array_equal(decode_floats(golden[32:], "float32"), [1.0, -2.0])


@given(st.tuples(st.integers(0, 255), U16, U32, U64, U32, U32, U64))
def test_headers_come_back(fields):
    data = pack(Header(*fields))
    assert len(data) == 32
    assert unpack(data) == Header(*fields)


@pytest.mark.parametrize(
    ("mtu", "wire", "k"),
    [
        (1500, "float32", 352),
        (1500, "float16", 704),
        (1500, "bfloat16", 704),
        (9000, "float32", 2224),
        (140, "float32", 16),
        (203, "bfloat16", 32),
        (204, "bfloat16", 64),
        (65535, "float32", 16352),
    ],
)
def test_floats_per_datagram(mtu, wire, k):
    assert floats_per_datagram(mtu, wire) == k


@pytest.mark.parametrize(
    ("mtu", "wire", "found"),
    [(139, "float32", "139"), (65536, "float32", "65536"), (1500, "float64", "float64")],
)
def test_what_no_datagram_can_carry_is_refused(mtu, wire, found):
    with pytest.raises(ValueError, match=found):
        floats_per_datagram(mtu, wire)


@given(hnp.arrays(np.uint32, st.integers(1, 40), elements=U32))
def test_float32_keeps_every_bit(bits):
    payload = encode_floats(bits.view(np.float32), "float32")
    np.testing.assert_array_equal(decode_floats(payload, "float32").view(np.uint32), bits)


@pytest.mark.parametrize(
    ("wire", "dtype"), [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)]
)
@given(data=st.data())
def test_narrow_floats_are_the_nearest(wire, dtype, data):
    # Ties, and what lies next to them, are what a random number hardly ever is.
    upper = data.draw(hnp.arrays(np.uint32, 20, elements=U16))
    lower = data.draw(
        hnp.arrays(np.uint32, 20, elements=st.sampled_from([0, 1, 0x0FFF, 0x1000, 0x7FFF, 0x8000]))
    )
    floats = (upper << 16 | lower).view(np.float32)
    got = decode_floats(encode_floats(floats, wire), wire)
    with np.errstate(all="ignore"):
        wanted = floats.astype(dtype).astype(np.float32)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, wanted)  # NaN for NaN
    np.testing.assert_array_equal(np.signbit(got), np.signbit(floats))


@pytest.mark.parametrize("wire", ["float16", "bfloat16"])
def test_every_narrow_number_comes_back(wire):
    payload = np.arange(2**16, dtype="<u2")
    floats = decode_floats(payload.tobytes(), wire)
    again = np.frombuffer(encode_floats(floats, wire), "<u2")
    np.testing.assert_array_equal(again[~np.isnan(floats)], payload[~np.isnan(floats)])
    assert np.isnan(decode_floats(again.tobytes(), wire)[np.isnan(floats)]).all()


@pytest.mark.parametrize(
    ("bits", "wire_bits"),
    [
        (0x7F800001, 0x7FC0),  # a NaN that a cut alone would make an infinity, now quiet
        (0xFFFFFFFF, 0xFFFF),  # a NaN that rounding would make -0
        (0x7F7FFFFF, 0x7F80),  # the largest finite number
        (0x3F808000, 0x3F80),  # ties go to even, down
        (0x3F818000, 0x3F82),  # and up
    ],
)
def test_bfloat16_at_its_edges(bits, wire_bits):
    payload = encode_floats(np.array([bits], np.uint32).view(np.float32), "bfloat16")
    assert payload == wire_bits.to_bytes(2, "little")


@given(hnp.arrays(bool, st.integers(1, 200)), st.integers(1, 9))
def test_nacks_tell_what_is_missing(missing_c, max_bytes):
    parts = nack_payloads(missing_c, max_bytes)
    told = [read_nack(first, payload, len(missing_c)) for first, payload in parts]
    np.testing.assert_array_equal(np.concatenate([[], *told]), np.flatnonzero(missing_c))
    assert all(first % 8 == 0 and 0 < len(payload) <= max_bytes for first, payload in parts)


def test_a_nack_is_these_bytes():
    missing_c = np.zeros(20, bool)
    missing_c[[0, 9, 19]] = True
    assert nack_payloads(missing_c, 1408) == [(0, bytes([0b1, 0b10, 0b1000]))]
    assert nack_payloads(missing_c, 2) == [(0, bytes([0b1, 0b10])), (16, bytes([0b1000]))]
    assert nack_payloads(np.zeros(20, bool), 2) == []


@pytest.mark.parametrize(
    ("first", "payload", "total"),
    [
        (0, b"", 8),
        (4, b"\x01", 80),
        (8, b"\x01", 8),  # begins beyond the end
        (2**32 - 8, b"\xff", 8),
        (0, b"\x01\x00", 8),  # goes on beyond it
        (0, b"\x80", 7),  # a bit beyond it
        (16, b"\x10", 20),
        (0, b"\x01", 0),
    ],
)
def test_malformed_nacks_are_nothing(first, payload, total):
    assert read_nack(first, payload, total) is None


@given(U32, st.binary(max_size=40), st.integers(0, 400))
def test_no_nack_asks_for_what_is_not(first, payload, total):
    indices = read_nack(first, payload, total)
    assert indices is None or all(0 <= index < total for index in indices)


C, MAX = 20, 1408  # datagrams of the vector, bytes of a payload
FORMED = [
    # kind, from, round, seq, total, payload
    (Kind.PROBE, 1, 0, 7, 0, bytes(1440)),
    (Kind.ECHO, 0, 0, 7, 0, b""),
    (Kind.GRANT, 0, 1, 1, 0, b""),
    (Kind.READY, 1, 1, PAUSE, 0, b""),
    (Kind.END, 1, 1, 1, C, b""),
    (Kind.NACK, 0, 1, 16, C, b"\x0f"),
    (Kind.DONE, 1, 1, 0, 0, b""),
    (Kind.BYE, 0, 0, 0, 0, b""),
]


def well_formed(kind, rank, round, seq, total, payload):
    header = Header(kind, rank, 0, round, seq, total, 1)
    return is_well_formed(header, payload, C, MAX, from_server=rank == 0)


@pytest.mark.parametrize("fields", FORMED)
def test_each_kind_has_one_form(fields):
    kind, rank, round, seq, total, payload = fields
    assert well_formed(*fields)
    assert not well_formed(kind, rank, 1 - round, seq, total, payload)
    assert not well_formed(kind, rank, round, seq, total + 1, payload)
    assert not well_formed(kind, rank, round, seq, total, payload + b"\x01")
    if kind not in (Kind.PROBE, Kind.ECHO, Kind.END, Kind.GRANT):
        assert not well_formed(kind, rank, round, seq + 1, total, payload)
    assert not well_formed(0, *fields[1:])
    assert not well_formed(10, *fields[1:])


@pytest.mark.parametrize(
    "fields",
    [
        (Kind.GRANT, 1, 1, 1, 0, b""),  # only the server grants
        (Kind.READY, 0, 1, 0, 0, b""),  # only workers wait
        (Kind.GRANT, 0, 1, 0, 0, b""),  # at no rate nothing could ever be sent
        (Kind.NACK, 0, 1, 0, C, b""),
    ],
)
def test_what_a_peer_may_not_send_is_malformed(fields):
    assert not well_formed(*fields)


def test_a_nack_is_no_longer_than_data():
    header = Header(Kind.NACK, 0, 0, 1, 0, 8 * 100, 1)
    assert is_well_formed(header, bytes(64), 800, 64, from_server=True)
    assert not is_well_formed(header, bytes(65), 800, 64, from_server=True)
