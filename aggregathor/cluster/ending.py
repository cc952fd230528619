"""How a process of a job ends: an error that a user can fix is one line, and all ranks get it."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import sysconfig
import textwrap
import traceback
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from aggregathor.cluster.meeting import SaidByServerError
from aggregathor.cluster.ranks import CheckDone, Goodbye, TrainingEnded
from aggregathor.errors import UserError
from aggregathor.log import tell_error
from lossympi import LinkError

if TYPE_CHECKING:
    from aggregathor.cluster.job import Job

_logger = logging.getLogger(__name__)
_job: Job | None = None
_hooked = False
_has_status = False  # of its own, other than 0
_must_fail = False  # though the script ended well


def install_hook() -> None:
    """Makes an uncaught error that a user can fix one line on the terminal, without a traceback."""
    global _hooked
    if not _hooked:
        _hooked = True
        atexit.register(_fail)
        before = sys.excepthook

        def hook(
            kind: type[BaseException], error: BaseException, trace: TracebackType | None
        ) -> None:
            status = report(error)
            if status is None:
                if not _is_the_servers_too(error):
                    (tell if before is sys.__excepthook__ else before)(kind, error, trace)
                _note(error)
                return
            end(status)

        sys.excepthook = hook


def watch(job: Job) -> None:
    """Ends the job's links when this process ends, however it does."""
    global _job
    _job = job
    atexit.register(_close)


def _close() -> None:
    """Closes the job; one in which nothing was distributed has failed."""
    global _must_fail
    assert _job is not None
    _must_fail = _is_nothing_distributed()
    _job.close()


def _fail() -> None:
    """The last of the exit functions."""
    if _must_fail:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(2)


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
    if isinstance(error, CheckDone):
        return 0
    if isinstance(error, TrainingEnded):
        if _job is not None:
            _job.ranks.goodbye = Goodbye(True, "")
        if str(error):  # which the server has said for all
            _logger.debug("this rank ends, as the server has ended the training: %s", error)
            return 1
        return 0
    if isinstance(error, (UserError, LinkError)):
        if not isinstance(error, SaidByServerError) and not _is_the_servers_too(error):
            tell_error(str(error))
        _note(error)
        return 2 if isinstance(error, UserError) else 1
    return None


def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Writes the traceback of a script's error, without the frames of this package, in one piece.

    All ranks share a terminal, and may fail at once.
    """
    package = str(Path(__file__).parents[1])
    while trace is not None:
        if not trace.tb_frame.f_code.co_filename.startswith((package, "<frozen runpy>")):
            break
        trace = trace.tb_next
    lines = "".join(traceback.format_exception(kind, error, trace))
    rank = "" if _job is None else f"aggregathor: the script has failed on rank {_job.ranks.rank}\n"
    sys.stderr.write(rank + lines)
    sys.stderr.flush()


def _is_nothing_distributed() -> bool:
    """Says it, on the server, if no optimizer took part in a job that ends; returns whether."""
    if _job is None or _job.has_begun or _job.failure is not None or _has_status:
        return False
    if _job.is_server:
        tell_error(
            "nothing was distributed: every process trained for itself, as no optimizer took part. "
            "The script's updates must go through an optimizer of Keras or tf.compat.v1: its "
            "apply_gradients, minimize or fit; where agt.init is used, one that "
            "agt.DistributedOptimizer returned. A rule of your own takes part by agt.apply."
        )
    return True


def _is_the_servers_too(error: BaseException) -> bool:
    """Whether this worker fails as the server does, which reports it for all ranks."""
    if _job is None or _job.is_server or not isinstance(error, Exception) or not str(error):
        return False
    try:
        return _job.ranks.ended_soon() and _job.ranks.end_reason == str(error)
    except LinkError:
        return False


def end(status: int) -> None:
    """Runs the exit functions and ends the process with a status that no exception can give it."""
    global _has_status
    _has_status = status != 0
    try:
        atexit._run_exitfuncs()  # noqa: SLF001 - nothing public runs them before os._exit
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _note(error: BaseException) -> None:
    """Keeps the reason, which the workers receive at the end."""
    if _job is not None and isinstance(error, Exception):
        _job.ranks.goodbye = Goodbye(False, _words_of(error))
        if _job.failure is None:
            _job.fail(error)


def _words_of(error: Exception) -> str:
    """Returns an error in a line, with the line of the user's script that it came from."""
    kind = "" if isinstance(error, (UserError, LinkError)) else f"{type(error).__name__}: "
    words = textwrap.shorten(f"{kind}{error}", 200, placeholder=" ...")
    place = ""
    package, libraries = str(Path(__file__).parents[1]), ("<frozen", sysconfig.get_path("stdlib"))
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = frame.f_code.co_filename
        if not path.startswith((package, *libraries)) and "site-packages" not in path:
            place = f" ({Path(path).name}:{line})"
    return words + place
