"""Files that are written whole or not at all, in folders that others may write to as well.

Whoever may write to a folder can put a link, a pipe or a file of their own where a file of ours is
expected. Nothing here follows such a link, waits for such a pipe, or takes such a file for ours.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

_log = logging.getLogger(__name__)
_CLOSED = os.O_NOFOLLOW | os.O_CLOEXEC
_AT_ONCE = _CLOSED | os.O_NONBLOCK  # a pipe is opened, or refused, without a wait for its other end


class ForeignError(OSError):
    """A file or folder that this process cannot have made as it is."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that takes the place of ``path`` when the context ends without an error.

    Whenever the machine stops, ``path`` is the old file or the new one. It is written under a name
    that nobody can guess, and synced before it is renamed.

    Raises:
      OSError: it cannot be written.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _replacing_in(folder, path.name) as file:
            yield file
    finally:
        os.close(folder)


def reading(path: Path) -> BinaryIO:
    """Opens a file to read; a link is followed, as the user may have put it there.

    Raises:
      OSError: it cannot be opened, or is a pipe or a device.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return os.fdopen(_regular(descriptor, path), "rb")


def appending(path: Path) -> TextIO:
    """Opens a text file to append to; it is made if it is missing.

    Raises:
      OSError: it cannot be opened, or is a link, a pipe or a device.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _AT_ONCE, 0o666)
    return os.fdopen(_regular(descriptor, path), "a", newline="")


class PrivateFolder:
    """A folder that only this process's user can read and write.

    Others who may write to the folder above it can still remove or replace it. So each use checks
    that it is a folder, no link, of this user, and that what is read from it is a file of the same
    user. Another process of this user can do as it likes.

    Attributes:
      path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        """Makes the folder, closes it to others, and removes what an interrupted write has left.

        Args:
          path: of the folder; one that is there is kept.

        Raises:
          OSError: it cannot be made or written to.
          ForeignError: it is a link, or another user's.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        self._uid = self._uid_of_ours()
        with self._opened() as folder:
            _close_to_others(folder, path)
            for name in os.listdir(folder):
                if name.startswith("."):
                    os.unlink(name, dir_fd=folder)

    def names(self) -> list[str]:
        """Returns the names in the folder, sorted."""
        with self._opened() as folder:
            return sorted(os.listdir(folder))

    @contextlib.contextmanager
    def replacing(self, name: str, before: str = "") -> Iterator[BinaryIO]:
        """As the function of this name, for a file in the folder.

        Args:
          name: of the file.
          before: the name that the file so far gets, in place of one of that name; "" for none.
            Where the machine stops in between there is only this one.
        """
        with self._opened() as folder, _replacing_in(folder, name, before) as file:
            yield file

    def reading(self, name: str) -> BinaryIO:
        """Opens a file in the folder to read.

        Raises:
          OSError: it cannot be opened.
          ForeignError: it is no file, or another user's.
        """
        path = self.path / name
        with self._opened() as folder:
            _check_no_link(path, folder)
            descriptor = _regular(os.open(name, os.O_RDONLY | _AT_ONCE, dir_fd=folder), path)
        file = os.fdopen(descriptor, "rb")
        try:
            self._check_owner(path, os.fstat(descriptor).st_uid)
        except ForeignError:
            file.close()
            raise
        return file

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        with self._opened() as folder:
            _unlink(name, folder)

    def _uid_of_ours(self) -> int:
        """Returns whose the files are that this process makes here.

        That is not the process's own user where the file system maps users, as NFS does with root.
        """
        _check_no_link(self.path)
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | _CLOSED)
        try:
            name, descriptor = _new_file(folder, "")
            os.unlink(name, dir_fd=folder)
            try:
                return os.fstat(descriptor).st_uid
            finally:
                os.close(descriptor)
        except PermissionError:  # another user's, which the check of the owner names
            return os.geteuid()
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        _check_no_link(self.path)
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | _CLOSED)
        try:
            self._check_owner(self.path, os.fstat(folder).st_uid)
            yield folder
        finally:
            os.close(folder)

    def _check_owner(self, path: Path, uid: int) -> None:
        if uid != self._uid:
            raise ForeignError(
                f"{path} belongs to user {uid}, and what this process writes to user {self._uid}: "
                "remove it, or name another folder"
            )


@contextlib.contextmanager
def _replacing_in(folder: int, name: str, before: str = "") -> Iterator[BinaryIO]:
    temporary, descriptor = _new_file(folder, name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if before:
            with contextlib.suppress(FileNotFoundError):
                os.replace(name, before, src_dir_fd=folder, dst_dir_fd=folder)
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        _unlink(temporary, folder)
        raise
    os.fsync(folder)


def _new_file(folder: int, name: str) -> tuple[str, int]:
    """Makes a file under a name that nobody can have prepared; returns name and descriptor."""
    temporary = f".{name}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _CLOSED
    return temporary, os.open(temporary, flags, 0o666, dir_fd=folder)


def _unlink(name: str, folder: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _close_to_others(folder: int, path: Path) -> None:
    if stat.S_IMODE(os.fstat(folder).st_mode) == 0o700:
        return
    try:
        os.fchmod(folder, 0o700)
    except PermissionError as error:  # of a file system without modes
        _log.warning("%s cannot be closed to other users: %s", path, error.strerror)


def _check_no_link(path: Path, folder: int | None = None) -> None:
    """Says it in words: the ``open`` that comes next would refuse a link as well."""
    name = path if folder is None else path.name
    if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        raise ForeignError(
            f"{path} is a symbolic link, which somebody else may have put there: remove it, or "
            "name another folder"
        )


def _regular(descriptor: int, path: Path) -> int:
    """Returns the descriptor of a regular file; closes any other."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ForeignError(f"{path} is no regular file: remove it, or name another folder")
    return descriptor
