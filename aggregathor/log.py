"""What a rank says on standard error: lines that stay, and one that is overwritten in place."""

from __future__ import annotations

import os
import sys

_shown_columns = 0  # of the line that the next one overwrites


def say(text: str) -> None:
    """Writes a line for whoever looks at the terminal."""
    sys.stderr.write(f"{_cleared()}aggregathor: {text}\n")
    sys.stderr.flush()


def show(text: str) -> None:
    """Writes a line on a terminal that the next one overwrites; what is too long is cut."""
    global _shown_columns
    cleared = _cleared()
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):  # no terminal
        columns = 0
    # A line of all columns would go on in the next, and so would not be overwritten.
    line = cut(f"aggregathor: {text}", (columns or 80) - 1)
    sys.stderr.write(f"{cleared}{line}")
    sys.stderr.flush()
    _shown_columns = len(line)


def cut(text: str, columns: int) -> str:
    """Returns the text, with an ellipsis where it is longer than so many columns."""
    return text if len(text) <= columns else f"{text[: max(0, columns - 3)]}..."


def _cleared() -> str:
    """What takes away the line that is shown."""
    global _shown_columns
    columns, _shown_columns = _shown_columns, 0
    return f"\r{' ' * columns}\r" if columns else ""
