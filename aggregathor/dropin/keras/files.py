"""Files of models on a worker: only the server writes the files that the script names.

A script may read what it has saved. If the server has not written it yet, or is on another host, a
worker would find nothing, or an old file. So a worker saves to a folder of its own, and loads what
it has saved from there.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

_logger = logging.getLogger(__name__)
_WRITING = ("save", "save_weights", "export")
# Where scripts find `save_model` and `load_model`.
_MODULES = (keras.models, keras.saving, tf.keras.models)


class PrivateFiles:
    """Patches Keras on a worker."""

    def __init__(self, rank: int) -> None:
        """Patches the functions that write and read models."""
        self._rank = rank
        self._folder: Path | None = None
        self._own: dict[str, str] = {}  # paths that the script has named, and the files
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
            if not self._said:
                self._said = True
                _logger.info("rank %d leaves files of %s to rank 0", self._rank, model.name)
            if not isinstance(filepath, (str, os.PathLike)):
                return write(model, filepath, *args, **kwargs)  # a buffer is the worker's own
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix=f"aggregathor-rank-{self._rank}-"))
            path = self._folder / str(len(self._own)) / Path(filepath).name
            path.parent.mkdir()
            self._own[os.path.abspath(filepath)] = str(path)
            return write(model, str(path), *args, **kwargs)

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
        return self._own.get(os.path.abspath(filepath), filepath)
