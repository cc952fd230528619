import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossympi.plane.assembler import Assembler
from lossympi.plane.packet import encode_floats

DIM, N, K = 10, 2, 4  # datagrams of 4, 4 and 2 floats


def payload(value, seq, wire="float32"):
    return encode_floats(np.full(min(K, DIM - seq * K), value, np.float32), wire)


@pytest.mark.parametrize("wire", ["float32", "float16", "bfloat16"])
def test_datagrams_come_to_their_places(wire):
    assembler = Assembler(DIM, N, K, wire)
    grads_nd = np.arange(N * DIM, dtype=np.float32).reshape(N, DIM)
    stack_nd = np.full((N, DIM), -1, np.float32)
    assembler.open(1, stack_nd)
    for row in range(N):
        for seq in (2, 0, 1):
            data = encode_floats(grads_nd[row, K * seq : K * seq + K], wire)
            assert assembler.accept(row, 1, seq, 3, data) == "accepted"
        assert assembler.missing(row) == 0
        assert assembler.whole == ([] if row < N - 1 else [2, 0, 1])
    np.testing.assert_array_equal(stack_nd, grads_nd)
    assembler.open(2, stack_nd)
    assert assembler.whole == []


@pytest.mark.parametrize(
    ("round", "seq", "total", "size", "reason"),
    [
        (0, 0, 3, 16, "malformed"),
        (5, 3, 3, 8, "malformed"),
        (5, 2**32 - 1, 3, 16, "malformed"),
        (5, 1, 4, 16, "malformed"),
        (5, 1, 3, 15, "malformed"),
        (5, 1, 3, 20, "malformed"),
        (5, 1, 3, 0, "malformed"),
        (5, 2, 3, 16, "malformed"),  # the last is short
        (4, 1, 3, 15, "malformed"),  # malformed comes first
        (6, 1, 3, 16, "early"),
        (2**64 - 1, 1, 3, 16, "early"),
        (4, 1, 3, 16, "late"),
        (4, 0, 3, 16, "late"),  # there already, but late comes first
        (5, 0, 3, 16, "duplicate"),
    ],
)
def test_nothing_else_is_written(round, seq, total, size, reason):
    assembler = Assembler(DIM, N, K, "float32")
    stack_nd = np.zeros((N, DIM), np.float32)
    assembler.open(5, stack_nd)
    assert assembler.accept(0, 5, 0, 3, payload(7, 0)) == "accepted"
    before_nd, arrived_c = stack_nd.copy(), assembler.arrived(0)
    assert assembler.accept(0, round, seq, total, b"\xff" * size) == reason
    np.testing.assert_array_equal(stack_nd, before_nd)
    np.testing.assert_array_equal(assembler.arrived(0), arrived_c)
    assert assembler.missing(0) == 2
    assert assembler.missing(1) == 3


def test_between_rounds_all_is_early_or_late():
    assembler = Assembler(DIM, 1, K, "float32")
    assert assembler.accept(0, 1, 0, 3, payload(1, 0)) == "early"
    row_d = np.zeros(DIM, np.float32)
    assembler.open(3, [row_d])
    assert assembler.round == 3
    assembler.close()
    assert (assembler.round, assembler.closed_round) == (0, 3)
    assert assembler.accept(0, 3, 0, 3, payload(1, 0)) == "late"
    assert assembler.accept(0, 4, 0, 3, payload(1, 0)) == "early"
    assembler.close()
    assert assembler.closed_round == 3
    assert not row_d.any()


def test_a_later_round_drops_the_open_one():
    assembler = Assembler(DIM, 1, K, "float32")
    first_d, second_d = np.zeros((2, DIM), np.float32)
    assembler.open(1, [first_d])
    assembler.accept(0, 1, 0, 3, payload(1, 0))
    assembler.open(4, [second_d])
    assert assembler.missing(0) == 3
    assert assembler.accept(0, 1, 1, 3, payload(1, 1)) == "late"
    assert assembler.accept(0, 4, 0, 3, payload(4, 0)) == "accepted"
    np.testing.assert_array_equal(first_d, [1] * 4 + [0] * 6)
    np.testing.assert_array_equal(second_d, [4] * 4 + [0] * 6)


@pytest.mark.parametrize("round", [0, 2, 3])
def test_rounds_never_go_back(round):
    assembler = Assembler(DIM, 1, K, "float32")
    rows = [np.zeros(DIM, np.float32)]
    assembler.open(3, rows)
    with pytest.raises(ValueError, match="must increase"):
        assembler.open(round, rows)


@pytest.mark.parametrize("rows", [[], np.zeros((1, DIM)), np.zeros((1, DIM + 1), np.float32)])
def test_rows_that_do_not_fit_are_refused(rows):
    assembler = Assembler(DIM, 1, K, "float32")
    with pytest.raises(ValueError, match="row"):
        assembler.open(1, rows)
    assert assembler.round == 0


DATAGRAMS = st.tuples(
    st.integers(0, N - 1), st.integers(0, 4), st.integers(0, 4), st.integers(2, 4), st.binary()
)


@given(st.lists(st.one_of(st.just("open"), st.just("close"), DATAGRAMS), max_size=60), st.data())
def test_any_order_agrees_with_a_list_of_places(steps, data):
    """The oracle keeps a dictionary of what each place got first, and looks at nothing else."""
    assembler = Assembler(DIM, N, K, "float32")
    around_nd = np.full((N + 2, DIM), 99, np.float32)  # rows before and after must stay
    stack_nd, wanted_nd = around_nd[1:-1], around_nd.copy()
    open_round, newest, there = 0, 0, set()
    for step in steps:
        if step == "open":
            newest += 1
            open_round, there = newest, set()
            assembler.open(newest, stack_nd)
            continue
        if step == "close":
            open_round = 0
            assembler.close()
            continue
        row, round, seq, total, junk = step
        fits = data.draw(st.booleans()) and seq < 3
        size = 4 * min(K, DIM - seq * K) if seq < 3 else -1
        floats = np.full(max(size, 0) // 4, len(there), np.float32)
        sent = floats.tobytes() if fits else junk
        if round < 1 or total != 3 or len(sent) != size:
            wanted = "malformed"
        elif round > newest:
            wanted = "early"
        elif round != open_round:
            wanted = "late"
        elif (row, seq) in there:
            wanted = "duplicate"
        else:
            wanted = "accepted"
            there.add((row, seq))
            wanted_nd[row + 1, seq * K : seq * K + K] = np.frombuffer(sent, np.float32)
        assert assembler.accept(row, round, seq, total, sent) == wanted
        np.testing.assert_array_equal(around_nd, wanted_nd)
        assert assembler.missing(row) == 3 - sum(at == row for at, _ in there)
