import re
from pathlib import Path

import pytest

from tests.mpi.launch import check, train

SCRIPT = Path(__file__).with_name("digest_script.py")
WAYS = ("nothing", "eagerly", "by_one_bit", "in_another_thread", "in_memory", "restored")


@pytest.fixture(scope="module")
def done():
    done = train(3, SCRIPT)
    check(done)
    return done


@pytest.mark.parametrize("way", WAYS)
def test_a_changed_variable_is_seen_and_replaced(way, done):
    found = re.findall(rf"rank (\d), {way}, (\w+): (\d+) seen, (\w+)", done.stdout)
    assert len(found) == 15
    for name in ("in_graphs", "by_two_optimizers", "eager", "fit", "first_of_fit"):
        ranks, _, seen, digests = zip(*sorted(f for f in found if f[1] == name), strict=True)
        assert ranks == ("0", "1", "2")
        assert seen == ("0", "0", "0" if way == "nothing" else "1")
        assert len(set(digests)) == 1


def test_it_is_told(done):
    name = "sequential/dense/kernel"
    assert re.search(
        rf"rank 2: {name} was not what the server had sent when a gradient", done.stderr
    )
    assert "rank 2: 25 times a shared variable was not what the server had sent" in done.stderr
    assert "rank 1: " not in done.stderr
