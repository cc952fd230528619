"""How a process of a job ends: a line for what a user can mend, and every rank is told."""

from __future__ import annotations

import atexit
import os
import sys
import textwrap
from pathlib import Path
from traceback import format_exception
from types import TracebackType
from typing import TYPE_CHECKING

from aggregathor.cluster.meeting import SaidByServerError
from aggregathor.cluster.ranks import TrainingEnded
from aggregathor.errors import UserError
from aggregathor.log import say
from lossympi import LinkError

if TYPE_CHECKING:
    from aggregathor.cluster.job import Job

_job: Job | None = None
_hooked = False


def install_hook() -> None:
    """Makes uncaught errors that a user can mend a line on the terminal, without a traceback."""
    global _hooked
    if not _hooked:
        _hooked = True
        before = sys.excepthook

        def hook(
            kind: type[BaseException], error: BaseException, traceback: TracebackType | None
        ) -> None:
            status = report(error)
            if status is None:
                (tell if before is sys.__excepthook__ else before)(kind, error, traceback)
                _note(error)
                return
            end(status)

        sys.excepthook = hook


def watch(job: Job) -> None:
    """Ends the job's links when this process ends, however it does."""
    global _job
    _job = job
    atexit.register(job.close)


def report(error: BaseException) -> int | None:
    """Tells an error that a user can mend, and returns the exit status; None for any other.

    An error of TensorFlow's may stand for one of ours, raised within a graph.
    """
    if _job is not None and _job.failure is not None and not isinstance(error, KeyboardInterrupt):
        error = _job.failure
    if isinstance(error, TrainingEnded):
        if str(error) and _job is not None:
            reason = textwrap.shorten(str(error), 80, placeholder=" ...")
            say(f"rank {_job.ranks.rank} ends, as the server has ended the training: {reason}")
            return 1
        return 0
    if isinstance(error, (UserError, LinkError)):
        if not isinstance(error, SaidByServerError) and not _is_the_servers_too(error):
            say(f"error: {error}")
        _note(error)
        return 2 if isinstance(error, UserError) else 1
    return None


def tell(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Writes a traceback of the script's, without what has started it, in one piece.

    All ranks share a terminal, and may fail at once.
    """
    package = str(Path(__file__).parents[1])
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_filename.startswith((package, "<frozen runpy>")):
            break
        traceback = traceback.tb_next
    lines = "".join(format_exception(kind, error, traceback))
    rank = "" if _job is None else f"aggregathor: the script has failed on rank {_job.ranks.rank}\n"
    sys.stderr.write(rank + lines)
    sys.stderr.flush()


def _is_the_servers_too(error: Exception) -> bool:
    """Whether this worker fails as the server does, which tells it for all."""
    if _job is None or _job.is_server or not isinstance(error, UserError):
        return False
    try:
        return _job.ranks.ended_soon() and _job.ranks.end_reason == str(error)
    except LinkError:
        return False


def end(status: int) -> None:
    """Ends the process after its exit functions, with a status that an exception cannot give."""
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _note(error: BaseException) -> None:
    """Keeps the reason, for the workers to be told at the end."""
    if _job is not None and _job.failure is None and isinstance(error, Exception):
        _job.fail(error)
