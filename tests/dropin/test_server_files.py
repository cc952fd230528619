"""Files of TensorFlow that a script names, on one rank: only the server writes them."""

import os
import threading
import time

import keras
import pytest
import tensorflow as tf
from tensorflow.python.checkpoint import checkpoint_management
from tensorflow.python.checkpoint.functional_saver import MultiDeviceSaver
from tensorflow.python.profiler import profiler_v2
from tensorflow.python.summary.writer import writer as summaries
from tensorflow.python.training import py_checkpoint_reader

from aggregathor import notes
from aggregathor.dropin import server_files
from aggregathor.dropin.keras.files import PrivateFiles, tell_of_models
from aggregathor.dropin.server_files import ServerFiles

PLACES = [
    *((tf.saved_model, "save"), (tf.saved_model, "load"), (tf.summary, "create_file_writer")),
    *((tf.data.Dataset, name) for name in ("save", "cache", "snapshot")),
    *((tf.train.Checkpoint, name) for name in ("restore", "read")),
    *((module, "get_checkpoint_state") for module in (tf.train, tf.compat.v1.train)),
    (MultiDeviceSaver, "save"),
    (py_checkpoint_reader, "NewCheckpointReader"),
    *((summaries, name) for name in ("EventFileWriter", "EventFileWriterV2")),
    *((profiler_v2, "stop"), (tf.profiler.experimental, "stop")),
    *((tf.io.TFRecordWriter, "__init__"), (tf.io.gfile.GFile, "__init__")),
    *(
        (checkpoint_management, name)
        for name in (
            *("update_checkpoint_state_internal", "get_checkpoint_state"),
            "_delete_file_if_exists",
        )
    ),
    *((keras.Model, name) for name in ("save", "save_weights", "export", "load_weights")),
    *((m, n) for m in (keras.models, keras.saving) for n in ("save_model", "load_model")),
    *((tf.keras.models, n) for n in ("save_model", "load_model")),
]
# Of Keras, with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


class Words:
    """Of a rank whose server tells what the test says."""

    rank = 1

    def __init__(self):
        self.told = []
        self.is_over = False

    def tell_written(self, path):
        self.told.append(path)

    def written(self):
        told, self.told = self.told, []
        return told

    def ended(self):
        return self.is_over


@pytest.fixture
def unpatched(monkeypatch):
    monkeypatch.setattr(server_files, "_WAIT_S", 0.3)
    for place, name in PLACES:
        monkeypatch.setattr(place, name, getattr(place, name))
    monkeypatch.setattr(tf.data.Dataset, "load", staticmethod(tf.data.Dataset.load))


@pytest.fixture
def server(unpatched):
    words = Words()
    tell_of_models(ServerFiles(words, is_server=True))
    return words


@pytest.fixture
def worker(unpatched):
    words = Words()
    files = ServerFiles(words, is_server=False)
    models = PrivateFiles(1, files)
    words.files = files
    yield words
    files.remove()
    models.remove()


def checkpoint(value):
    return tf.train.Checkpoint(v=tf.Variable(float(value)))


def files_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_worker_writes_no_checkpoint_and_reads_the_servers(worker, tmp_path, unpatched):
    theirs = tmp_path / "ckpt-1"
    with worker.files.privately():  # as the server
        checkpoint(7).write(str(theirs))
    there = files_in(tmp_path)
    mine = checkpoint(3)
    path = mine.save(str(tmp_path / "ckpt"))
    assert path == str(theirs)
    assert files_in(tmp_path) == there
    later = threading.Timer(0.1, lambda: worker.tell_written(path))
    later.start()
    begun = time.monotonic()
    mine.restore(path)
    assert time.monotonic() - begun >= 0.1
    assert float(mine.v) == 7
    assert tf.train.load_checkpoint(path).get_tensor("v/.ATTRIBUTES/VARIABLE_VALUE") == 7
    assert mine.write(str(tmp_path / "other")) == str(tmp_path / "other")
    assert files_in(tmp_path) == there


