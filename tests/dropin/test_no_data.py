import re
from pathlib import Path

from tests.mpi.launch import check, run_on_one_host

SCRIPT = Path(__file__).with_name("no_data_script.py")


def test_the_server_needs_no_training_data():
    done = run_on_one_host(
        *(4, SCRIPT),
        warnings=(),
        timeout_s=120,
        TF_NUM_INTRAOP_THREADS="1",
        TF_CPP_MIN_LOG_LEVEL="2",
    )
    said = check(done)
    assert float(re.search(r"accuracy (\S+)", said)[1]) > 0.7
    digests = dict(re.findall(r"rank (\d): (\w+)", said))
    assert set(digests) == {"0", "1", "2", "3"}
    assert len(set(digests.values())) == 1
