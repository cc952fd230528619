import dataclasses
import io
import json
import os
import re
import resource
import shutil
import signal
import struct
import sys

import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

from aggregathor import checkpoint
from aggregathor.errors import UserError
from experiments import run as run_module
from experiments.config import Config
from experiments.evaluation import count_correct
from experiments.progress import OneLine, Progress, columns
from experiments.run import run
from tests.experiments.folders import RUN, assert_same, rows_of, saved, trained


def changed(**changes):
    return dataclasses.replace(RUN, **changes)


def png_size(path):
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", data[16:24])


def events_of(folder):
    """The tags in the TensorBoard events of a folder."""
    found = set()
    for path in folder.iterdir():
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            found |= {value.tag for value in event.summary.value}
    return found


def set_back(folder, step):
    """Leaves the folder as a crash would, when the checkpoint of ``step`` was the last one."""
    for path in saved(folder):
        if path.name > f"step-{step:09d}.npz":
            path.unlink()


def test_a_run_leaves_all_that_it_promises(tmp_path, capsys):
    result = run(RUN, tmp_path)
    assert capsys.readouterr() == ("", "")  # no terminal, no progress bar
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {*run_module.FILES, *run_module.FOLDERS} - {"schedule.csv"}

    assert json.loads((tmp_path / "config.json").read_text()) == dataclasses.asdict(RUN)
    metrics = rows_of(tmp_path / "metrics.csv")
    assert list(metrics[0]) == ["step", "wall_time_s", "loss", "accuracy", "top3"]
    assert [row["step"] for row in metrics] == ["0", "4", "8", "12"]
    assert metrics[0]["loss"] == "nan"
    for row in metrics:
        assert 0 <= float(row["accuracy"]) <= float(row["top3"]) <= 1
    wall_times_s = [float(row["wall_time_s"]) for row in metrics]
    assert wall_times_s == sorted(wall_times_s)

    workers = rows_of(tmp_path / "workers.csv")
    assert [(row["step"], row["worker"]) for row in workers] == [
        (str(step), str(worker)) for step in (4, 8, 12) for worker in range(5)
    ]
    assert {(row["selected"], row["delivered"]) for row in workers} == {("1", "1")}

    figures = ("selected", "distance", "delivered", "late", "rejected")
    per_worker = {f"worker_{worker:02d}/{name}" for worker in range(5) for name in figures}
    assert events_of(tmp_path / "events") == {"loss", "accuracy", "top3"} | per_worker
    assert [path.name for path in saved(tmp_path)] == ["step-000000006.npz", "step-000000012.npz"]
    assert min(png_size(tmp_path / "accuracy.png")) > 300

    assert result.steps == 12
    assert result.stopped_by is None
    assert result.accuracy == pytest.approx(float(metrics[-1]["accuracy"]), abs=1e-6)
    assert result.curve[0] == [0, 4, 8, 12]
    assert result.steps_per_s > 0


def test_digits_are_learnt(tmp_path):
    result = run(Config(steps=150, momentum=0.9), tmp_path)
    assert result.metrics[0]["accuracy"] < 0.2  # of step 0
    assert result.accuracy > 0.9


def test_accuracies_are_those_of_keras(tmp_path):
    from experiments import models, tasks

    result = run(RUN, tmp_path)
    data = tasks.task("digits").load("")
    model = models.build("digits-mlp", data)
    state = trained(tmp_path)[2]
    model.set_weights([state[f"training/model/{i}"] for i in range(4)])
    logits = model(data.test_images).numpy()
    top = np.argsort(-logits, axis=1)
    last = result.metrics[-1]
    assert last["accuracy"] == pytest.approx(np.mean(top[:, 0] == data.test_labels), abs=1e-6)
    hits = np.any(top[:, :3] == data.test_labels[:, np.newaxis], axis=1)
    assert last["top3"] == pytest.approx(np.mean(hits), abs=1e-6)