def test_the_server_tells_of_what_it_has_written_when_it_is_there(server, tmp_path):
    saved = checkpoint(1)
    path = saved.save(str(tmp_path / "ckpt"))
    assert server.written() == [path, str(tmp_path / "checkpoint")]
    assert os.path.exists(f"{path}.index")
    manager = tf.train.CheckpointManager(saved, str(tmp_path / "managed"), max_to_keep=1)
    paths = [manager.save(), manager.save()]
    assert [p for p in server.written() if p in paths] == paths
    assert not os.path.exists(f"{paths[0]}.index")
    tf.saved_model.save(tf.Module(), str(tmp_path / "module"))
    tf.data.Dataset.range(3).save(str(tmp_path / "data"))
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(3)])
    model.save(tmp_path / "a.keras")
    model.save_weights(tmp_path / "a.weights.h5")
    names = ["module", "data", "a.keras", "a.weights.h5"]
    assert server.written() == [str(tmp_path / name) for name in names]


def test_a_manager_on_a_worker_counts_and_leaves_the_folder_alone(worker, tmp_path):
    with worker.files.privately():
        theirs = tf.train.CheckpointManager(checkpoint(5), str(tmp_path), max_to_keep=3)
        paths = [theirs.save() for _ in range(2)]
    there = files_in(tmp_path)
    mine = tf.train.CheckpointManager(checkpoint(1), str(tmp_path), max_to_keep=1)
    mine.checkpoint.save_counter.assign(2)
    for number in (3, 4):
        path = mine.save()
        assert path == str(tmp_path / f"ckpt-{number}")
        worker.tell_written(path)
        worker.tell_written(str(tmp_path / "checkpoint"))
    assert files_in(tmp_path) == there
    assert mine.checkpoints == [path]
    assert tf.train.latest_checkpoint(str(tmp_path)) == paths[-1]


def test_what_the_server_does_not_write_is_not_waited_for_long(worker, tmp_path, capsys):
    mine = checkpoint(3)
    path = mine.save(str(tmp_path / "best"))
    mine.restore(path).assert_consumed().expect_partial()
    assert float(mine.v) == 3
    said = capsys.readouterr().err
    assert f"rank 1 reads {path}, which the server has written 0 times" in said
    assert f"rank 1 has no {path}, and keeps its values" in said
    begun = time.monotonic()
    worker.files.await_written(path)
    assert time.monotonic() - begun < 0.2
    with pytest.raises(tf.errors.NotFoundError):  # as ever, what nobody has written
        mine.restore(str(tmp_path / "nothere"))


def test_what_a_server_that_has_ended_had_told_still_comes(worker, tmp_path, capsys):
    """A message takes some polls, and the server may be at its end already."""
    path = checkpoint(3).write(str(tmp_path / "ckpt"))
    worker.is_over = True
    threading.Timer(0.1, lambda: worker.tell_written(path)).start()
    assert worker.files.await_written(path)
    assert "would have" not in capsys.readouterr().err


def test_a_saved_model_and_a_dataset_are_the_servers(worker, tmp_path):
    module = tf.Module()
    module.v = tf.Variable(7.0)
    with worker.files.privately():
        tf.saved_model.save(module, str(tmp_path / "module"))
        tf.data.Dataset.range(7, 8).save(str(tmp_path / "data"))
    there = files_in(tmp_path)
    module.v.assign(3.0)
    tf.saved_model.save(module, str(tmp_path / "module"))
    tf.data.Dataset.range(3, 4).save(str(tmp_path / "data"))
    assert files_in(tmp_path) == there
    worker.told += [str(tmp_path / "module"), str(tmp_path / "data")]
    assert float(tf.saved_model.load(str(tmp_path / "module")).v) == 7
    assert [int(each) for each in tf.data.Dataset.load(str(tmp_path / "data"))] == [7]


