"""``aggregathor plot`` reads folders of ``--monitor`` and of experiments, and draws a PNG."""

import math

import pytest

from aggregathor.cli import main as cli
from aggregathor.cli.plot import read
from aggregathor.errors import UserError

HEADER = "step,worker,selected,distance,delivered,late,rejected\n"


def monitored(folder, workers=3, steps=4):
    folder.mkdir(parents=True)
    rows = "".join(
        f"{10 * (step + 1)},{w},{0 if w == 2 else 1},{'inf' if w == 2 and step else w + 1},1,0,0\n"
        for step in range(steps)
        for w in range(workers)
    )
    (folder / "workers.csv").write_text(HEADER + rows + "50,0,1")  # which a kill has cut short
    return folder


def experiment(folder):
    monitored(folder)
    text = "step,wall_time_s,loss,accuracy,top3\n0,0,nan,0.1,0.3\n10,1,0.5,0.8,0.9\n"
    (folder / "metrics.csv").write_text(text)
    return folder


def test_what_is_read(tmp_path):
    monitored(tmp_path / "m" / "run-9")
    run = read(monitored(tmp_path / "m" / "run-10").parent)  # the newest
    assert (run.name, run.accuracy) == ("m/run-10", None)
    assert run.figures["selected"][2] == ([10, 20, 30, 40], [0, 0, 0, 0])
    assert run.figures["distance"][2][1] == [3, math.inf, math.inf, math.inf]
    assert read(experiment(tmp_path / "e")).accuracy == ([0, 10], [0.1, 0.8])


ARRIVALS = "step,worker,arrivals,accepted,staleness,most_stale,dropped,not_finite\n"


def without_rounds(folder):
    experiment(folder)
    rows = "10,0,4,1,2.5,7,0,0\n10,1,0,nan,nan,0,0,0\n20,0,3,0.5,2,9,0,1\n20,1,1,1,300,300,0,0\n"
    (folder / "workers.csv").write_text(ARRIVALS + rows)
    return folder


def test_what_is_read_of_a_training_without_rounds(tmp_path):
    run = read(without_rounds(tmp_path / "a"))
    assert list(run.figures) == ["accepted", "staleness", "most_stale"]
    assert run.figures["accepted"][0] == ([10, 20], [1, 0.5])
    assert run.figures["most_stale"][1] == ([10, 20], [0, 300])
    assert math.isnan(run.figures["staleness"][1][1][0])


def test_both_kinds_are_drawn_side_by_side(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    folders = [without_rounds(tmp_path / "a"), experiment(tmp_path / "b")]
    assert cli.main(["plot", *map(str, folders)]) == 0
    assert (tmp_path / "workers.png").read_bytes()[:4] == b"\x89PNG"


def test_a_picture_of_several(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    folders = [monitored(tmp_path / "a" / "run-1").parent, experiment(tmp_path / "b")]
    assert cli.main(["plot", *map(str, folders)]) == 0
    assert capsys.readouterr().out == "workers.png\n"
    assert (tmp_path / "workers.png").read_bytes()[:4] == b"\x89PNG"
    assert cli.main(["plot", str(folders[0]), "--output=one.png"]) == 0
    assert (tmp_path / "one.png").exists()
    capsys.readouterr()
    assert cli.main(["plot", str(folders[0]), "--output=nothere/one.png"]) == 2
    assert "cannot write the plot to nothere/one.png" in capsys.readouterr().err


def test_what_cannot_be_drawn(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        read(tmp_path / "nothere")
    with pytest.raises(UserError, match="has no workers"):
        read(tmp_path)
    folder = monitored(tmp_path / "run-1")
    (folder / "workers.csv").write_text(HEADER)
    with pytest.raises(UserError, match="has no rows yet"):
        read(tmp_path)
    (folder / "workers.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="is none that a run has written"):
        read(tmp_path)
