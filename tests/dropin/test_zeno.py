"""Zeno in a user's script: by fit and by loops, where most workers lie; and what it says if not."""

from pathlib import Path

import pytest

from tests.mpi.launch import train
from tests.mpi.results import results_of

SCRIPT = Path(__file__).with_name("zeno_script.py")
WAYS = (
    *("held out", "arrays", "dataset", "some batches", "PyDataset"),
    *("loop", "own rule"),
)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    return results_of(4, tmp_path_factory.mktemp("judged"), SCRIPT, "judged")[0]


@pytest.mark.parametrize("way", WAYS)
def test_it_learns_from_1_of_3_workers(judged, way):
    accuracies = {rank: found[way]["accuracy"] for rank, found in judged.items()}
    assert len(set(accuracies.values())) == 1
    assert accuracies[0] > 0.8


@pytest.mark.parametrize("way", ["arrays", "dataset", "some batches", "PyDataset"])
def test_validation_is_kerass_own_beside_it(judged, way):
    history = judged[0][way]["history"]
    assert {"val_loss", "val_accuracy", "loss", "accuracy"} <= history.keys()
    assert history["val_accuracy"] > 0.8


def test_one_row_is_kept(judged):
    assert sorted(judged[0]["used"]) == [0, 0, 1]


@pytest.mark.parametrize(("threads", "works"), [(1, False), (2, True)])
def test_without_the_native_library_it_needs_a_second_thread(threads, works, tmp_path):
    """With one the losses would wait for the step, and the step for them."""
    environment = {
        "AGGREGATHOR_KERNELS": "tensorflow", "TF_NUM_INTEROP_THREADS": str(threads),
    }  # fmt: skip
    done = train(4, SCRIPT, "rate known", RESULTS=str(tmp_path), **environment)
    assert (done.returncode == 0) == works, done.stderr
    said = "aggregathor: error: zeno computes losses while a step waits for them"
    assert done.stderr.count(said) == (not works)


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (
            "fit without",
            "zeno judges gradients by the loss on validation data: give fit validation_data=(x, y),"
            " or agt.init the same, or call agt.validation(loss_fn) before the first step of a "
            "loop of your own.",
        ),
        ("loop without", "or call agt.validation(loss_fn) before the first step of a loop"),
        ("rate unknown", "which is unknown here: give the step as gar_args gamma=0.1"),
        ("session", "which is not computed in graphs of tf.compat.v1: train by fit, or by a loop"),
    ],
)
def test_what_is_missing_is_said_once(job, said, tmp_path):
    done = train(4, SCRIPT, job, RESULTS=str(tmp_path))
    assert done.returncode != 0
    assert done.stderr.count(said) == 1, done.stderr
    assert "Traceback" not in done.stderr
