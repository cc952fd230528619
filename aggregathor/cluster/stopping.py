"""A training that is asked to stop: by Ctrl-C or SIGTERM at ``aggregathor run``.

The launcher has mpirun pass on a signal to all ranks. On the server it becomes the one that the
launcher got, at once or, within a ``fit`` that saves, after the step at hand; so a script can catch
``KeyboardInterrupt`` as it does alone. Workers end as the server ends.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

# What the launcher got, and what it sends in its place: Open MPI's mpirun passes both on, and the
# first is ignored by programs that know nothing of it.
SIGNALS = {signal.SIGINT: signal.SIGURG, signal.SIGTERM: signal.SIGPWR}

_asked: signal.Signals | None = None
_pending = False  # until it is raised
_waits = False  # whether the step at hand is to be ended first


def listen(is_server: Callable[[], bool | None]) -> None:
    """Handles the launcher's signals.

    Args:
      is_server: whether this rank is the server; None as long as there is no job, while a process
        that is asked to stop just ends.
    """

    rank = os.getpid()

    def ask(number: int, _: FrameType | None) -> None:
        global _asked, _pending
        if os.getpid() != rank:  # a child of its, which the script ends
            return
        role = is_server()
        if role is None:
            os._exit(0)
        if _asked is None:
            _asked = next(each for each, sent in SIGNALS.items() if sent == number)
            _pending = role
            if role and not _waits:
                stop()

    for sent in SIGNALS.values():
        signal.signal(sent, ask)


def asked() -> bool:
    """Whether this process was asked to stop."""
    return _asked is not None


def pending() -> bool:
    """Whether ``stop`` is still to be called: the server waits for the end of a step."""
    return _pending


def wait_for_step(waits: bool) -> None:
    """Has ``stop`` called by whoever saves after the step at hand, instead of at once."""
    global _waits
    _waits = waits


def stop() -> None:
    """Raises what the signal raises that the launcher got.

    Raises:
      KeyboardInterrupt: for Ctrl-C, unless the script handles SIGINT itself.
      SystemExit: for SIGTERM, unless the script handles that.
    """
    global _pending
    assert _asked is not None
    _pending = False
    if _asked is signal.SIGTERM and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        raise SystemExit(0)
    signal.raise_signal(_asked)
