"""What ranks fetch by ``get_file``: once for a host, and never a part of it."""

import shutil
import tarfile
import threading
import time
from pathlib import Path

import keras
import pytest
from keras.src.utils import file_utils

from aggregathor.dropin.keras.downloads import Downloads

LATER_S = 1000.0  # than anything here


class Rank:
    """A rank whose ways to fetch and to extract are counted in a list that all ranks share."""

    def __init__(self, monkeypatch, calls, begun_s, retrieve=None):
        def fetch(url, filename, *hooks):
            calls.append("fetch")
            return (retrieve or shutil.copy)(url.removeprefix("file://"), filename), None

        def extract(*args):
            calls.append("extract")
            return extract_archive(*args)

        extract_archive = EXTRACT
        monkeypatch.setattr(file_utils, "urlretrieve", fetch)
        monkeypatch.setattr(file_utils, "extract_archive", extract)
        Downloads(begun_s)
        self.calls = {
            name: getattr(file_utils, name) for name in ("urlretrieve", "extract_archive")
        }
        self.patch = monkeypatch

    def get(self, source, cache, **given):
        for name, call in self.calls.items():
            self.patch.setattr(file_utils, name, call)
        given = {"cache_dir": str(cache), "cache_subdir": "", **given}
        return keras.utils.get_file(source.name, f"file://{source}", **given)


EXTRACT = file_utils.extract_archive


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("first second")
    (tmp_path / "cache").mkdir()
    return path


def test_one_rank_fetches_and_none_sees_a_part(monkeypatch, source, tmp_path):
    calls, is_there, goes_on = [], threading.Event(), threading.Event()
    target = tmp_path / "cache" / "data.txt"

    def slowly(path, filename):
        with open(filename, "w") as file:
            file.write("first ")
            file.flush()
            is_there.set()
            assert goes_on.wait(20)
            file.write("second")

    ranks = [Rank(monkeypatch, calls, time.time(), slowly) for _ in range(3)]
    threads = [
        threading.Thread(target=rank.calls["urlretrieve"], args=[str(source), str(target)])
        for rank in ranks
    ]
    for thread in threads:
        thread.start()
        assert is_there.wait(20)
    assert not target.exists()
    goes_on.set()
    for thread in threads:
        thread.join(20)
    assert calls == ["fetch"]
    assert target.read_text() == "first second"
    assert [each.name for each in target.parent.iterdir()] == ["data.txt"]


def test_what_was_there_before_the_job_or_is_asked_for_again_is_fetched(
    monkeypatch, source, tmp_path
):
    calls, cache = [], tmp_path / "cache"
    (cache / "data.txt").write_text("of before")
    later = Rank(monkeypatch, calls, time.time() + LATER_S)
    assert Path(later.get(source, cache)).read_text() == "of before"  # as Keras does
    assert Path(later.get(source, cache, force_download=True)).read_text() == "first second"
    ranks = [Rank(monkeypatch, calls, time.time()) for _ in range(2)]
    del calls[:]
    for rank, fetched in ((0, 0), (1, 0), (1, 1), (0, 2)):
        ranks[rank].get(source, cache, force_download=True)
        assert len(calls) == fetched


def test_what_cannot_be_fetched_leaves_nothing(monkeypatch, source, tmp_path):
    def fails(path, filename):
        shutil.copy(path, filename)
        raise OSError("the line is dead")

    rank = Rank(monkeypatch, [], time.time(), fails)
    with pytest.raises(OSError, match="the line is dead"):
        rank.get(source, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_archive_is_extracted_once_in_a_job_that_has_fetched_it(monkeypatch, source, tmp_path):
    calls, cache = [], tmp_path / "cache"
    archive = tmp_path / "data.tar"
    with tarfile.open(archive, "w") as file:
        file.add(source, "data.txt")
    (cache / "data_extracted").mkdir()  # the script's
    time.sleep(0.05)
    ranks = [Rank(monkeypatch, calls, time.time()) for _ in range(2)]
    for rank in ranks:
        folder = rank.get(archive, cache, extract=True)
        assert Path(f"{folder}/data.txt").read_text() == "first second"
    assert calls == ["fetch", "extract"]
    ranks[0].get(archive, cache, extract=True)  # again
    Rank(monkeypatch, calls, time.time() + LATER_S).get(archive, cache, extract=True)
    assert calls == ["fetch", "extract", "extract", "extract"]
