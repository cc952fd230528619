import re
from pathlib import Path

import pytest

from lossympi import planes
from tests.mpi.launch import check, run_on_one_host

SCRIPT = Path(__file__).with_name("parts_script.py")


@pytest.mark.skipif(planes.core() is None, reason=planes.why_not_native())
def test_gradients_that_leave_in_parts_train_as_whole_ones():
    done = run_on_one_host(
        *(3, SCRIPT),
        warnings=(),
        timeout_s=120,
        TF_NUM_INTRAOP_THREADS="1",
        TF_NUM_INTEROP_THREADS="2",
        TF_CPP_MIN_LOG_LEVEL="2",
    )
    said = check(done)
    parts, whole, after = (
        dict(re.findall(rf"rank (\d), {name}: (.+)", said))
        for name in ("in parts", "as a whole", "after it")
    )
    assert {rank: told.split(",")[0] for rank, told in parts.items()} == {
        "0": "0 parts",
        "1": "2 parts",
        "2": "2 parts",
    }
    assert {told.split(",")[0] for told in whole.values()} == {"0 parts"}
    # Nothing was lost, so that both ways give the same parameters on all ranks, bit for bit.
    assert len({told.split(",")[1] for told in (*parts.values(), *whole.values())}) == 1

    # The worker whose step failed has sent the second layer's weights alone, of 49,600 values.
    failed, other = map(float, re.search(r"delivered \[(.+), (.+)\]", said).groups())
    assert failed == pytest.approx(30_000 / 49_600, abs=0.02)
    assert other == 1.0
    assert "then [1.0, 1.0]" in said
    assert len(set(after.values())) == 1
