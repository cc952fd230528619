"""Files of models: only the server writes those that the script names.

A script may read what it has saved. The server may not have written it yet, or may be on another
host. So a worker saves to a folder of its own too. It loads what it has saved from where the server
has written it, once it has and the worker can see it; else from its own folder.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from aggregathor.dropin.server_files import ServerFiles

_logger = logging.getLogger(__name__)
_WRITING = ("save", "save_weights", "export")
# Where scripts find `save_model` and `load_model`.
_MODULES = (keras.models, keras.saving, tf.keras.models)


class PrivateFiles:
    """Patches Keras on a worker."""

    def __init__(self, rank: int, server: ServerFiles | None = None) -> None:
        """Patches the functions that write and read models.

        Args:
          rank: of this process.
          server: knows which files the server has written; None if nobody does.
        """
        self._rank = rank
        self._server = server
        self._folder: Path | None = None
        self._own: dict[str, str] = {}  # paths that the script has named, and the files
        self._numbers = itertools.count()
        self._said = False
        for name in _WRITING:
            setattr(keras.Model, name, self._writing(getattr(keras.Model, name)))
        keras.Model.load_weights = self._reading_weights(keras.Model.load_weights)
        save_model = self._writing(keras.models.save_model)
        load_model = self._reading(keras.models.load_model)
        for module in _MODULES:
            module.save_model, module.load_model = save_model, load_model

    def remove(self, wait_s: float = 0.0) -> None:
        """Removes the folder."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _writing(self, write: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(write)
        def own(model: Any, filepath: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._said and self._server is None:  # who says it
                self._said = True
                _logger.info("rank %d leaves files of %s to rank 0", self._rank, model.name)
            if not isinstance(filepath, (str, os.PathLike)):
                return write(model, filepath, *args, **kwargs)  # a buffer is the worker's own
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix=f"aggregathor-rank-{self._rank}-"))
            path = self._folder / str(next(self._numbers)) / Path(filepath).name
            path.parent.mkdir()
            name = os.path.abspath(filepath)
            self._forget(self._own.get(name))
            self._own[name] = str(path)
            if self._server is None:
                return write(model, str(path), *args, **kwargs)
            with self._server.privately():
                result = write(model, str(path), *args, **kwargs)
            self._server.has_written(name)
            return result

        return own

    def _reading(self, read: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(read)
        def own(filepath: Any, *args: Any, **kwargs: Any) -> Any:
            return read(self._found(filepath), *args, **kwargs)

        return own

    def _reading_weights(self, read: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(read)
        def own(model: Any, filepath: Any, *args: Any, **kwargs: Any) -> Any:
            found = self._found(filepath)
            if isinstance(found, (str, os.PathLike)) and not Path(found).exists():
                # Such as a file of a callback that only the server has. Its weights count.
                _logger.warning("rank %d has no %s, and keeps its weights", self._rank, filepath)
                return None
            return read(model, found, *args, **kwargs)

        return own

    def _found(self, filepath: Any) -> Any:
        if not isinstance(filepath, (str, os.PathLike)):
            return filepath
        name = os.path.abspath(filepath)
        own = self._own.get(name)
        if own is None:
            return filepath
        if self._server is not None and self._server.await_written(name) and os.path.exists(name):
            return filepath
        return own

    def _forget(self, path: str | None) -> None:
        """Removes the copy that a new one replaces."""
        if path is not None:
            shutil.rmtree(Path(path).parent, ignore_errors=True)


def tell_of_models(server: ServerFiles) -> None:
    """Patches Keras on the server: it tells the workers of each model that it has written."""

    def telling(write: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(write)
        def told(model: Any, filepath: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(filepath, (str, os.PathLike)):
                return write(model, filepath, *args, **kwargs)
            with server.privately():  # of what it is made of nobody needs to hear
                result = write(model, filepath, *args, **kwargs)
            server.has_written(filepath)
            return result

        return told

    for name in _WRITING:
        setattr(keras.Model, name, telling(getattr(keras.Model, name)))
    save_model = telling(keras.models.save_model)
    for module in _MODULES:
        module.save_model = save_model
