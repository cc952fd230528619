from pathlib import Path

from tests.mpi.results import results_of

SCRIPT = Path(__file__).with_name("no_data_script.py")


def test_the_server_needs_no_training_data(tmp_path):
    results, _ = results_of(4, tmp_path, SCRIPT)
    server = results[0]["without"]
    assert server["epochs"] == [0, 1]
    assert server["history"] == {"rounds": [30, 60]}
    assert "needs steps_per_epoch, how many rounds" in server["error"]
    assert server["untrained"] < 0.3
    assert server["accuracy"] > 0.7
    # On all ranks, and as if it had data, which it makes no gradients of.
    assert len({way["digest"] for ways in results.values() for way in ways.values()}) == 1
