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
    """Holds back what is written to file descriptor 2, and shows it only if an error comes.

    For imports of TensorFlow: its C++ log goes there, past ``sys.stderr``, as long as nobody has
    set it up, and no environment variable stops all of it. Of what TensorFlow logs later, errors
    are shown, unless TF_CPP_MIN_LOG_LEVEL says otherwise. Ctrl-C ends the process with status 130.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _ctrl_c_ends_the_process(), tempfile.TemporaryFile() as log:
        real_stderr = os.dup(2)
        os.dup2(log.fileno(), 2)
        failed = True
        try:
            yield
            if "tensorflow" in sys.modules:  # looking for devices is the other loud moment
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
    """For imports: a KeyboardInterrupt within the start of a C++ module is fatal to Python."""
    # Only the main thread may set handlers, and those that others have set are theirs.
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
