from pathlib import Path

from tests.dropin.results import results_of

SCRIPT = Path(__file__).with_name("no_data_script.py")


def test_the_server_needs_no_training_data(tmp_path):
    results, _ = results_of(4, tmp_path, SCRIPT)
    assert results[0]["epochs"] == [0, 1]
    assert results[0]["history"] == {"rounds": [30, 60]}
    assert "needs steps_per_epoch, how many rounds" in results[0]["error"]
    assert results[0]["accuracy"] > 0.7
    assert len({result["digest"] for result in results.values()}) == 1
