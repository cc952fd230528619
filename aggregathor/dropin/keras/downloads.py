"""Files that Keras downloads: one rank of a host does it, and the others wait, and find them.

``keras.utils.get_file``, which ``keras.datasets`` and ``keras.applications`` use, too, writes to a
cache under the file's own name. All ranks would do so at the same time, and one that comes later
would take what is there so far for the whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

from aggregathor.internals import keras as keras_internals

_CLOCK_S = 1.0  # by which times of files may be behind


class Downloads:
    """Patches Keras's way to fetch a file and to extract an archive."""

    def __init__(self, begun_s: float) -> None:
        """Takes a ``time.time()`` before which no rank's script has begun."""
        self._begun_s = begun_s - _CLOCK_S
        self._asked: set[str] = set()
        keras_internals.change_downloads(self._retrieving, self._extracting)

    def _retrieving(self, retrieve: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(retrieve)
        def ours(url: str, filename: str, *args: Any, **kwargs: Any) -> Any:
            with _turn(filename):
                if self._is_first(filename) and _changed_s(filename) >= self._begun_s:
                    return filename, None  # another rank has fetched it meanwhile
                own = f"{filename}.{os.getpid()}"
                try:
                    _, headers = retrieve(url, own, *args, **kwargs)
                    os.replace(own, filename)  # nobody sees a part of it
                finally:
                    with contextlib.suppress(FileNotFoundError):
                        os.remove(own)
                return filename, headers

        return ours

    def _extracting(self, extract: Callable[..., bool]) -> Callable[..., bool]:
        @functools.wraps(extract)
        def ours(file_path: Any, path: Any = ".", archive_format: Any = "auto") -> bool:
            with _turn(path):
                fetched_s = _changed_s(file_path)
                is_new = self._begun_s <= fetched_s <= _changed_s(path)
                if self._is_first(path) and is_new:
                    return True  # another rank has extracted what was fetched in this job
                return extract(file_path, path, archive_format)

        return ours

    def _is_first(self, path: Any) -> bool:
        """Whether this rank asks for a file for the first time: later it wants it anew."""
        name = os.path.abspath(path)
        is_first = name not in self._asked
        self._asked.add(name)
        return is_first


@contextlib.contextmanager
def _turn(path: Any) -> Iterator[None]:
    """Lets one process of a host at a time write beside a path."""
    with contextlib.ExitStack() as stack:
        # On a file system without locks each rank fetches for itself, which is whole, too.
        with contextlib.suppress(OSError):
            folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
            stack.callback(os.close, folder)
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield


def _changed_s(path: Any) -> float:
    """Returns when a file was made or changed; before all times if there is none."""
    try:
        return os.stat(path).st_ctime
    except FileNotFoundError:
        return float("-inf")
