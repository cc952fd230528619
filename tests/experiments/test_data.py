import dataclasses
import sys

import numpy as np
import pytest

from aggregathor.errors import UserError
from experiments import tasks
from experiments.config import Config
from experiments.dataset import hold_out
from experiments.run import _load, run
from tests.experiments.folders import data_dir


def assert_plausible(data, num_train, num_test, shape):
    assert data.image_shape == shape
    assert data.train_images.shape == (num_train, *shape)
    assert data.test_images.shape == (num_test, *shape)
    assert data.train_images.dtype == data.test_images.dtype == np.uint8
    assert data.train_labels.dtype == data.test_labels.dtype == np.int32
    assert data.num_classes == 10
    for labels, total in ((data.train_labels, num_train), (data.test_labels, num_test)):
        counts = np.bincount(labels, minlength=10)
        assert len(counts) == 10
        assert counts.sum() == total
        assert counts.min() > 0.07 * total  # every class about a tenth
    seen = data.train_images[:100] * data.scale + data.offset
    assert -0.5 <= seen.min() < seen.max() <= 1


def test_digits_come_without_a_download_and_always_in_the_same_order():
    data, again = tasks.task("digits").load(""), tasks.task("digits").load("")
    assert_plausible(data, 1400, 397, (8, 8, 1))
    assert data.train_images.max() * data.scale == 1
    np.testing.assert_array_equal(data.train_images, again.train_images)
    np.testing.assert_array_equal(data.test_labels, again.test_labels)


def test_mnist_loads_and_trains(tmp_path):
    where = data_dir("mnist")
    data = tasks.task("mnist").load(where)
    assert_plausible(data, 60000, 10000, (28, 28, 1))
    np.testing.assert_array_equal(np.bincount(data.test_labels), [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009])  # fmt: skip
    config = Config("mnist", byzantine=2, attack="omniscient", steps=30, data_dir=where)
    small = dataclasses.replace(
        data, test_images=data.test_images[:2000], test_labels=data.test_labels[:2000]
    )

    def trained(**rule):
        return run(dataclasses.replace(config, **rule), tmp_path / rule["gar"], dataset=small)

    with_rule, without = trained(gar="median"), trained(gar="average", f=0)
    assert with_rule.accuracy > 0.6
    assert without.accuracy < 0.2
    assert with_rule.metrics[0]["accuracy"] < 0.2  # of step 0


def test_cifar10_loads():
    data = tasks.task("cifar10").load(data_dir("cifar10"))
    assert_plausible(data, 50000, 10000, (32, 32, 3))
    assert (data.scale, data.offset) == (1 / 255, -0.5)
    np.testing.assert_array_equal(np.bincount(data.test_labels), [1000] * 10)


@pytest.mark.parametrize("by_variable", [False, True])
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_data_that_are_not_prepared_are_an_error_with_the_remedy(
    name, by_variable, tmp_path, monkeypatch
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path) if by_variable else "nowhere")
    with pytest.raises(UserError, match=f"{name} .* is not prepared in {tmp_path}") as raised:
        tasks.task(name).load("" if by_variable else str(tmp_path))
    assert f"tfds.load('{name}', data_dir='{tmp_path}')" in str(raised.value)


SHAPES = """
import numpy as np
from keras import Sequential, layers
from experiments.dataset import Dataset

def load(data_dir):
    labels = np.arange(60, dtype=np.int32) % 2
    images = np.broadcast_to(labels.astype(np.uint8)[:, None, None, None], (60, 2, 2, 1)).copy()
    return Dataset(images, labels, images, labels, num_classes=2, scale=1.0, offset=-0.5)
"""
MODEL = """
def model(dataset):
    return {}
"""


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    """Makes an experiment "shapes" of its file's text."""
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path / "tasks")])
    (tmp_path / "tasks").mkdir()
    yield (tmp_path / "tasks" / "shapes.py").write_text
    sys.modules.pop("experiments.tasks.shapes", None)
    vars(tasks).pop("shapes", None)


