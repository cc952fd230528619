"""Variables of every type train to the same bits as alone, however their values travel."""

from pathlib import Path

import pytest

from tests.mpi.results import results_of

SCRIPT = Path(__file__).with_name("precision_script.py")


@pytest.mark.parametrize(
    ("transport", "rule", "environment"),
    [
        ("shm", "median", {}),
        ("udp", "krum", {}),
        pytest.param("mpi", "average", {}, marks=pytest.mark.long),
        pytest.param(
            *("udp", "median", {"PLANE": "python", "AGGREGATHOR_KERNELS": "tensorflow"}),
            marks=pytest.mark.long,
        ),
    ],
    ids=["shm", "udp", "mpi", "python"],
)
def test_equal_gradients_train_to_the_bits_of_one(transport, rule, environment, tmp_path):
    results, _ = results_of(4, tmp_path, SCRIPT, transport, rule, **environment)
    assert set(map(tuple, results.values())) == {()}
