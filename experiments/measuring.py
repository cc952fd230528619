"""What commands that measure share: a clock, and a report that names machine and day."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable
from pathlib import Path

from experiments.machine import machine_slug


def seconds_of(call: Callable[..., object], *given: object) -> float:
    """Returns how long a call takes."""
    begun_s = time.perf_counter()
    call(*given)
    return time.perf_counter() - begun_s


def write_report(name: str, text: str, folder: Path) -> None:
    """Prints a report, and writes it to ``<name>_<machine>_<date>.md``.

    Raises:
      UserError: it cannot be written.
    """
    from experiments.recorder import writing  # which imports TensorFlow

    sys.stdout.write(text)
    file = folder / f"{name}_{machine_slug()}_{datetime.date.today().isoformat()}.md"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
