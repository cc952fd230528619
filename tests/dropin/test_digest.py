import re
from pathlib import Path

import pytest

from tests.mpi.results import results_of

SCRIPT = Path(__file__).with_name("digest_script.py")
WAYS = ("nothing", "eagerly", "by_one_bit", "in_another_thread", "in_memory", "restored")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return results_of(3, tmp_path_factory.mktemp("digest"), SCRIPT)


@pytest.mark.parametrize("way", WAYS)
def test_a_changed_variable_is_seen_and_replaced(way, job):
    results, _ = job
    for name in ("in_graphs", "by_two_optimizers", "eager", "fit", "first_of_fit"):
        seen = [results[rank][way][name]["seen"] for rank in range(3)]
        assert seen == [0, 0, 0 if way == "nothing" else 1], name
        assert len({results[rank][way][name]["digest"] for rank in range(3)}) == 1, name


def test_it_is_told(job):
    _, done = job
    name = "sequential/dense/kernel"
    assert re.search(
        rf"rank 2: {name} was not what the server had sent when a gradient", done.stderr
    )
    assert "rank 2: 25 times a shared variable was not what the server had sent" in done.stderr
    assert "rank 1: " not in done.stderr
