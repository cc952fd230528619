"""How a process of a job ends: an error that a user can fix is one line, and all ranks get it."""

from __future__ import annotations

import atexit
import logging
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
from aggregathor.log import tell_error
from lossympi import LinkError

if TYPE_CHECKING:
    from aggregathor.cluster.job import Job

_logger = logging.getLogger(__name__)
_job: Job | None = None
_hooked = False


def install_hook() -> None:
    """Makes an uncaught error that a user can fix one line on the terminal, without a traceback."""
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


def forget() -> None:
    """Makes a fork of this process one of no job."""
    global _job
    _job = None


def report(error: BaseException) -> int | None:
    """Writes an error that a user can fix in one line.

    Within a graph TensorFlow raises an error of its own in place of ours: then ours is written.

    Returns:
      The exit status; None for any other error.
    """
    if _job is not None and _job.failure is not None and not isinstance(error, KeyboardInterrupt):
        error = _job.failure
    if isinstance(error, TrainingEnded):
        if str(error) and _job is not None:
            reason = textwrap.shorten(str(error), 80, placeholder=" ...")
            rank = _job.ranks.rank
            _logger.warning("rank %d ends, as the server has ended the training: %s", rank, reason)
            return 1
        return 0
    if isinstance(error, (UserError, LinkError)):
        if not isinstance(error, SaidByServerError) and not _is_the_servers_too(error):
            tell_error(str(error))
        _note(error)
        return 2 if isinstance(error, UserError) else 1
    return None


def tell(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Writes the traceback of a script's error, without the frames of this package, in one piece.

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
    """Whether this worker fails as the server does, which reports it for all ranks."""
    if _job is None or _job.is_server or not isinstance(error, UserError):
        return False
    try:
        return _job.ranks.ended_soon() and _job.ranks.end_reason == str(error)
    except LinkError:
        return False


def end(status: int) -> None:
    """Runs the exit functions and ends the process with a status that no exception can give it."""
    try:
        atexit._run_exitfuncs()  # noqa: SLF001 - nothing public runs them before os._exit
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _note(error: BaseException) -> None:
    """Keeps the reason, which the workers receive at the end."""
    if _job is not None and _job.failure is None and isinstance(error, Exception):
        _job.fail(error)
