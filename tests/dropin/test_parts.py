import re
from pathlib import Path

import pytest

from lossympi import planes
from tests.mpi.launch import check, train

SCRIPT = Path(__file__).with_name("parts_script.py")


@pytest.mark.skipif(planes.core() is None, reason=planes.why_not_native())
def test_gradients_that_leave_in_parts_train_as_whole_ones():
    said = check(train(3, SCRIPT, TF_NUM_INTEROP_THREADS="2"))
    trained = re.findall(r"rank (\d), ([a-z ]+): (\d) parts, weights (\w+)", said)
    assert len(trained) == 9
    for rank, name, num_parts, _ in trained:
        assert num_parts == ("0" if rank == "0" or name == "as a whole" else "2")
    # Nothing was lost, and a step that failed was made again with the same batch, so that all ways
    # give the same parameters on all ranks, bit for bit.
    assert len({weights for *_, weights in trained}) == 1
