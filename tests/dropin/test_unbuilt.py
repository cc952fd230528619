import re
from pathlib import Path

from tests.mpi.launch import check, train

SCRIPT = Path(__file__).with_name("unbuilt_script.py")


def test_a_step_may_make_the_variables_that_it_trains():
    said = check(train(4, SCRIPT))
    ended = re.findall(r"rank (\d), (\w+): accuracy (\S+), (\w+)", said)
    assert len(ended) == 12
    for name in ("of_layers", "nested", "of_a_module"):
        ranks, _, accuracies, digests = zip(*[e for e in ended if e[1] == name], strict=True)
        assert set(ranks) == {"0", "1", "2", "3"}
        assert len(set(digests)) == 1
        assert float(accuracies[ranks.index("0")]) > 0.75
