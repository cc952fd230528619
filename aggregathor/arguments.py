"""Parameters written as name=value, on command lines and in environment variables."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any

from aggregathor.errors import UserError


def parse_arguments(flag: str, pairs: Iterable[str]) -> dict[str, Any]:
    """Parses ``["z=1.5", "follow=row"]``; a value that is no Python literal is a string.

    Raises:
      UserError: a word is not of the form name=value; ``flag`` names the flag that has it.
    """
    arguments = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name and equals):
            raise UserError(f"{flag} takes name=value, got {pair!r}")
        try:
            arguments[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            arguments[name] = text
    return arguments
