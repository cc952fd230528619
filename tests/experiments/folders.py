"""What runs leave in a folder, read back for comparison."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from aggregathor import checkpoint
from experiments.config import Config

ROOT = Path(__file__).parents[2]
RUN = Config(workers=5, batch_size=8, steps=12, eval_every=4, checkpoint_every=6)


def data_dir(name):
    """Where tensorflow-datasets keeps its data; skips the test on a machine that has none."""
    beside = ROOT.parent / "shared" / "datasets" / "tfds"
    where = os.environ.get("TFDS_DATA_DIR") or beside
    if not (Path(where) / name).is_dir():
        pytest.skip(f"no {name} in TFDS_DATA_DIR, or else ../shared/datasets/tfds")
    return str(where)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def trained(folder):
    """All that a run recorded and learnt, without the time it took."""
    metrics = rows_of(folder / "metrics.csv")
    for row in metrics:
        del row["wall_time_s"]
    state = checkpoint.read(saved(folder)[-1])
    return metrics, rows_of(folder / "workers.csv"), state


def saved(folder):
    """The checkpoints of a run, oldest first."""
    return sorted((folder / "checkpoints").iterdir())


def assert_same(folder, other):
    (metrics, workers, state), (metrics2, workers2, state2) = trained(folder), trained(other)
    assert metrics == metrics2
    assert workers == workers2
    assert state.keys() == state2.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(value, state2[name], err_msg=name)
