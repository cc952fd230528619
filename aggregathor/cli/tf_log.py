"""Keeps TensorFlow's start-up log off the terminal of a command."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_tensorflow() -> Iterator[None]:
    """Holds back what is written to file descriptor 2, and shows it only after an error.

    For imports of TensorFlow: its C++ log goes there, past ``sys.stderr``, until it is set up, and
    no environment variable stops all of it. Of what TensorFlow logs later, errors are shown, unless
    TF_CPP_MIN_LOG_LEVEL says otherwise. Ctrl-C ends the process with status 130.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _ctrl_c_ends_the_process(), tempfile.TemporaryFile() as log:
        real_stderr = os.dup(2)
        os.dup2(log.fileno(), 2)
        failed = True
        try:
            yield
            if "tensorflow" in sys.modules:  # it also logs when it looks for devices
                sys.modules["tensorflow"].config.list_physical_devices()
            failed = False
        except KeyboardInterrupt:
            failed = False
            raise
        finally:
            os.dup2(real_stderr, 2)
            os.close(real_stderr)
            if failed:
                log.seek(0)
                with open(2, "wb", closefd=False) as stderr:
                    stderr.write(log.read())


@contextlib.contextmanager
def _ctrl_c_ends_the_process() -> Iterator[None]:
    """For imports: Python aborts at a KeyboardInterrupt while a C++ module is initialised."""
    # Only the main thread may set handlers; a handler that somebody else has set stays.
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