def test_the_same_run_twice_is_the_same_bits(tmp_path):
    run(RUN, tmp_path / "one")
    run(RUN, tmp_path / "two")
    assert_same(tmp_path / "one", tmp_path / "two")
    run(changed(seed=1), tmp_path / "three")
    assert trained(tmp_path / "one")[0] != trained(tmp_path / "three")[0]


STATEFUL = {
    "plain": {},
    "all": {
        "optimizer": "adam", "learning_rate": 0.01, "momentum": 0.5, "momentum_at": "worker",
        "gar": "median", "byzantine": 2, "attack": "mimic", "attack_args": {"follow": "direction"},
        "model": "phocas-cnn", "loss": 0.3, "fill": "previous", "partition": "dirichlet",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", STATEFUL)
def test_after_a_crash_rows_since_the_checkpoint_are_made_again(name, tmp_path):
    config = changed(**STATEFUL[name])
    run(config, tmp_path / "whole")
    run(changed(**STATEFUL[name], steps=10), tmp_path / "crashed")
    set_back(tmp_path / "crashed", 6)
    assert rows_of(tmp_path / "crashed" / "workers.csv")[-1]["step"] == "10"
    with (tmp_path / "crashed" / "metrics.csv").open("a") as file:
        file.write("11,0.")  # the machine failed amid a row
    run(config, tmp_path / "crashed")
    assert_same(tmp_path / "whole", tmp_path / "crashed")


def test_after_a_crash_before_the_first_checkpoint_all_is_made_again(tmp_path):
    run(RUN, tmp_path / "whole")
    run(changed(steps=8), tmp_path / "crashed")
    shutil.rmtree(tmp_path / "crashed" / "checkpoints")
    run(RUN, tmp_path / "crashed")
    assert_same(tmp_path / "whole", tmp_path / "crashed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_step_at_hand(number, tmp_path, monkeypatch):
    run(RUN, tmp_path / "whole")
    steps = []

    class Interrupted(run_module.Simulation):
        def step(self):
            if len(steps) == 4:  # amid step 5, where nothing else is saved or written
                os.kill(os.getpid(), number)
            steps.append(super().step())
            return steps[-1]

    handler = signal.getsignal(number)
    monkeypatch.setattr(run_module, "Simulation", Interrupted)
    result = run(RUN, tmp_path / "stopped")
    assert (result.steps, result.stopped_by) == (5, number)
    assert signal.getsignal(number) is handler
    monkeypatch.undo()
    result = run(RUN, tmp_path / "stopped")
    assert (result.steps, result.stopped_by) == (12, None)
    assert_same(tmp_path / "whole", tmp_path / "stopped")


def test_a_second_signal_ends_the_run_at_once(tmp_path, monkeypatch):
    class Stuck(run_module.Simulation):
        def step(self):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(run_module, "Simulation", Stuck)
    with pytest.raises(KeyboardInterrupt):
        run(RUN, tmp_path)


def test_a_finished_run_is_left_as_it_is(tmp_path):
    first = run(RUN, tmp_path)
    before = trained(tmp_path)
    second = run(RUN, tmp_path)
    assert (second.steps, second.accuracy) == (12, pytest.approx(first.accuracy, abs=1e-6))
    assert np.isnan(second.steps_per_s)
    assert trained(tmp_path)[:2] == before[:2]


def test_a_finished_run_goes_on_with_more_steps(tmp_path):
    run(changed(steps=8), tmp_path / "continued")
    run(RUN, tmp_path / "continued")
    run(RUN, tmp_path / "whole")
    assert_same(tmp_path / "whole", tmp_path / "continued")


def test_time_goes_on_from_the_last_row_too(tmp_path):
    run(changed(steps=4), tmp_path)
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text().replace("\n4,0.", "\n4,1000."))
    run(RUN, tmp_path)
    assert [float(row["wall_time_s"]) > 1000 for row in rows_of(path)] == [False, True, True, True]


def test_fewer_steps_than_were_made_change_nothing(tmp_path):
    run(RUN, tmp_path)
    result = run(changed(steps=8), tmp_path)
    assert result.steps == 12
    assert [row["step"] for row in rows_of(tmp_path / "metrics.csv")] == ["0", "4", "8", "12"]


def test_another_configuration_in_the_folder_is_an_error_that_names_it(tmp_path):
    run(RUN, tmp_path)
    before = trained(tmp_path)
    with pytest.raises(UserError, match="gar was 'average' and is 'median'; seed was 0 and is 1"):
        run(changed(gar="median", seed=1), tmp_path)
    assert Config.read(tmp_path / "config.json") == RUN
    assert trained(tmp_path)[:2] == before[:2]


def test_overwriting_starts_again_and_leaves_what_is_not_of_the_run(tmp_path):
    run(RUN, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    other = changed(seed=1, steps=4)
    assert run(other, tmp_path, overwrite=True).steps == 4
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert Config.read(tmp_path / "config.json") == other
    assert [row["step"] for row in rows_of(tmp_path / "metrics.csv")] == ["0", "4"]
    run(other, tmp_path / "fresh")
    assert_same(tmp_path, tmp_path / "fresh")


def test_what_fails_before_the_first_step_overwrites_nothing(tmp_path):
    run(RUN, tmp_path)
    before = trained(tmp_path)
    for wrong in ({"model": "VGG16"}, {"gar": "krum", "f": 4}, {"workers": 5000}):
        with pytest.raises(UserError):
            run(changed(**wrong), tmp_path, overwrite=True)
    assert trained(tmp_path)[:2] == before[:2]


def test_metrics_that_were_deleted_are_made_from_there_on(tmp_path):
    run(changed(steps=8), tmp_path)
    for name in ("metrics.csv", "workers.csv"):
        (tmp_path / name).unlink()
    assert run(RUN, tmp_path).steps == 12
    assert [row["step"] for row in rows_of(tmp_path / "metrics.csv")] == ["8", "12"]
    assert len(rows_of(tmp_path / "workers.csv")) == 5


def test_a_damaged_configuration_is_an_error_with_the_remedy(tmp_path):
    run(RUN, tmp_path)
    for text in ("", "{", "[]", '{"a": 1}', "\x00", '"text"'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"config[.]json is no configuration.*--overwrite"):
            run(RUN, tmp_path)
    assert run(RUN, tmp_path, overwrite=True).steps == 12


def test_a_file_of_other_columns_is_an_error(tmp_path):
    run(RUN, tmp_path)
    (tmp_path / "metrics.csv").write_text("time,loss\n1,2\n")
    with pytest.raises(UserError, match=r"metrics[.]csv needs the columns step,.*; got time,loss"):
        run(RUN, tmp_path)


def damaged(path, kept):
    """Cuts a file down to its first bytes, or changes a byte in the middle of it."""
    whole = bytearray(path.read_bytes())
    if kept is None:
        kept = len(whole)
        whole[kept // 2] ^= 1
    path.write_bytes(whole[:kept])


@pytest.mark.parametrize("kept", [0, 100, -1, None])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(kept, tmp_path, capsys):
    run(RUN, tmp_path / "whole")
    run(changed(steps=10), tmp_path / "damaged")
    damaged(saved(tmp_path / "damaged")[-1], kept)
    assert run(RUN, tmp_path / "damaged").began_at == 6
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "step-000000010.npz cannot be restored" in said
    assert said.endswith("going on from step-000000006.npz\n")
    assert_same(tmp_path / "whole", tmp_path / "damaged")


def test_damaged_checkpoints_alone_are_an_error_with_the_remedy(tmp_path):
    run(RUN, tmp_path)
    metrics = rows_of(tmp_path / "metrics.csv")
    for path in saved(tmp_path):
        damaged(path, 100)
    with pytest.raises(UserError, match=r"step-0+12.npz cannot be restored.*nor can.*--overwrite"):
        run(RUN, tmp_path)
    assert rows_of(tmp_path / "metrics.csv") == metrics


def test_a_checkpoint_of_another_model_is_an_error_with_the_remedy(tmp_path):
    run(RUN, tmp_path)
    for path in saved(tmp_path):
        arrays = checkpoint.read(path)
        checkpoint.write(path, {**arrays, "training/model/0": np.zeros((3, 3), np.float32)})
    with pytest.raises(UserError, match=r"cannot be restored: .*shape.*--overwrite"):
        run(RUN, tmp_path)


@pytest.mark.parametrize("name", ["metrics.csv", "workers.csv", "config.json", "accuracy.png"])
def test_a_directory_in_place_of_a_file_is_an_error(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"cannot write to .*Is a directory .*{name}"):
        run(RUN, tmp_path)


@pytest.mark.parametrize("name", ["checkpoints", "events"])
def test_a_file_in_place_of_a_directory_is_an_error(name, tmp_path):
    (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=f"cannot write to .*File exists .*{name}"):
        run(RUN, tmp_path)


@pytest.mark.parametrize("room", [0, 200, 4000])
def test_a_full_disk_is_an_error(room, tmp_path, monkeypatch):
    """Files may not grow past so many bytes: no configuration, no metrics or no checkpoint."""
    monkeypatch.setattr(run_module, "plot_accuracy", lambda *_: None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write to .*make room"):
            run(RUN, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("name", ["metrics.csv", "workers.csv"])
@pytest.mark.parametrize(
    ("old", "new"),
    [(b"\n4,", b"\nfour,"), (b"\n4,0", b"\n4,zero"), (b"\n4,", b"\n\xff,"), (b"\n8,", b"\n8,1,")],
)
def test_rows_that_no_run_has_written_are_an_error(name, old, new, tmp_path):
    run(RUN, tmp_path)
    path = tmp_path / name
    before = path.read_bytes()
    assert old in before
    path.write_bytes(before.replace(old, new))
    with pytest.raises(UserError, match=f"{name} holds what no run has written: .* Move it away"):
        run(RUN, tmp_path)


@pytest.mark.parametrize("absurd", [{"batch_size": 2**31 - 1}, {"workers": 2**31 - 1}])
def test_more_memory_than_there_is_is_an_error(absurd, tmp_path, monkeypatch):
    def lacks(*_, **__):
        raise MemoryError("Unable to allocate 1.20 TiB")

    monkeypatch.setattr(run_module, "Simulation", lacks)
    monkeypatch.setattr(run_module, "batches", lacks)
    monkeypatch.setattr(run_module.Config, "check", lambda _: None)
    with pytest.raises(UserError, match=r"need more memory than there is: .*TiB. Lower --batch"):
        run(changed(**absurd), tmp_path / "results")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("below", ["", "results"])
def test_a_folder_that_cannot_be_made_is_an_error(below, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*file.*Name an --output"):
        run(RUN, tmp_path / "file" / below)


@pytest.mark.parametrize(
    "odd",
    [
        {"steps": 0},
        {"workers": 1},
        {"partition": "shards", "batch_size": 300},  # larger than a shard
        {"partition": "dirichlet", "alpha": 1e-3, "workers": 9},
        {"gar": "krum", "f": 0},
        {"gar": "median", "loss": 1.0},
        {"l1": 1e-4, "l2": 1e-4},
    ],
)
def test_odd_configurations_run(odd, tmp_path):
    config = changed(**{"steps": 4} | odd)
    assert run(config, tmp_path).steps == config.steps
    assert png_size(tmp_path / "accuracy.png")


@pytest.mark.filterwarnings("ignore:.*encountered in cast")  # of Matplotlib, for huge losses
def test_a_destroyed_model_is_right_about_nothing(tmp_path):
    result = run(changed(byzantine=1, attack="nan"), tmp_path)
    assert result.metrics[-1]["accuracy"] == result.metrics[-1]["top3"] == 0


def test_a_dead_model_is_right_about_one_class_only(tmp_path):
    """Huge finite weights: the same answer to everything, or one that is not finite."""
    alive = run(changed(steps=40), tmp_path / "alive").metrics[-1]
    dead = run(changed(byzantine=1, attack="huge", steps=40), tmp_path / "dead").metrics[-1]
    assert dead["accuracy"] < 0.2 < 0.5 < alive["accuracy"]
    assert dead["top3"] < 0.5 < alive["top3"]


@pytest.mark.parametrize(
    ("row", "right"),  # for the labels 0, 1, 2, 3: top-1, top-3
    [
        ([0, 0, 0, 0], (1, 3)),  # ties go to the lower class
        ([1e30] * 4, (1, 3)),
        ([1, 2, 2, 0], (1, 3)),
        ([3, 2, 1, 0], (1, 3)),
        ([np.nan] * 4, (0, 0)),
        ([np.inf] * 4, (0, 0)),
        ([0, 1, 2, np.nan], (0, 0)),
        ([0, 1, 2, np.inf], (0, 0)),
        ([0, 1, 2, -np.inf], (0, 0)),
    ],
)
def test_one_label_is_the_first_and_three_are_the_first_three(row, right):
    logits = tf.constant([row] * 4, tf.float32)
    assert tuple(count_correct(logits, tf.range(4))) == right


def test_two_classes_have_no_third():
    logits = tf.constant([[1.0, 2.0], [np.nan, 2.0]])
    assert tuple(count_correct(logits, tf.constant([0, 1]))) == (0, 1)


def test_a_rule_that_cannot_go_on_ends_the_run_with_its_reason(tmp_path):
    # A row that lacks more than half of its 14 datagrams is as good as lost.
    config = changed(gar="krum", f=1, loss=0.9, steps=50)
    result = run(config, tmp_path)
    assert 0 < result.steps < 50
    reason = r"(nothing came from .*, and )?krum.*(more than f|needs n >= 2f \+ 3)"
    assert re.match(f"step {result.steps + 1}: {reason}", result.failure)
    last = rows_of(tmp_path / "metrics.csv")[-1]
    assert last["step"] == str(result.steps)
    again = run(config, tmp_path)
    assert (again.steps, again.failure) == (result.steps, result.failure)
    steps = [row["step"] for row in rows_of(tmp_path / "metrics.csv")]
    assert len(steps) == len(set(steps))


def test_progress_is_shown_on_a_terminal_only(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with Progress("krum, little", 0, 40) as progress:
            progress.show(10, 0.5)
        assert ("10/40" in stream.getvalue() and "50.0%" in stream.getvalue()) is shown
        assert bool(stream.getvalue()) is shown


def test_no_accuracy_is_shown_before_there_is_one(monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress("krum, little", 0, 40):
        pass
    assert "0/40" in stream.getvalue()
    assert "accuracy" not in stream.getvalue()


@pytest.mark.parametrize("steps", [400, 100_000, 10**7])
@pytest.mark.parametrize("width", [40, 50, 59, 60, 80, 120])
def test_progress_is_one_line_with_the_whole_count(width, steps):
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    bar = OneLine(console=console)
    task = bar.add_task("geometric-median, label-flip", total=steps, accuracy=1.0)
    bar.update(task, completed=steps - 1)
    lines = console.render_lines(bar.get_renderable())
    assert len(lines) == 1
    text = "".join(segment.text for segment in lines[0])
    assert f"{steps - 1}/{steps} accuracy 100.0%" in text
    assert ("━" in text) is (width >= 60)
    assert ("geometric-median, label-flip" in text) is (width == 120 or (width, steps) == (80, 400))


def test_the_rate_gives_way_last(monkeypatch):
    kinds = [[type(c).__name__ for c in columns(width, digits=3)] for width in (30, 45, 50, 60)]
    assert ["_Rate" in kind for kind in kinds] == [False, True, True, True]
    assert [kind.count("TextColumn") for kind in kinds] == [0, 1, 1, 1]
