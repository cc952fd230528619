import dataclasses
import io
import signal
import sys

import pytest

from aggregathor.errors import UserError
from experiments import demo, suite
from experiments.figures import phocas_figure2
from experiments.run import Result
from tests.experiments.folders import RUN, rows_of

RUNS = [
    ("average", "none"),
    ("average", "omniscient"),
    ("median", "omniscient"),
    ("multi-krum", "omniscient"),
    ("bulyan", "omniscient"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the demo leaves, with the parameters it is shown with."""
    folder = tmp_path_factory.mktemp("demo")
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["demo", f"--output={folder}"])
        patch.setattr(sys, "stdout", said)  # no terminal
        assert demo.main() == 0
    (folder / "said").write_text(said.getvalue())
    return folder


def test_the_demo_says_what_it_does(folder):
    lines = (folder / "said").read_text().splitlines()
    assert lines[0] == "11 workers, 2 of them Byzantine where there is an attack; 1797 digits"
    labels = [f"{gar}, {'no attack' if attack == 'none' else attack}" for gar, attack in RUNS]
    said = [f"[{number}/5] {label}: 300 steps" for number, label in enumerate(labels, 1)]
    assert lines[1:6] == said
    assert lines[-1] == f"curves: {folder / 'accuracy.png'}"


def test_the_demo_leaves_a_summary_a_picture_and_a_folder_a_run(folder):
    summary = rows_of(folder / "summary.csv")
    assert list(summary[0]) == ["gar", "attack", "accuracy", "steps_per_s"]
    assert [(row["gar"], row["attack"]) for row in summary] == RUNS
    assert all(float(row["steps_per_s"]) > 0 for row in summary)
    assert (folder / "accuracy.png").stat().st_size > 10_000
    for gar, attack in RUNS:
        name = f"{gar}-{'no-attack' if attack == 'none' else attack}"
        assert len(rows_of(folder / name / "metrics.csv")) == 31


def test_averaging_collapses_and_robust_rules_lose_less_than_two_points(folder):
    accuracies = {
        (row["gar"], row["attack"]): float(row["accuracy"])
        for row in rows_of(folder / "summary.csv")
    }
    undisturbed = accuracies["average", "none"]
    assert undisturbed > 0.95
    assert accuracies["average", "omniscient"] < 0.2
    for gar in ("median", "multi-krum", "bulyan"):
        assert accuracies[gar, "omniscient"] > undisturbed - 0.02, gar


def test_byzantine_workers_are_never_selected(folder):
    rows = rows_of(folder / "multi-krum-omniscient" / "workers.csv")
    for row in rows:
        assert float(row["selected"]) == 0 or int(row["worker"]) < 9
        assert (row["distance"] == "inf" or float(row["distance"]) > 1e15) == (
            int(row["worker"]) >= 9
        )


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--output={full}"], 2, "demo: error: cannot write to {full}: Is a directory"),
        (["--steps=-1"], 2, "demo: error: --steps must not be negative"),
        (["--output={file}/below"], 2, "demo: error: cannot write to"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments, status, said, tmp_path, monkeypatch, capsys):
    file = tmp_path / "file"
    file.write_text("")
    (tmp_path / "summary.csv").mkdir()
    monkeypatch.setattr(
        sys, "argv", ["demo", *(a.format(file=file, full=tmp_path) for a in arguments)]
    )
    assert demo.main() == status
    err = capsys.readouterr().err
    assert err.startswith(said.format(full=tmp_path))
    assert len(err.splitlines()) == 1


def test_two_runs_of_one_name_are_an_error(tmp_path):
    two = [RUN, dataclasses.replace(RUN, workers=7)]
    with pytest.raises(UserError, match="two runs are called 'average, no attack'"):
        suite.run_all(two, tmp_path)


def test_a_stopped_demo_leaves_no_summary_of_earlier_runs(tmp_path, monkeypatch):
    for name in suite.FILES:
        (tmp_path / name).write_text("old")
    monkeypatch.setattr(suite, "run", lambda *_, **__: Result(3, [], 1.0, signal.SIGINT, ""))
    monkeypatch.setattr(sys, "argv", ["demo", f"--output={tmp_path}"])
    assert demo.main() == 130
    assert list(tmp_path.iterdir()) == []


def test_a_rate_that_is_not_known_is_left_out(tmp_path, capsys):
    metrics = [{"step": 3.0, "accuracy": 0.5}]
    results = [Result(3, metrics, float("nan"), None, "")]
    suite.write_summary([RUN], results, tmp_path, "title")
    suite.print_summary([RUN], results)
    assert rows_of(tmp_path / "summary.csv")[0]["steps_per_s"] == ""
    assert "nan" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seeds=a"], "--seeds takes whole numbers such as 0,1,2; got 'a'"),
        (["--seeds=1,1"], "--seeds names one more than once: 1,1"),
        (["--output=/proc/x"], "cannot write to /proc/x: "),
        (["--data_dir=nowhere", "--output={tmp_path}"], "the data set mnist 3.0.1 is not prepared"),
    ],
)
def test_the_figure_says_before_its_runs_what_is_wrong(
    arguments, said, tmp_path, monkeypatch, capsys
):
    argv = ["phocas_figure2", *(a.format(tmp_path=tmp_path) for a in arguments)]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.chdir(tmp_path)
    assert phocas_figure2.main() == 2
    assert capsys.readouterr().err.startswith(f"phocas_figure2: error: {said}")
    assert list(tmp_path.iterdir()) == []


def test_runs_after_an_interrupted_one_are_not_made(tmp_path, monkeypatch):
    made = []

    def stopped(config, folder, **_):
        made.append(folder.name)
        return Result(3, [], 1.0, 2 if len(made) == 2 else None, "")

    monkeypatch.setattr(suite, "run", stopped)
    three = [dataclasses.replace(RUN, gar=gar) for gar in ("average", "median", "phocas")]
    assert len(suite.run_all(three, tmp_path)) == 1
    assert len(made) == 2
    monkeypatch.setattr(sys, "argv", ["demo", f"--output={tmp_path}"])
    made.clear()
    assert demo.main() == 130


def test_ctrl_c_between_two_runs_stops_the_demo(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "run", interrupted)
    monkeypatch.setattr(sys, "argv", ["demo", f"--output={tmp_path}"])
    assert demo.main() == 130
    assert capsys.readouterr().err == "demo: stopped\n"
