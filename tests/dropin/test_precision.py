"""Variables of every type train to the same bits as alone, however their values travel."""

from pathlib import Path

import pytest

from tests.mpi.results import results_of

SCRIPT = Path(__file__).with_name("precision_script.py")


@pytest.mark.parametrize(
    ("transport", "rule", "environment"),
    [
        ("shm", "median", {}),
        ("mpi", "average", {}),
        ("udp", "krum", {}),
        ("udp", "median", {"PLANE": "python", "AGGREGATHOR_KERNELS": "tensorflow"}),
    ],
    ids=["shm", "mpi", "udp", "python"],
)
def test_equal_gradients_train_to_the_bits_of_one(transport, rule, environment, tmp_path):
    results, _ = results_of(4, tmp_path, SCRIPT, transport, rule, **environment)
    assert set(map(tuple, results.values())) == {()}
