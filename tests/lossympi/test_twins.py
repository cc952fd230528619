"""The native core against its twin in Python: the same answers to anything."""

import math
import secrets

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lossympi.closing import closed_by
from lossympi.endpoint import ClosePolicy
from lossympi.plane import cipher, packet
from lossympi.plane.assembler import Assembler
from lossympi.plane.close_rule import CloseRule
from lossympi.plane.drop import Drops
from lossympi.plane.pacing import Pacer

core = pytest.importorskip("lossympi._core")

WIRES = tuple(packet.FLOAT_BYTES)


def ints(bits):
    return st.one_of(st.integers(0, 2**bits - 1), st.sampled_from([0, 1, 2 ** (bits - 1)]))


@given(ints(8), ints(16), ints(32), ints(64), ints(32), ints(32), ints(64))
def test_headers(kind, rank, session, round, seq, total, counter):
    header = packet.Header(kind, rank, session, round, seq, total, counter)
    assert core.pack(*header) == packet.pack(header)
    assert core.unpack(packet.pack(header)) == header


@given(st.binary(min_size=32, max_size=40))
def test_any_bytes_are_a_header(data):
    assert core.unpack(data) == packet.unpack(data)


# The processor's conversion takes eight numbers at a time; what is left of a datagram is ours.
AT_ONCE = pytest.mark.parametrize("at_once", [7, 2**16], ids=["few", "many"])


def encode(floats, wire, at_once):
    parts = [floats[i : i + at_once] for i in range(0, len(floats), at_once)]
    return b"".join(core.encode_floats(part, wire) for part in parts)


@AT_ONCE
@pytest.mark.parametrize("wire", ["float16", "bfloat16"])
def test_every_half_is_the_same_float(wire, at_once):
    data = np.arange(2**16, dtype="<u2").tobytes()
    parts = [data[i : i + 2 * at_once] for i in range(0, len(data), 2 * at_once)]
    native = np.concatenate([core.decode_floats(part, wire) for part in parts])
    python = packet.decode_floats(data, wire)
    is_nan = np.isnan(python)
    np.testing.assert_array_equal(np.isnan(native), is_nan)
    same = native.view(np.uint32) == python.view(np.uint32)
    assert same[~is_nan].all()  # a NaN may be made quiet on the way
    assert encode(native[~is_nan], wire, at_once) == packet.encode_floats(python[~is_nan], wire)


def assert_encoded_equal(floats, wire, at_once=2**16):
    native, python = encode(floats, wire, at_once), packet.encode_floats(floats, wire)
    if wire == "float32":
        assert native == python
        return
    native, python = np.frombuffer(native, "<u2"), np.frombuffer(python, "<u2")
    is_nan = np.isnan(floats)
    np.testing.assert_array_equal(native[~is_nan], python[~is_nan])
    for halves in (native, python):  # of a NaN only that it is one is kept
        assert np.isnan(packet.decode_floats(halves[is_nan].tobytes(), wire)).all()


@AT_ONCE
@pytest.mark.parametrize("wire", WIRES)
def test_floats_around_every_half(wire, at_once):
    """Each half, the tie above it, and the floats next to that tie."""
    kind = "bfloat16" if wire == "bfloat16" else "float16"
    halves = packet.decode_floats(np.arange(2**16, dtype="<u2").tobytes(), kind)
    step = {"bfloat16": 1 << 15, "float16": 1 << 12}[kind]
    bits = halves.view(np.uint32)
    for change in (0, 1, step - 1, step, step + 1, 2 * step - 1):
        assert_encoded_equal((bits + np.uint32(change)).view(np.float32), wire, at_once)


@pytest.mark.parametrize("wire", WIRES)
@given(st.lists(ints(32), max_size=40))
@example([0x7F800000, 0xFF800000, 0x7F800001, 0x7FFFFFFF, 0xFFC00000, 1, 0x80000001, 0x33000000])
@settings(max_examples=60)
def test_floats(wire, bits):
    assert_encoded_equal(np.array(bits, np.uint32).view(np.float32), wire)


