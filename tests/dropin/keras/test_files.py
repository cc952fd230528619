"""Models that a script saves and loads on a worker, where only the server writes."""

import keras
import numpy as np
import pytest

from aggregathor.dropin.keras import files

# Of Keras, with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def worker(monkeypatch):
    for name in (*files._WRITING, "load_weights"):
        monkeypatch.setattr(keras.Model, name, getattr(keras.Model, name))
    for module in files._MODULES:
        for name in ("save_model", "load_model"):
            monkeypatch.setattr(module, name, getattr(module, name))
    private = files.PrivateFiles(rank=2)
    yield private
    private.remove()


def model(value):
    made = keras.Sequential([keras.Input([2]), keras.layers.Dense(3)])
    made.set_weights([np.full_like(weights, value) for weights in made.get_weights()])
    return made


def value_of(found):
    return float(found.get_weights()[0][0, 0])


def test_what_a_worker_saves_it_loads_and_nobody_else_finds(worker, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model(1).save("a.keras")
    model(2).save(tmp_path / "b.keras")
    keras.saving.save_model(model(3), "c.keras")
    model(4).save_weights("d.weights.h5")
    model(5).save("a.keras")  # again
    assert list(tmp_path.iterdir()) == []
    assert value_of(keras.models.load_model(tmp_path / "a.keras")) == 5
    assert value_of(keras.saving.load_model("b.keras")) == 2
    assert value_of(keras.models.load_model("c.keras")) == 3
    loaded = model(0)
    loaded.load_weights("d.weights.h5")
    assert value_of(loaded) == 4
    assert capsys.readouterr().err.count("rank 2 leaves files of sequential") == 1
    folder = worker._folder
    worker.remove()
    assert not folder.exists()


def test_other_files_are_read_as_ever(worker, tmp_path, capsys):
    there = tmp_path / "there.weights.h5"
    keras.Model.save_weights.__wrapped__(model(6), there)
    loaded = model(0)
    loaded.load_weights(there)
    assert value_of(loaded) == 6
    loaded.load_weights(tmp_path / "of_a_callback.weights.h5")
    assert value_of(loaded) == 6
    assert "rank 2 has no " in capsys.readouterr().err
    with pytest.raises(ValueError, match="not found"):
        keras.models.load_model(tmp_path / "nothere.keras")
