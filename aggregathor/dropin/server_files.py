"""Files that TensorFlow writes: those that the script names are the server's, whole.

All ranks run the script, so each would write the same checkpoint, over the others' and with slots
that a worker never uses. A worker's write is left out here. The server tells the workers of each
file that it has written; a worker that reads one which its own script has written before waits
until the server has done so as often, and reads the server's.

| call | server | worker |
| --- | --- | --- |
| ``tf.train.Checkpoint``, ``CheckpointManager``, v1's ``Saver`` | writes | writes nothing; reads the server's |
| ``tf.saved_model.save``, ``Dataset.save`` | writes | writes nothing; reads the server's |
| ``Dataset.cache(FILE)``, ``Dataset.snapshot`` | writes | has a private place, or reads a cache that was whole before the job |
| summary writers, v1's too; profiles | writes | writes nothing |
| ``save``, ``save_weights``, ``export`` of models | writes | has a private copy; reads the server's if it can see it |
| ``keras.utils.get_file`` | one rank of a host fetches: see ``keras/downloads.py`` | the same |
| ``tf.io.write_file``, ``tf.io.gfile``, ``TFRecordWriter``, ``numpy.save``, ``open``, ``os`` | as the script says | the same: a script may have files of each rank |
"""  # noqa: E501 - the table

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import tensorflow as tf

from aggregathor import notes
from aggregathor.internals import tensorflow as internals

_log = logging.getLogger(__name__)
_WAIT_S = 20.0  # for a file that the server may never write, as it decides by its own batches
_LAST_S = 1.0  # for what the server has told before it ended
_POLL_S = 0.01


class Words(Protocol):
    """What ranks say of files: see ``Ranks``."""

    rank: int

    def tell_written(self, path: str) -> None:
        """Server: tells the workers that a file is written."""

    def written(self) -> list[str]:
        """Worker: returns what the server has told since the last call."""

    def ended(self) -> bool:
        """Worker: whether the training is over."""