@given(st.lists(st.booleans(), max_size=200), st.integers(1, 9))
def test_nacks(missing, most_bytes):
    missing_c = np.array(missing, bool)
    assert core.nack_payloads(missing_c, most_bytes) == packet.nack_payloads(missing_c, most_bytes)


@given(st.one_of(st.integers(0, 40), ints(32)), st.binary(max_size=6), st.one_of(ints(6), ints(32)))
@example(8, b"\x01\x00", 17)
@example(2**32 - 8, b"\xff", 2**32 - 1)
@example(2**32 - 8, b"\x7f", 2**32 - 1)
def test_reading_nacks(first, bitmap, total):
    native, python = (each.read_nack(first, bitmap, total) for each in (core, packet))
    assert (native is None) == (python is None)
    if python is not None:
        np.testing.assert_array_equal(native, python)


@given(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 2.0**-53])), ints(64), ints(16))
@settings(max_examples=40)
def test_drops(share, seed, rank):
    drops = Drops(share, seed, rank)
    assert core.drops(share, seed, rank, 60).tolist() == [drops.next() for _ in range(60)]


@given(
    st.floats(1.0, 1e10),
    st.lists(st.tuples(st.floats(0, 0.01), st.integers(1, 65000)), max_size=40),
)
def test_pacers(rate, steps):
    native, python, now = core.Pacer(rate), Pacer(rate, 0.0005), 0.0
    for waited, num_bytes in steps:
        now += waited
        assert native.when(now, num_bytes) == python.when(now, num_bytes)


@pytest.mark.parametrize("name", cipher.CIPHERS)
@given(st.binary(max_size=100), ints(64))
@settings(max_examples=30)
def test_tags(name, data, counter):
    key = b"" if name == "none" else bytes(range(32))
    assert core.tag(name, key, data, counter) == cipher.Sealer(name, key).tag(counter, data)


@pytest.mark.parametrize("server", [False, True])
def test_keys(server):
    assert core.has_aes256gcm() == cipher.has_aes256gcm()
    own_public, own_secret = core.key_pair()
    peer_public, peer_secret = cipher.key_pair()
    native = core.session_keys(own_secret, own_public, peer_public, server)
    assert native == cipher.session_keys(own_secret, own_public, peer_public, server)
    there = cipher.session_keys(peer_secret, peer_public, own_public, not server)
    assert native == there[::-1]
    assert len(set(native)) == 2


@pytest.mark.parametrize("public", [bytes(32), b"\1" + bytes(31), b"short"])
def test_bad_public_keys_are_refused_by_both(public):
    for plane in (core, cipher):
        own_public, own_secret = plane.key_pair()
        with pytest.raises(ValueError, match="Pass what"):
            plane.session_keys(own_secret, own_public, public, True)


DIM, N, K, C = 37, 2, 8, 5
ROUNDS = st.one_of(st.integers(0, 6), st.sampled_from([2**63, 2**64 - 1]))
STEPS = st.one_of(
    st.tuples(st.just("open"), st.integers(0, 6)),
    st.tuples(st.just("close")),
    st.tuples(
        st.just("accept"),
        st.integers(0, N - 1),
        ROUNDS,
        st.one_of(st.integers(0, C), st.sampled_from([2**31, 2**32 - 1])),
        st.sampled_from([C, C, C, 0, C + 1, 2**32 - 1]),
        st.sampled_from(["fits", "fits", "short", "long", "empty"]),
    ),
)


