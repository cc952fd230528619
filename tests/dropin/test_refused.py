"""A round to which the rule cannot be applied: workers get the server's variables as they are."""

import json
from pathlib import Path

import pytest

from tests.mpi.launch import check, train

SCRIPT = Path(__file__).with_name("refused_script.py")


@pytest.mark.parametrize("mode", ["v1", "weights"])
def test_its_model_is_the_variables_of_now(mode, tmp_path):
    done = train(3, SCRIPT, mode, tmp_path)
    check(done)
    seen = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(3)]
    start, stepped = [1.0, 2.0, 3.0], [0.5, 1.5, 2.5]
    assert seen[0][:2] == [start, stepped]
    for worker in (1, 2):  # a step more than the server: that of the refused round
        assert seen[worker][:3] == [start, start, stepped]