class ServerFiles:
    """Which files the server has written, on a worker; tells of them, on the server."""

    def __init__(self, words: Words, *, is_server: bool) -> None:
        """Patches TensorFlow."""
        self._words = words
        self._is_server = is_server
        self._started_s = time.time()
        self._expected: collections.Counter[str] = collections.Counter()
        self._written: collections.Counter[str] = collections.Counter()
        self._is_private = False
        self._folder: Path | None = None
        self._said = False
        internals.watch_checkpoints(self._writing, self._reading, deletes=is_server)
        tf.saved_model.save = self._writer(tf.saved_model.save, "export_dir", 1)
        tf.saved_model.load = self._reader(tf.saved_model.load)
        tf.data.Dataset.save = self._writer(tf.data.Dataset.save, "path", 1)
        tf.data.Dataset.load = staticmethod(self._reader(tf.data.Dataset.load))
        if not is_server:
            tf.train.Checkpoint.restore = self._restore(tf.train.Checkpoint.restore)
            tf.train.Checkpoint.read = self._restore(tf.train.Checkpoint.read)
            tf.data.Dataset.cache = self._private(tf.data.Dataset.cache, "filename")
            tf.data.Dataset.snapshot = self._private(tf.data.Dataset.snapshot, "path")
            tf.summary.create_file_writer = self._no_writer
            internals.leave_events_out()
            internals.leave_profiles_out()
        _note_files()

    def remove(self, wait_s: float = 0.0) -> None:
        """Removes the worker's private folder."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @contextlib.contextmanager
    def privately(self) -> Iterator[None]:
        """While a worker writes to a private place, which nobody else sees."""
        before, self._is_private = self._is_private, True
        try:
            yield
        finally:
            self._is_private = before

    def has_written(self, path: Any) -> None:
        """Server: a file is there, whole. Worker: its script has come to where it is written."""
        if self._is_private:
            return
        name = _name(path)
        notes.add(notes.WRITTEN, f"{path}, by the server; workers leave it out")
        if self._is_server:
            self._words.tell_written(name)
            return
        self._expected[name] += 1
        if not self._said:
            self._said = True
            _log.info("rank %d leaves files to rank 0", self._words.rank)

    def await_written(self, path: Any) -> bool:
        """Worker: waits until the server has written a file that this rank would have written.

        Returns:
          Whether it has, now or before.
        """
        if self._is_server or self._is_private:
            return True
        name = _name(path)
        until = time.monotonic() + _WAIT_S
        is_over = False
        while True:
            self._written.update(self._words.written())
            if self._written[name] >= self._expected[name]:
                return self._written[name] > 0
            if not is_over and self._words.ended():
                is_over, until = True, min(until, time.monotonic() + _LAST_S)
            if time.monotonic() > until:
                break
            time.sleep(_POLL_S)
        _log.warning(
            "rank %d reads %s, which the server has written %d times and this rank would have "
            "written %d times: decide by what is the same on all ranks",
            self._words.rank,
            path,
            self._written[name],
            self._expected[name],
        )
        self._expected[name] = self._written[name]
        return self._written[name] > 0

    def is_missing(self, path: Any) -> bool:
        """Worker: waits for a checkpoint that the server writes.

        Returns:
          Whether one that this rank would have written is not there; then a warning says so.
        """
        name = _name(path)
        expected = self._expected[name] > 0
        self.await_written(path)
        if not expected or os.path.exists(f"{name}.index") or os.path.exists(name):
            return False
        # The server decides otherwise, or its files cannot be seen from this host.
        _log.warning("rank %d has no %s, and keeps its values", self._words.rank, path)
        return True

    def _writing(self, path: Any) -> bool:
        """Called for a checkpoint; returns whether it is to be written."""
        return self._is_server or self._is_private

    def _reading(self, path: Any, *, is_written: bool = False) -> None:
        """Called after a checkpoint was written, or left out, and before one is read."""
        (self.has_written if is_written else self.await_written)(path)

    def _writer(self, write: Callable[..., Any], name: str, position: int) -> Callable[..., Any]:
        @functools.wraps(write)
        def ours(*args: Any, **kwargs: Any) -> Any:
            path = args[position] if len(args) > position else kwargs[name]
            result = None
            if self._is_server or self._is_private:
                with self.privately():  # what it is made of is nothing to be told
                    result = write(*args, **kwargs)
            self.has_written(path)
            return result

        return ours

    def _reader(self, read: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(read)
        def ours(path: Any, *args: Any, **kwargs: Any) -> Any:
            self.await_written(path)
            return read(path, *args, **kwargs)

        return ours

    def _restore(self, restore: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(restore)
        def ours(checkpoint: Any, save_path: Any, *args: Any, **kwargs: Any) -> Any:
            if save_path is not None and self.is_missing(save_path):
                return _Kept()
            return restore(checkpoint, save_path, *args, **kwargs)

        return ours

    def _private(self, make: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(make)
        def ours(dataset: Any, path: Any = "", *args: Any, **kwargs: Any) -> Any:
            path = kwargs.pop(name, path)
            if isinstance(path, (str, os.PathLike)) and os.fspath(path):
                path = self._own_place(os.fspath(path))
            return make(dataset, path, *args, **kwargs)

        return ours

    def _own_place(self, path: str) -> str:
        with contextlib.suppress(OSError):
            if os.stat(f"{path}.index").st_mtime < self._started_s:
                return path  # a cache that is whole: it is only read
        notes.add(notes.WRITTEN, f"{path}: workers have a place of their own instead")
        if self._folder is None:
            folder = tempfile.mkdtemp(prefix=f"aggregathor-rank-{self._words.rank}-")
            self._folder = Path(folder)
        own = self._folder / _name(path).lstrip(os.sep)
        own.parent.mkdir(parents=True, exist_ok=True)
        return str(own)

    def _no_writer(self, *args: Any, **kwargs: Any) -> Any:
        return tf.summary.create_noop_writer()


def _note_files() -> None:
    """Has files noted that the script writes by TensorFlow, as those are that Python opens."""
    write_records, open_file = tf.io.TFRecordWriter.__init__, tf.io.gfile.GFile.__init__

    @functools.wraps(write_records)
    def noting_records(writer: Any, path: Any, options: Any = None) -> None:
        notes.opened(os.fsdecode(path))
        write_records(writer, path, options)

    @functools.wraps(open_file)
    def noting_file(file: Any, name: Any, mode: str = "r") -> None:
        if not set("wa+").isdisjoint(mode):
            notes.opened(os.fsdecode(name))
        open_file(file, name, mode)

    tf.io.TFRecordWriter.__init__ = noting_records
    tf.io.gfile.GFile.__init__ = noting_file


class _Kept:
    """What ``restore`` gives where nothing was restored."""

    def assert_consumed(self) -> _Kept:
        return self

    assert_existing_objects_matched = assert_nontrivial_match = expect_partial = assert_consumed

    def initialize_or_restore(self, session: Any = None) -> None:
        """Does nothing."""

    run_restore_ops = initialize_or_restore


def _name(path: Any) -> str:
    if isinstance(path, tf.Tensor):
        path = path.numpy()
    return os.path.abspath(os.fsdecode(path))