@pytest.mark.parametrize("wire", WIRES)
@given(st.lists(STEPS, max_size=40), st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_assemblers(wire, steps, random):
    twins = core.Assembler(DIM, N, K, wire), Assembler(DIM, N, K, wire)
    around = [np.full((N + 2, DIM), 99, np.float32) for _ in twins]  # rows before and after stay
    for name, *arguments in steps:
        if name == "accept":
            row, round, seq, total, size = arguments
            num_floats = min(K, DIM - seq * K) if seq < C else K
            num_bytes = num_floats * packet.FLOAT_BYTES[wire]
            num_bytes += {"fits": 0, "short": -1, "long": 1, "empty": -num_bytes}[size]
            arguments = row, round, seq, total, random.randbytes(num_bytes)
        answers = []
        for twin, around_nd in zip(twins, around, strict=True):
            try:
                more = (around_nd[1:-1],) if name == "open" else ()
                answers.append(getattr(twin, name)(*arguments, *more))
            except ValueError as error:
                answers.append(str(error)[:10])
        assert answers[0] == answers[1]
        is_nan = np.isnan(around[1])  # made quiet or not
        np.testing.assert_array_equal(np.isnan(around[0]), is_nan)
        bits = [each[~is_nan].view(np.uint32) for each in around]
        np.testing.assert_array_equal(*bits)
        for row in range(N):
            assert twins[0].missing(row) == twins[1].missing(row)
            np.testing.assert_array_equal(twins[0].arrived(row), twins[1].arrived(row))
        assert twins[0].whole == twins[1].whole
    for around_nd in around:
        assert (around_nd[[0, -1]] == 99).all()


@pytest.mark.parametrize("row", [-1, N, 2**31 - 1])
def test_the_native_assembler_has_no_other_rows(row):
    assembler = core.Assembler(DIM, N, K, "float32")
    assembler.open(1, np.zeros((N, DIM), np.float32))
    assert assembler.accept(row, 1, 0, C, bytes(4 * K)) == "foreign"
    with pytest.raises(IndexError):
        assembler.missing(row)


COUNTS = st.integers(0, 5)


@given(COUNTS, COUNTS, COUNTS, st.integers(1, 6), st.booleans(), COUNTS)
@settings(max_examples=400)
def test_what_closes_a_round(num_live, num_complete, num_settled, quorum, is_late, num_given_up):
    state = num_live, num_complete, num_settled, quorum, is_late, num_given_up
    assert core.closed_by(*state) == closed_by(*state)


TIMES = st.sampled_from([0.0, 0.0, 0.125, 0.25, 0.5, 1.0, 3.0])
EVENTS = st.tuples(TIMES, st.sampled_from(["heard", "heard", "ended", "pauses", "check"]), ints(1))
POLICIES = st.builds(
    ClosePolicy,
    deadline_s=st.sampled_from([0.0, 1.0, 8.0, math.inf]),
    grace_s=TIMES,
    quiet_s=TIMES,
    max_loss=st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.3, 1.0])),
    quorum=st.integers(1, 3),
    live_n=st.tuples(st.booleans(), st.booleans()),
    rate_kbps=st.just(1),
    f=st.integers(0, 2),
    longest_s=st.sampled_from([0.5, 8.0, math.inf]),
    free_s=TIMES,
    allowance_s_n=st.tuples(TIMES, TIMES),
)


@given(POLICIES, st.integers(1, 10), st.lists(EVENTS, max_size=40))
@settings(max_examples=120)
def test_close_rules(policy, c, events):
    opened = now = 100.0
    native, python = core.CloseRule(policy, 2, c, now), CloseRule(policy, 2, c, now)
    missing = [c, c]
    for waited, event, row in events:
        now += waited
        if event == "heard":
            missing[row] = max(missing[row] - 1, 0)
            native.heard(row, now, missing[row])
            python.heard(row, now, missing[row])
        elif event == "ended":
            native.ended(row, now)
            python.ended(row, now)
        elif event == "pauses":
            native.pauses(row)
            python.pauses(row)
        assert native.check(now) == python.check(now)
        for each in range(2):
            settled = native.settled_at(each) - opened
            assert settled == python.settled_s[each] or (
                math.isnan(settled) and math.isnan(python.settled_s[each])
            )


def test_both_planes_know_the_same_random_key():
    key, data = secrets.token_bytes(32), secrets.token_bytes(1440)
    for name in ("aes256gcm", "chacha20poly1305"):
        assert cipher.Sealer(name, key).fits(9, data, core.tag(name, key, data, 9))
