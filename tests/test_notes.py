"""What is reported of a script that is checked."""

import logging
import os

import pytest

from aggregathor import notes


@pytest.fixture
def kept(monkeypatch):
    monkeypatch.setattr(notes, "_kept", {})


def test_nothing_is_kept_where_nobody_asks():
    notes.add(notes.SHARED, "a")
    assert notes.kept() == {}


def test_a_note_is_kept_once_and_of_a_kind_not_too_many(kept):
    for number in range(100):
        notes.add(notes.SHARED, f"number {number // 2}")
    notes.add(notes.LOCKED, "long " * 1000)
    assert notes.kept()[notes.SHARED] == [f"number {number}" for number in range(40)]
    assert len(notes.kept()[notes.LOCKED][0]) <= 300


def test_what_all_ranks_have_is_said_once():
    by_rank = {rank: {notes.SHARED: ["4 values"], notes.LOCKED: []} for rank in range(4)}
    by_rank[0][notes.SERVERS] = ["the callback ModelCheckpoint"]
    for rank in (1, 2, 3):
        by_rank[rank][notes.LOCKED] = ["by the scan"]
    by_rank[2][notes.LOOK_AT] = ["it draws other numbers"]
    assert notes.report(by_rank).splitlines() == [
        "shared              4 values",
        "locked              rank 1 to 3: by the scan",
        "the server's alone  the callback ModelCheckpoint",
        "look at             rank 2: it draws other numbers",
    ]
    assert "no optimizer took part" in notes.report({0: {}, 1: {}})


def test_files_that_ranks_write_over_each_others_are_named():
    by_rank = {0: {notes.OPENED: ["log.csv", "model.txt"]}, 1: {notes.OPENED: ["log.csv"]}}
    report = notes.report(by_rank)
    assert "written  model.txt, by rank 0\n" in report
    assert "look at  log.csv is written by rank 0, 1: write it where agt.is_server()" in report


def test_files_that_are_opened_to_write_are_seen(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(notes.tempfile, "gettempdir", lambda: "/nowhere")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").write_text("")
    for event in (
        ("open", ("there", "r", 0)),
        ("open", ("there", None, os.O_RDONLY)),
        ("open", (3, "w", os.O_WRONLY)),
        ("open", ("/dev/null", "w", os.O_WRONLY)),
        ("open", ("new", "w", os.O_WRONLY)),
        ("open", (b"bytes", None, os.O_CREAT)),
        ("exec", ("x",)),
    ):
        notes._see(*event)
    assert notes.kept() == {notes.OPENED: ["new", "bytes"]}


def test_what_a_worker_says_is_bounded_and_escaped():
    lies = {notes.SHARED: ["\x1b[2J" + "a" * 10**5] * 1000, "root": ["#"], notes.OPENED: ["a\nb"]}
    checked = notes.checked(lies)
    assert set(checked) == {notes.SHARED, notes.OPENED}
    assert len(checked[notes.SHARED]) == 40
    report = notes.report({0: {}, 1: checked})
    assert len(report) < 40 * 400
    assert "\x1b" not in report
    assert "\n" not in checked[notes.OPENED][0]


def test_warnings_are_kept(kept):
    handler = notes._Warnings(logging.WARNING)
    handler.handle(logging.LogRecord("aggregathor.x", logging.WARNING, "", 1, "%d", (3,), None))
    assert notes.kept() == {notes.LOOK_AT: ["3"]}