@pytest.mark.parametrize("way", ["cache", "snapshot"])
def test_a_cache_is_each_workers_own(way, worker, tmp_path):
    path = str(tmp_path / "features")
    dataset = getattr(tf.data.Dataset.range(5), way)(path)
    for _ in range(2):
        assert [int(each) for each in dataset] == [0, 1, 2, 3, 4]
    assert files_in(tmp_path) == []
    named = {"filename" if way == "cache" else "path": path}
    assert [int(each) for each in getattr(tf.data.Dataset.range(3), way)(**named)]
    assert [int(e) for e in tf.data.Dataset.range(2).cache()] == [0, 1]
    folder = worker.files._folder
    worker.files.remove()
    assert not folder.exists()


def test_a_cache_that_was_whole_before_the_job_is_read(worker, tmp_path):
    path = str(tmp_path / "features")
    cache = tf.data.Dataset.cache.__wrapped__
    assert len(list(cache(tf.data.Dataset.range(5), path))) == 5
    os.utime(f"{path}.index", (1, 1))
    assert len(list(tf.data.Dataset.range(9).cache(path))) == 5


def test_a_worker_writes_no_summaries(worker, tmp_path):
    writer = tf.summary.create_file_writer(str(tmp_path))
    with writer.as_default():
        tf.summary.scalar("loss", 1.0, step=1)
    writer.flush()
    with tf.Graph().as_default() as graph:
        old = tf.compat.v1.summary.FileWriter(str(tmp_path), graph)
        old.add_summary(tf.compat.v1.Summary(), 1)
        old.reopen()
        old.close()
    assert old.get_logdir() == str(tmp_path)
    assert files_in(tmp_path) == []


def test_a_model_is_loaded_from_the_servers_file_once_it_is_there(worker, tmp_path):
    def model(value):
        made = keras.Sequential([keras.Input([2]), keras.layers.Dense(1)])
        made.set_weights([w * 0 + value for w in made.get_weights()])
        return made

    def value_of(loaded):
        return float(loaded.get_weights()[0][0, 0])

    path = tmp_path / "a.keras"
    model(3).save(path)
    assert files_in(tmp_path) == []
    assert value_of(keras.models.load_model(path)) == 3  # the server has not written it
    keras.Model.save.__wrapped__(model(7), path)
    model(3).save(path)
    worker.tell_written(str(path))
    assert value_of(keras.models.load_model(path)) == 7
    model(1).export(tmp_path / "exported", verbose=False)
    assert files_in(tmp_path) == ["a.keras"]


def profile(folder):
    with tf.profiler.experimental.Profile(str(folder / "a")):
        pass
    tf.profiler.experimental.start(str(folder / "b"))
    tf.profiler.experimental.stop()
    tf.summary.trace_on(graph=False, profiler=True, profiler_outdir=str(folder / "c"))
    with tf.summary.create_file_writer(str(folder / "events")).as_default():
        tf.summary.trace_export("step", step=0)
    with pytest.raises(tf.errors.UnavailableError, match="No profiler is running"):
        tf.profiler.experimental.stop()


def test_the_server_writes_profiles(server, tmp_path):
    profile(tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {"a", "b", "c", "events"}


def test_a_worker_takes_profiles_and_writes_none(worker, tmp_path):
    """Ranks of one host that end in the same second would write the same file."""
    profile(tmp_path)
    assert files_in(tmp_path) == []


def test_files_that_tensorflow_opens_to_write_are_noted(worker, tmp_path, monkeypatch):
    monkeypatch.setattr(notes, "_kept", {})
    monkeypatch.setattr(notes.tempfile, "gettempdir", lambda: "/nowhere")
    monkeypatch.chdir(tmp_path)
    with tf.io.TFRecordWriter("rows") as writer:
        writer.write(b"row")
    for name, mode in (("rows", "rb"), ("text", "w"), ("more", "a")):
        with tf.io.gfile.GFile(name, mode) as file:
            assert file.read() if "r" in mode else file.write("a") is None
    assert notes.kept() == {notes.OPENED: ["rows", "text", "more"]}
