"""DRACO's parameters and conditions, known without TensorFlow and NumPy.

Workers compute the gradients of several batches each and send one vector that encodes them, so that
the server can decode the exact mean over all batches although s workers send anything at all. The
codes are in ``repetition.py`` and ``cyclic.py``, the server's part is in ``decoding.py``.

Source: Chen et al., DRACO: Byzantine-resilient distributed training via redundant gradients, ICML
2018.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

from aggregathor.errors import UserError, near

REPETITION, CYCLIC, CYCLIC_PAPER = CODES = ("repetition", "cyclic", "cyclic-paper")
CONDITION = "n >= r >= 2f + 1; repetition: r divides n; cyclic: r is odd"
PARAMETERS = {"code": CYCLIC, "redundancy": None, "delta": 0.0}


def is_cyclic(parameters: Mapping[str, Any]) -> bool:
    """Whether workers encode by a cyclic code: what is not given is as in ``PARAMETERS``."""
    return {**PARAMETERS, **parameters}["code"] != REPETITION


def redundancy_of(f: int, redundancy: int | None) -> int:
    """Returns r, how many workers compute the gradient of each batch."""
    return 2 * f + 1 if redundancy is None else redundancy


def check(*, n: int, f: int, code: Any, redundancy: Any, delta: Any) -> None:
    """Raises ``UserError`` where n workers cannot tolerate f Byzantine ones by this code."""
    if code not in CODES:
        raise UserError(f"draco has no code called {code!r}: {near(str(code), CODES)}")
    if redundancy is not None and not _is_whole(redundancy):
        raise UserError(f"draco: redundancy must be a whole number, got {redundancy!r}")
    if not _is_whole(f) or f < 0:
        raise UserError(f"draco: f must be a whole number >= 0, got {f!r}")
    is_number = isinstance(delta, (int, float)) and not isinstance(delta, bool)
    if not is_number or not 0 <= delta < 1:
        raise UserError(f"draco: delta is a relative difference in [0, 1), got {delta!r}")
    r = redundancy_of(f, redundancy)
    if r < 2:
        raise UserError(
            "draco computes each batch r >= 2f + 1 times, and with r=1 there is no copy to compare "
            "with: declare f=1, or give redundancy=3."
        )
    if r < 2 * f + 1:
        raise UserError(
            f"draco needs redundancy >= 2f + 1; f={f} needs {2 * f + 1}, got {r}. Leave the "
            f"redundancy out or declare f={(r - 1) // 2}."
        )
    if n < r:
        fewer = f" or declare f={(n - 1) // 2}" if redundancy is None and n > 2 else ""
        raise UserError(
            f"draco computes each batch r={r} times and needs as many workers, got n={n}. Start "
            f"{r - n} more{fewer}."
        )
    if code == REPETITION and n % r:
        least = f"{n - n % r} or {n - n % r + r}"
        raise UserError(
            f"draco's repetition makes groups of r={r}, and r does not divide n={n}. Start "
            f"{least} workers, or take code={CYCLIC}."
        )
    if code != REPETITION and r % 2 == 0:
        raise UserError(
            f"draco's cyclic codes need an odd redundancy r = 2s + 1, got {r}. Take {r - 1}."
        )
    if code == REPETITION and delta:
        raise UserError(
            f"draco: delta is the tolerance of the cyclic codes, and repetition needs none, got "
            f"delta={delta}. Leave it out."
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
