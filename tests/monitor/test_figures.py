import csv
import math
import subprocess

import numpy as np
import pytest
import tensorflow as tf

from aggregathor import checkpoint
from aggregathor.monitor.figures import Monitor, begin_csv, distances_to
from aggregathor.protocols.rounds import RoundReport
from lossympi import RoundStats, WorkerStats
from tests.warm.start import python as warm_python


def report(usage_n, delivered_n, stack_nd=None, grad_d=None, stats=None):
    n = len(usage_n)
    stack_nd = np.zeros((n, 4), np.float32) if stack_nd is None else stack_nd
    grad_d = np.zeros(4, np.float32) if grad_d is None else grad_d
    return RoundReport(
        stack_nd, grad_d, np.asarray(usage_n, float), np.asarray(delivered_n, float), stats
    )


def stats_of(*late_and_rejected):
    """Statistics of a round in which of each worker so many came late, and these were rejected."""
    workers = (
        WorkerStats(1, True, True, math.inf, 0, 1, late, 0, why) for late, why in late_and_rejected
    )
    return RoundStats(0, "complete", 0, 1, tuple(workers))


@pytest.fixture
def make_monitor(tmp_path):
    def make(num_workers=2):
        writer = tf.summary.create_file_writer(str(tmp_path / "events"))
        return Monitor(tmp_path / "workers.csv", num_workers, writer), writer

    return make


def rows_of(path):
    with path.open(newline="") as file:
        return [dict(zip(Monitor.COLUMNS, row, strict=True)) for row in csv.reader(file)]


