"""Files that are there whole or not at all, where others have put what they like in their place."""

import contextlib
import os
import signal
import stat
import tempfile
from pathlib import Path

import pytest

from aggregathor import files

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
FOREIGN = 54321  # a user


def write(opened, content=b"new"):
    with opened as file:
        file.write(content)


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    write(files.replacing(path), b"old")
    with pytest.raises(KeyError):
        fail_after(path, b"new")
    assert path.read_bytes() == b"old"
    write(files.replacing(path))
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def fail_after(path, content):
    with files.replacing(path) as file:
        file.write(content)
        file.flush()
        assert path.read_bytes() == b"old"
        raise KeyError


def test_nobody_can_guess_the_name_that_is_written_first(tmp_path):
    names = set()
    for _ in range(20):
        with files.replacing(tmp_path / "file"):
            names |= {each for each in os.listdir(tmp_path) if each != "file"}
    assert len(names) == 20


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe"])
def test_what_is_planted_in_place_of_a_file_is_replaced_and_not_followed(kind, tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_text("precious")
    plant(kind, path, victim)
    write(files.replacing(path))
    assert victim.read_text() == "precious"
    assert stat.S_ISREG(os.lstat(path).st_mode)
    assert path.read_bytes() == b"new"


def test_appending_goes_to_the_end_of_a_file(tmp_path):
    for line in ("a\r\n", "b\r\n"):
        with files.appending(tmp_path / "file") as file:
            file.write(line)
    assert (tmp_path / "file").read_bytes() == b"a\r\nb\r\n"


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "read pipe"])
def test_appending_follows_no_link_and_waits_for_no_pipe(kind, tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_text("precious")
    reader = plant(kind, path, victim)
    with within(5), pytest.raises(OSError):  # noqa: PT011 - its words are the system's
        files.appending(path)
    assert victim.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()
    if reader is not None:
        os.close(reader)


def test_reading_follows_the_users_links_and_waits_for_no_pipe(tmp_path):
    (tmp_path / "file").write_text("here")
    (tmp_path / "link").symlink_to("file")
    with files.reading(tmp_path / "link") as file:
        assert file.read() == b"here"
    os.mkfifo(tmp_path / "pipe")
    with within(5), pytest.raises(files.ForeignError, match="pipe is no regular file: remove it"):
        files.reading(tmp_path / "pipe")


# Folders.


def test_a_private_folder_is_closed_to_others_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        folder = files.PrivateFolder(tmp_path / "above" / "own")
    finally:
        os.umask(before)
    assert mode_of(folder.path) == 0o700
    os.chmod(folder.path, 0o777)
    files.PrivateFolder(folder.path)
    assert mode_of(folder.path) == 0o700


def test_a_private_folder_has_files(tmp_path):
    folder = files.PrivateFolder(tmp_path / "own")
    for name in ("b", "a"):
        write(folder.replacing(name), name.encode())
    assert folder.names() == ["a", "b"]
    with folder.reading("b") as file:
        assert file.read() == b"b"
    folder.remove("b")
    folder.remove("b")
    with pytest.raises(FileNotFoundError):
        folder.reading("b")


def test_what_an_interrupted_write_has_left_is_removed_at_the_next_start(tmp_path):
    folder = files.PrivateFolder(tmp_path / "own")
    write(folder.replacing("kept"))
    (folder.path / ".kept.0123456789abcdef").write_text("half")
    assert files.PrivateFolder(folder.path).names() == ["kept"]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_link_in_place_of_a_private_folder_is_refused(when, tmp_path):
    (tmp_path / "theirs").mkdir(mode=0o755)
    path = tmp_path / "own"
    if when == "before":
        path.symlink_to("theirs")
        with pytest.raises(files.ForeignError, match="own is a symbolic link, which somebody else"):
            files.PrivateFolder(path)
    else:
        folder = files.PrivateFolder(path)
        path.rename(tmp_path / "moved")
        path.symlink_to("theirs")
        for use in (
            folder.names,
            lambda: write(folder.replacing("a")),
            lambda: folder.reading("a"),
        ):
            with pytest.raises(files.ForeignError, match="own is a symbolic link, which somebody"):
                use()
    assert os.listdir(tmp_path / "theirs") == []
    assert mode_of(tmp_path / "theirs") == 0o755


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("link", "file is a symbolic link, which somebody else may have put there: remove it"),
        ("dangling link", "file is a symbolic link"),
        ("pipe", "file is no regular file: remove it"),
    ],
)
def test_what_is_no_file_of_a_private_folder_is_not_read(kind, words, tmp_path):
    folder = files.PrivateFolder(tmp_path / "own")
    (tmp_path / "victim").write_text("precious")
    plant(kind, folder.path / "file", tmp_path / "victim")
    with within(5), pytest.raises(files.ForeignError, match=words):
        folder.reading("file")


@AS_ROOT
@pytest.mark.parametrize("what", ["folder", "folder meanwhile", "file"])
def test_another_users_folder_or_file_is_refused(what, tmp_path):
    path = tmp_path / "own"
    theirs = path / "file" if what == "file" else path
    words = f"{theirs} belongs to user {FOREIGN}, and what this process writes to user 0: remove"
    if what == "folder":
        path.mkdir()
        os.chown(path, FOREIGN, FOREIGN)
        with pytest.raises(files.ForeignError, match=words):
            files.PrivateFolder(path)
        return
    folder = files.PrivateFolder(path)
    write(folder.replacing("file"))
    os.chown(theirs, FOREIGN, FOREIGN)
    with pytest.raises(files.ForeignError, match=words):
        folder.reading("file")


@AS_ROOT
def test_a_folder_that_another_user_has_made_first_is_refused_in_words(open_to_all):
    """Here the process may not even write there."""
    path = open_to_all / "own"
    path.mkdir(mode=0o755)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgid(FOREIGN)
            os.setuid(FOREIGN)
            try:
                files.PrivateFolder(path)
            except files.ForeignError as error:
                status = 0 if f"{path} belongs to user 0" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


@pytest.fixture
def open_to_all():
    """A folder that other users may enter: those of ``tmp_path`` are closed to them."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield Path(path)


def plant(kind, path, victim):
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    else:
        os.mkfifo(path)
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK) if kind == "read pipe" else None


def mode_of(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@contextlib.contextmanager
def within(seconds):
    """Fails where something waits for ever."""

    def fail(*_):
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
