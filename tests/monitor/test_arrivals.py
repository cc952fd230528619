import csv

import numpy as np
import pytest
import tensorflow as tf

from aggregathor.monitor.arrivals import ArrivalMonitor
from aggregathor.protocols.arrivals import ArrivalReport


@pytest.fixture
def monitor(tmp_path):
    def make(name="workers.csv"):
        writer = tf.summary.create_file_writer(str(tmp_path / "events"))
        return ArrivalMonitor(tmp_path / name, 3, ("not finite", "score"), writer)

    return make


def report(row, staleness=0, why="", dropped=({}, {}, {})):
    return ArrivalReport(row, 0, 0, staleness, not why, why, 1, 0.0, lambda: list(dropped))


def rows_of(monitor):
    with monitor.path.open(newline="") as file:
        return [dict(zip(monitor.columns, row, strict=True)) for row in csv.reader(file)]


def test_a_row_says_what_came_of_a_worker_since_the_last_one(monitor):
    monitor = monitor()
    for each in (report(0, 4), report(0, 2, "score"), report(2, 0, "not finite"), report(2, 1)):
        monitor.record(each)
    last = report(0, 0, dropped=({}, {"late": 2, "early": 1}, {}))
    monitor.record(last)
    monitor.write(5, last)
    assert rows_of(monitor) == [
        {"step": "5", "worker": "0", "arrivals": "3", "accepted": "0.666667", "staleness": "2",
         "most_stale": "4", "dropped": "0", "not_finite": "0", "score": "1"},
        {"step": "5", "worker": "1", "arrivals": "0", "accepted": "nan", "staleness": "nan",
         "most_stale": "0", "dropped": "3", "not_finite": "0", "score": "0"},
        {"step": "5", "worker": "2", "arrivals": "2", "accepted": "0.5", "staleness": "0.5",
         "most_stale": "1", "dropped": "0", "not_finite": "1", "score": "0"},
    ]  # fmt: skip
    monitor.record(report(1, 7))
    monitor.write(6, report(1))
    assert [row["arrivals"] for row in rows_of(monitor)[3:]] == ["0", "1", "0"]


def test_sums_go_on_from_a_checkpoint(monitor):
    first, second = monitor(), monitor("other.csv")
    for each in (report(0, 3), report(1, 1, "score")):
        first.record(each)
    second.restore(first.state())
    for each in (first, second):
        each.record(report(1, 5))
        each.write(3, report(1))
    assert first.path.read_text() == second.path.read_text()
    np.testing.assert_array_equal(first.state()["arrivals"], 0)