def scalars_of(folder):
    """{(tag, step): value} of the TensorBoard events in a folder."""
    found = {}
    for path in folder.iterdir():
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                found[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    return found


def test_rows_go_through_no_link(make_monitor, tmp_path):
    (tmp_path / "victim").write_text("precious")
    monitor, _ = make_monitor()
    monitor.path.symlink_to("victim")
    monitor.record(report([1, 0], [1, 1]))
    with pytest.raises(OSError, match="symbolic link"):
        monitor.write(1, report([1, 0], [1, 1]))
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_row_is_the_mean_of_the_rounds_since_the_last_one(make_monitor):
    monitor, writer = make_monitor()
    for usage_n, delivered_n in [([1, 0], [1, 0.5]), ([0, 0], [1, 0.0]), ([1, 1], [1, 1.0])]:
        monitor.record(report(usage_n, delivered_n))
    stack_nd = np.array([[3, 4, 0, 0], [0, 0, 0, 0]], np.float32)
    monitor.write(3, report([1, 1], [1, 1], stack_nd))
    monitor.record(report([0, 1], [1, 0.25]))
    monitor.write(4, report([0, 1], [1, 0.25]))
    writer.close()

    rows = rows_of(monitor.path)
    assert [(row["step"], row["worker"]) for row in rows] == [
        ("3", "0"), ("3", "1"), ("4", "0"), ("4", "1"),
    ]  # fmt: skip
    figures = [[float(row[name]) for name in Monitor.COLUMNS[2:]] for row in rows]
    expected = [[2 / 3, 5, 1, 0, 0], [1 / 3, 0, 0.5, 0, 0], [0, 0, 1, 0, 0], [1, 0, 0.25, 0, 0]]
    np.testing.assert_allclose(figures, expected, rtol=1e-5)

    scalars = scalars_of(monitor.path.parent / "events")
    assert len(scalars) == 4 * 5
    assert scalars["worker_00/distance", 3] == 5
    assert scalars["worker_01/delivered", 4] == 0.25
    assert scalars["worker_01/selected", 3] == pytest.approx(1 / 3)


def test_what_came_late_or_was_rejected_is_added_up(make_monitor):
    monitor, writer = make_monitor()
    monitor.record(report([1, 1], [1, 1], stats=stats_of((1, {}), (0, {"forged": 1000000}))))
    monitor.record(report([1, 1], [1, 1], stats=stats_of((2, {}), (0, {"forged": 7, "early": 1}))))
    monitor.write(2, report([1, 1], [1, 1]))
    monitor.record(report([1, 1], [1, 1], stats=stats_of((0, {}), (0, {}))))
    monitor.write(3, report([1, 1], [1, 1]))
    writer.close()
    assert [(row["late"], row["rejected"]) for row in rows_of(monitor.path)] == [
        ("3", "0"), ("0", "1000008"), ("0", "0"), ("0", "0"),
    ]  # fmt: skip
    scalars = scalars_of(monitor.path.parent / "events")
    assert scalars["worker_01/rejected", 2] == 1000008
    reasons = {tag: value for (tag, _), value in scalars.items() if tag.count("/") > 1}
    assert reasons == {"worker_01/rejected/forged": 1000007, "worker_01/rejected/early": 1}


def test_the_last_rounds_get_rows_too(make_monitor):
    monitor, writer = make_monitor()
    monitor.write_rest(0)
    assert not monitor.path.exists()
    monitor.record(report([1, 0], [1, 1]))
    monitor.write_rest(1)
    monitor.write_rest(1)
    writer.close()
    assert [(r["selected"], r["distance"]) for r in rows_of(monitor.path)] == [
        ("1", "0"), ("0", "0"),
    ]  # fmt: skip
    assert scalars_of(monitor.path.parent / "events")["worker_00/distance", 1] == 0


@pytest.mark.parametrize("poison", [0.0, 1e30, 3e38, np.inf, -np.inf, np.nan])
def test_a_hostile_row_is_written_as_it_is(poison, make_monitor):
    monitor, writer = make_monitor()
    poisoned = report([1, 0], [1, 1], np.array([[0] * 4, [poison] * 4], np.float32))
    monitor.record(poisoned)
    monitor.write(1, poisoned)
    writer.close()
    distance = float(rows_of(monitor.path)[1]["distance"])
    bounded = 2 * abs(poison) if np.isfinite(poison) else np.inf
    assert distance == pytest.approx(bounded)
    with np.errstate(over="ignore"):
        expected = np.float32(bounded)  # which TensorBoard shows
    shown = scalars_of(monitor.path.parent / "events")["worker_01/distance", 1]
    assert shown == pytest.approx(expected)


def test_a_csv_that_is_there_is_not_begun_again(tmp_path):
    begin_csv(tmp_path / "workers.csv", Monitor.COLUMNS)
    assert (tmp_path / "workers.csv").read_text().strip() == ",".join(Monitor.COLUMNS)
    with pytest.raises(FileExistsError):
        begin_csv(tmp_path / "workers.csv", Monitor.COLUMNS)


def test_events_need_neither_tensorboard_nor_eager_execution(tmp_path):
    """TensorFlow does not install TensorBoard, and scripts of v1 switch eager execution off."""
    script = """
import sys
sys.modules["tensorboard"] = None
import numpy as np, tensorflow as tf
from tensorflow.python.eager import context
from pathlib import Path
from aggregathor import checkpoint
from aggregathor.monitor.figures import Monitor
from aggregathor.protocols.rounds import RoundReport
tf.compat.v1.disable_v2_behavior()
folder = Path(sys.argv[1])
zeros = np.zeros(2)
report = RoundReport(np.zeros((2, 3), np.float32), np.zeros(3, np.float32), zeros, zeros)
def round():
    with context.eager_mode():
        writer = tf.summary.create_file_writer(str(folder / "events"))
        monitor = Monitor(folder / "workers.csv", 2, writer)
        monitor.record(report)
        monitor.write(1, report)
    return zeros
with tf.compat.v1.Session() as session:
    session.run(tf.numpy_function(round, [], tf.float64))
"""
    subprocess.run([*warm_python(), "-c", script, str(tmp_path)], check=True, capture_output=True)
    assert len(rows_of(tmp_path / "workers.csv")) == 2
    assert len(scalars_of(tmp_path / "events")) == 2 * 5


def test_rounds_without_a_row_yet_are_in_the_checkpoint(make_monitor, tmp_path):
    before, _ = make_monitor()
    before.record(report([1, 0], [1, 0.5], stats=stats_of((2, {}), (0, {"forged": 3}))))
    checkpoint.write(tmp_path / "saved", before.state())
    after, writer = make_monitor()
    after.restore(checkpoint.read(tmp_path / "saved"))
    last = report([0, 0], [1, 1])
    after.record(last)
    after.write(2, last)
    writer.close()
    assert [row["selected"] for row in rows_of(after.path)] == ["0.5", "0"]
    assert [row["delivered"] for row in rows_of(after.path)] == ["1", "0.75"]
    assert [row["late"] for row in rows_of(after.path)] == ["2", "0"]
    assert [row["rejected"] for row in rows_of(after.path)] == ["0", "3"]


def distance(row_d, grad_d):
    """The definition, one coordinate at a time."""
    present = [(float(x), float(g)) for x, g in zip(row_d, grad_d, strict=True) if x == x]
    total = sum((x - g) ** 2 for x, g in present) * len(row_d)
    root = (total / len(present)) ** 0.5 if present else np.inf
    return root if np.isfinite(root) else np.inf


def test_distances_are_over_what_arrived_and_scaled_up(rng):
    stack_nd = rng.standard_normal((6, 40)).astype(np.float32)
    grad_d = rng.standard_normal(40).astype(np.float32)
    stack_nd[1, ::2] = np.nan
    stack_nd[2] = np.nan
    stack_nd[3, 5] = np.inf
    stack_nd[4] = 3e38  # squares are beyond float32
    stack_nd[5, :39] = np.nan
    got_n = distances_to(stack_nd, grad_d)
    np.testing.assert_allclose(got_n, [distance(row_d, grad_d) for row_d in stack_nd], rtol=1e-6)
    assert got_n[2] == got_n[3] == np.inf
    assert got_n[4] == pytest.approx(3e38 * 40**0.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_everyone_is_infinitely_far_from_a_spoilt_aggregate(bad):
    grad_d = np.array([0, bad], np.float32)
    stack_nd = np.array([[0, 1], [0, np.inf], [0, -np.inf]], np.float32)
    np.testing.assert_array_equal(distances_to(stack_nd, grad_d), [np.inf] * 3)
