"""A training that is finished may be started again: it ends as it did, and trains nothing."""

from pathlib import Path

from tests.mpi.results import results_of

SCRIPT = Path(__file__).with_name("finished_script.py")


def test_it_returns_what_it_returned(tmp_path):
    for folder in ("first", "again"):
        (tmp_path / folder).mkdir()
    first, _ = results_of(4, tmp_path / "first", SCRIPT, str(tmp_path / "saved"))
    again, done = results_of(4, tmp_path / "again", SCRIPT, str(tmp_path / "saved"))
    assert first[0]["stopped"] == 2
    assert first[0]["9"]["epoch"] == [0, 1, 2]
    assert set(first[0]["3"]["history"]) == {"accuracy", "loss", "val_accuracy", "val_loss"}
    for rank, found in first.items():
        assert found == first[0]
        assert again[rank] == found
    assert "going on after the end of fit 2" in done.stderr
