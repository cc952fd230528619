"""What a job finds out about a script: kept, and reported, where ``aggregathor run --check`` asks.

Any module adds a note where it decides something that a user may want to know: what is shared,
what each rank draws, who writes a file. Elsewhere notes cost nothing, as none are kept.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lossympi.messages import printable

Notes = dict[str, list[str]]  # by kind, in the order in which they came

SHARED, PRIVATE, SEEDED, WRITTEN = "shared", "private", "seeded", "written"
LOCKED, COMPILED, SERVERS, LOOK_AT = "locked", "compiled", "the server's alone", "look at"
OPENED = "opened"  # files that the script itself writes
_KINDS = (SHARED, PRIVATE, SEEDED, WRITTEN, LOCKED, COMPILED, SERVERS, LOOK_AT)
_MOST_NOTES, _MOST_LETTERS = 40, 300  # of a kind, and of a note
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND
_kept: Notes | None = None


def keep() -> None:
    """Keeps the notes of this process from now on, and with them the warnings that it logs."""
    global _kept
    if _kept is None:
        _kept = {}
        logging.getLogger("aggregathor").addHandler(_Warnings(logging.WARNING))
        sys.addaudithook(_see)


def add(kind: str, text: str) -> None:
    """Keeps a note, once."""
    if _kept is None:
        return
    there = _kept.setdefault(kind, [])
    text = textwrap.shorten(text, _MOST_LETTERS, placeholder=" ...")
    if text not in there and len(there) < _MOST_NOTES:
        there.append(text)


def kept() -> Notes:
    """Returns the notes of this process."""
    return {} if _kept is None else {kind: list(texts) for kind, texts in _kept.items()}


def checked(said: Notes) -> Notes:
    """Returns what a worker says as it may be shown: of a known kind, not too much, escaped."""
    return {
        kind: [
            printable(" ".join(text.split()), _MOST_LETTERS) for text in said[kind][:_MOST_NOTES]
        ]
        for kind in (*_KINDS, OPENED)
        if kind in said
    }


def listed(names: Iterable[str], most: int = 4) -> str:
    """Returns the first names of a list, and how many there are besides."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def report(by_rank: Mapping[int, Notes]) -> str:
    """Returns the notes of all ranks, the server's first; what all have is said once."""
    _judge_files(by_rank)
    lines = []
    for kind in _KINDS:
        ranks_of: dict[str, list[int]] = {}
        for rank, notes in sorted(by_rank.items()):
            for text in notes.get(kind, []):
                ranks_of.setdefault(text, []).append(rank)
        for text, ranks in ranks_of.items():
            who = "" if len(ranks) in (1, len(by_rank)) and 0 in ranks else f"{_named(ranks)}: "
            lines.append((kind, f"{who}{text}"))
    width = max((len(kind) for kind, _ in lines), default=0) + 2
    said = [f"{kind:{width}}{text}" for kind, text in lines]
    return "\n".join(said or ["nothing was found out: no optimizer took part"]) + "\n"


def _judge_files(by_rank: Mapping[int, Notes]) -> None:
    """Adds to the server's notes who writes the files that the script opens itself."""
    ranks_of: dict[str, list[int]] = {}
    for rank, notes in sorted(by_rank.items()):
        for path in notes.get(OPENED, []):
            ranks_of.setdefault(path, []).append(rank)
    for path, ranks in ranks_of.items():
        kind, text = WRITTEN, f"{path}, by {_named(ranks)}"
        if len(ranks) > 1:
            remedy = "write it where agt.is_server(), or name it by agt.rank()"
            kind, text = LOOK_AT, f"{path} is written by {_named(ranks)}: {remedy}"
        by_rank[0].setdefault(kind, []).append(text)


def _named(ranks: list[int]) -> str:
    several = len(ranks) > 2 and ranks == list(range(ranks[0], ranks[-1] + 1))
    return f"rank {f'{ranks[0]} to {ranks[-1]}' if several else ', '.join(map(str, ranks))}"


class _Warnings(logging.Handler):
    """Keeps the warnings that are logged; they are written all the same."""

    def emit(self, record: logging.LogRecord) -> None:
        add(LOOK_AT, record.getMessage())


def _see(event: str, arguments: tuple[Any, ...]) -> None:
    """Keeps the files that Python opens to write."""
    if event != "open" or not isinstance(arguments[0], (str, bytes)):
        return
    path, mode, flags = arguments
    if bool(flags & _WRITES) if mode is None else bool(set(mode) & set("wax+")):
        opened(os.fsdecode(path))


def opened(path: str) -> None:
    """Keeps a file that the script itself writes, but for temporary ones and devices."""
    name = os.path.abspath(path)
    aside = (tempfile.gettempdir(), "/dev", "/proc", "/sys", sys.prefix)
    if any(name == each or name.startswith(f"{each}{os.sep}") for each in aside):
        return
    if "__pycache__" not in name:
        with contextlib.suppress(ValueError, OSError):
            name = str(Path(name).relative_to(Path.cwd()))
        add(OPENED, name)
