"""Messages: Python's ``logging``, with plain lines on standard error as the default.

Each module logs to ``logging.getLogger(__name__)``, a child of the logger "aggregathor": a warning
is something that a user should look at, an info reports progress. The entry points (``agt.init``,
``aggregathor``, ``python -m aggregathor.run``, ``python -m experiments``) call ``install``, which
writes infos and above to standard error as ``aggregathor: ...``. A record that reaches a handler of
the user's is left to that one: whoever configures ``logging``, before or after, gets every message
once, in their own format.

An error that ends the process replaces a traceback: it goes to standard error whoever logs.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator

from absl import logging as absl_logging

LEVELS = ("debug", "info", "warning", "error")

_NAME = "aggregathor"
_shown_columns = 0  # of the line that the next one overwrites


def install(level: str | None = None) -> None:
    """Writes what is logged to standard error; called again it only sets the level.

    Args:
      level: the least severe level that is logged, one of ``LEVELS``. By default what the user has
        set for this package's logger or, other than Python's default, for the root logger; if they
        have set neither, and have no handler, "info".
    """
    logger = logging.getLogger(_NAME)
    if _lines not in logger.handlers:
        is_set = logger.level != logging.NOTSET or logging.root.level != logging.WARNING
        if not is_set and not _is_taken(_NAME):
            logger.setLevel(logging.INFO)
        logger.addHandler(_lines)
    if level is not None:
        logger.setLevel(level.upper())


def tell_error(text: str) -> None:
    """Writes the error that ends the process to standard error, in place of a traceback."""
    _write(f"{_NAME}: error: {text}\n")


def shows_in_place(name: str) -> bool:
    """Whether ``show`` can overwrite a line: standard error is a terminal, and lines go there."""
    return sys.stderr.isatty() and not _is_taken(name)


def show(name: str, text: str) -> None:
    """Writes a line on a terminal that the next one overwrites; a line that is too long is cut.

    Args:
      name: of a logger; nothing is written if infos are disabled for it.
      text: the line.
    """
    global _shown_columns
    if not logging.getLogger(name).isEnabledFor(logging.INFO):
        return
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):  # no terminal
        columns = 0
    # A line of all columns would go on in the next, and so would not be overwritten.
    line = cut(f"{_NAME}: {text}", (columns or 80) - 1)
    _write(line)
    _shown_columns = len(line)


def cut(text: str, columns: int) -> str:
    """Returns the text, cut to that many columns, with an ellipsis where something is missing."""
    return text if len(text) <= columns else f"{text[: max(0, columns - 3)]}..."


class _Lines(logging.Handler):
    """Writes records to standard error that no handler of the user's takes."""

    def emit(self, record: logging.LogRecord) -> None:
        for handler in _other_handlers(record.name):
            if _is_default(handler):  # called after this one: it shall not write it again
                handler.addFilter(_is_not_a_line)
        if _is_taken(record.name):
            return
        try:
            kind = "error: " if record.levelno >= logging.ERROR else ""
            _write(f"{_NAME}: {kind}{self.format(record)}\n")
        except Exception:
            self.handleError(record)


_lines = _Lines()


def _is_taken(name: str) -> bool:
    """Whether a handler of the user's takes what a logger logs."""
    return any(not _is_default(handler) for handler in _other_handlers(name))


def _other_handlers(name: str) -> Iterator[logging.Handler]:
    """Yields the handlers that take what a logger logs, but for our own."""
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        yield from (handler for handler in logger.handlers if handler is not _lines)
        logger = logger.parent if logger.propagate else None


def _is_default(handler: logging.Handler) -> bool:
    """Whether a handler is there without anybody's choice.

    ``absl.app.run`` adds one to the root logger. So does the first message of any library that
    calls ``logging.warning(...)``, or Keras through absl: that of ``logging.basicConfig()``.
    """
    if handler not in logging.root.handlers:
        return False
    if handler is absl_logging.get_absl_handler():
        return True
    return (
        type(handler) is logging.StreamHandler
        and handler.stream in (sys.stderr, sys.__stderr__)
        and type(handler.formatter) is logging.Formatter
        and handler.formatter.datefmt is None
        and handler.formatter._fmt == logging.BASIC_FORMAT  # noqa: SLF001 - it has no other name
    )


def _is_not_a_line(record: logging.LogRecord) -> bool:
    """Whether ``_Lines`` does not write a record."""
    return record.name.partition(".")[0] != _NAME or _is_taken(record.name)


def _write(text: str) -> None:
    """Writes in one piece, over the line that is shown: all ranks share a terminal."""
    global _shown_columns
    columns, _shown_columns = _shown_columns, 0
    over = f"\r{' ' * columns}\r" if columns else ""
    sys.stderr.write(f"{over}{text}")
    sys.stderr.flush()


__all__ = ["LEVELS", "cut", "install", "show", "shows_in_place", "tell_error"]
