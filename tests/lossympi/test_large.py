"""Vectors as long as a link takes them: in memory that the system never has to find."""

import numpy as np
import pytest

from lossympi import plane
from lossympi.backend import choose_plane
from lossympi.endpoint import Setup
from lossympi.plane.assembler import Assembler

MOST = 2**31
FLOATS = 352


@pytest.mark.parametrize("make", [choose_plane("native").Assembler, Assembler])
def test_a_row_of_2_31_floats_is_assembled_in_place(make):
    rows_nd = np.zeros((2, MOST), np.float32)  # pages that nobody touches take no memory
    assembler = make(MOST, 2, FLOATS, "float32")
    assembler.open(1, rows_nd)
    c = -(-MOST // FLOATS)
    short = MOST - (c - 1) * FLOATS
    values = np.arange(1, FLOATS + 1, dtype=np.float32)
    for row in range(2):
        for seq in (0, c // 2, c - 2):
            assert assembler.accept(row, 1, seq, c, values.tobytes()) == "accepted"
        assert assembler.accept(row, 1, c - 1, c, values.tobytes()) == "malformed"
        assert assembler.accept(row, 1, c - 1, c, values[:short].tobytes()) == "accepted"
        assert assembler.accept(row, 1, c, c, values.tobytes()) == "malformed"
        assert assembler.missing(row) == c - 4
    np.testing.assert_array_equal(rows_nd[1, :FLOATS], values)
    np.testing.assert_array_equal(rows_nd[1, -short:], values[:short])
    np.testing.assert_array_equal(rows_nd[0, -short - FLOATS : -short], values)
    middle = c // 2 * FLOATS
    np.testing.assert_array_equal(rows_nd[0, middle - 1 : middle + FLOATS + 1][1:-1], values)
    assert not rows_nd[0, middle - 1]
    assert not rows_nd[0, middle + FLOATS]


@pytest.mark.parametrize("module", [choose_plane("native"), plane])
@pytest.mark.parametrize("dim", [0, -1, 2**36])
def test_a_dim_that_no_link_takes_is_refused(module, dim):
    with pytest.raises(ValueError, match="dim"):
        module.Endpoint(Setup(0, 1, "127.0.0.1", 1, dim))