@pytest.mark.parametrize(
    "model",
    [
        MODEL.format("[layers.Flatten(), layers.Dense(dataset.num_classes)]"),
        MODEL.format("Sequential([layers.Flatten(), layers.Dense(2)])"),
        "MODEL = 'digits-mlp'",
    ],
)
def test_an_experiment_is_one_file_with_data_and_model(model, shapes, tmp_path):
    shapes(SHAPES + model)
    result = run(Config("shapes", steps=60, eval_every=60), tmp_path / "results")
    assert result.accuracy == 1
    assert result.metrics[-1]["loss"] < 0.2  # ln 2 = 0.69 for who knows nothing
    other = Config("shapes", model="phocas-mlp", steps=1)
    assert run(other, tmp_path / "other").steps == 1
    assert other.digest() != Config("shapes").digest()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nonesuch", "cannot be imported: ModuleNotFoundError: No module named 'nonesuch'"),
        ("def load(:", "cannot be imported: SyntaxError: invalid syntax"),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("MODEL = 'digits-mlp'", "must give its data"),
        (SHAPES, "must name its MODEL or make it"),
        (
            SHAPES + MODEL.format("[layers.Flatten(), layers.Dense(3)]"),
            "the model must give 2 logits .*3",
        ),
        (SHAPES + MODEL.format("[layers.Dense(2)]"), "the model must give 2 logits .*2, 2, 2"),
    ],
)
def test_a_file_that_is_no_experiment_is_an_error_that_says_why(text, said, shapes, tmp_path):
    shapes(text)
    with pytest.raises(UserError, match=f"experiments.tasks.shapes:? {said}"):
        run(Config("shapes", steps=1), tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_data_that_are_not_prepared_leave_no_folder(tmp_path):
    with pytest.raises(UserError, match="is not prepared"):
        run(Config("mnist", data_dir=str(tmp_path)), tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_what_is_held_out_is_in_one_part_only():
    """Each image is its own number."""
    data = tasks.task("digits").load("")
    numbered = np.arange(len(data.train_labels), dtype=np.int32).reshape(-1, 1, 1, 1)
    data = dataclasses.replace(data, train_images=numbered)
    rest, held_out = hold_out(data, 0.1, seed=3)
    parts = [part.train_images.ravel() for part in (rest, held_out)]
    assert [len(part) for part in parts] == [1260, 140]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), numbered.ravel())
    for part in (rest, held_out):  # with their labels, and the test set as it was
        numbers = part.train_images.ravel()
        np.testing.assert_array_equal(part.train_labels, data.train_labels[numbers])
        assert part.test_images is data.test_images
    assert np.bincount(held_out.train_labels).min() > 3
    again, other = (hold_out(data, 0.1, seed)[1].train_images for seed in (3, 4))
    np.testing.assert_array_equal(again, held_out.train_images)
    assert not np.array_equal(other, held_out.train_images)
    assert hold_out(data, 0.0, seed=3) == (data, None)
    assert len(hold_out(data, 1e-9, seed=3)[1].train_labels) == 1


@pytest.mark.parametrize("partition", ["sampling", "shards", "dirichlet"])
def test_no_worker_draws_what_the_server_judges_by(partition):
    """Of the server's rank, a worker's and the simulation, which load alike."""
    data = tasks.task("digits").load("")
    data = dataclasses.replace(
        data, train_images=data.train_images + np.arange(1400).reshape(-1, 1, 1, 1) * 17
    )
    config = Config(
        gar="zeno", f=1, validation_share=0.2, partition=partition, batch_size=100, seed=5
    )
    loaded = _load(config, data)
    judged = set(map(bytes, loaded.validation[0]))
    assert len(judged) == 280
    drawn = set()
    for step in range(20):
        images, _ = loaded.batches.at(step)
        drawn |= set(map(bytes, images.reshape(-1, 8, 8, 1)))
    assert len(drawn) > 1000
    assert drawn.isdisjoint(judged)
