import re
from pathlib import Path

from tests.mpi.launch import check, train

SCRIPT = Path(__file__).with_name("no_data_script.py")


def test_the_server_needs_no_training_data():
    said = check(train(4, SCRIPT))
    assert float(re.search(r"accuracy (\S+)", said)[1]) > 0.7
    digests = dict(re.findall(r"rank (\d): (\w+)", said))
    assert set(digests) == {"0", "1", "2", "3"}
    assert len(set(digests.values())) == 1
