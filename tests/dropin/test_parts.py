from pathlib import Path

import pytest

from lossympi import backend
from tests.mpi.results import results_of

SCRIPT = Path(__file__).with_name("parts_script.py")


@pytest.mark.skipif(backend.native() is None, reason=backend.why_not_native())
def test_gradients_that_leave_in_parts_train_as_whole_ones(tmp_path):
    results, _ = results_of(3, tmp_path, SCRIPT, TF_NUM_INTEROP_THREADS="2")
    for rank, ways in results.items():
        parts = {name: way["parts"] for name, way in ways.items()}
        early = 0 if rank == 0 else 2
        assert parts == {"in parts": early, "with failures": early, "as a whole": 0}
    # Nothing was lost, and a step that failed was made again with the same batch, so that all ways
    # give the same parameters on all ranks, bit for bit.
    digests = {way["digest"] for ways in results.values() for way in ways.values()}
    assert len(digests) == 1
