"""Checkpoints: arrays by name in a file that is there as a whole or not at all.

One format for all that trains: NumPy's .npz, which keeps every bit, with the names of the types
that NumPy has none for (bfloat16) beside them.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import ml_dtypes  # of TensorFlow's and Keras's own requirements
import numpy as np

from aggregathor import files

_DTYPES = "__dtypes__"
# What NumPy and the modules below it make of a file that is cut or overwritten.
_DAMAGES = (
    *(ValueError, KeyError, AttributeError, EOFError),
    *(zipfile.BadZipFile, zlib.error),
)


class DamagedError(ValueError):
    """A file that holds no checkpoint, or not all of it."""


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a checkpoint, whenever the machine stops: the file is the old one or the new one.

    Raises:
      OSError: it cannot be written.
    """
    with files.replacing(path) as file:
        save(file, arrays)


def save(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a checkpoint to an open file.

    Raises:
      OSError: it cannot be written.
    """
    plain, dtypes = {}, {}
    for name, array in arrays.items():
        plain[name] = array
        if array.dtype.kind == "V":  # what NumPy would save as bytes without a meaning
            dtypes[name] = array.dtype.name
            plain[name] = array.view(np.dtype(f"u{array.dtype.itemsize}"))
    plain[_DTYPES] = np.frombuffer(json.dumps(dtypes).encode(), np.uint8)
    np.savez(file, allow_pickle=False, **plain)


def read(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a checkpoint.

    Raises:
      OSError: the file cannot be read.
      DamagedError: it is no checkpoint, or a part of one.
    """
    with files.reading(path) as file:
        return load(file, path)


def load(file: BinaryIO, path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a checkpoint in an open file; ``path`` names it in errors.

    Raises:
      OSError: the file cannot be read.
      DamagedError: it is no checkpoint, or a part of one.
    """
    if not zipfile.is_zipfile(file):
        raise DamagedError(f"{path} is no whole checkpoint: it is no .npz file, or a part of one")
    file.seek(0)
    try:
        with np.load(file, allow_pickle=False) as saved:
            arrays = dict(saved)
        dtypes = json.loads(arrays.pop(_DTYPES).tobytes())
        for name, dtype in dtypes.items():
            arrays[name] = arrays[name].view(getattr(ml_dtypes, dtype))
    except OSError:
        raise
    except _DAMAGES as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DamagedError(f"{path} is no whole checkpoint: {reason}") from None
    return arrays
