"""Starts Python programs that use TensorFlow, in a hundredth of the time that its import takes.

``python()`` returns words that stand for ``sys.executable`` in a command, such as mpirun's. They
call a small program (client.py), which asks a process that has imported TensorFlow, and nothing of
ours (server.py), for a fork of itself. It hands it arguments, environment, folder and standard
streams, passes signals on, and ends as it ends. Of Python's options it understands ``-W error``
and, behind that, ``-m MODULE``, ``-c CODE`` or a script.

Not for what is stopped (SIGSTOP), for what depends on the number of its process or on who of
several ends first, or on what an import of TensorFlow says. With TESTS_COLD=1 in the environment
every program starts from nothing.
"""

import atexit
import functools
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent


def python():
    """Words that stand for ``sys.executable``."""
    if os.environ.get("TESTS_COLD") == "1":
        return [sys.executable]
    # Neither site-packages nor the environment: it has to start quickly.
    return [sys.executable, "-I", "-S", str(FOLDER / "client.py"), _server()]


@functools.cache
def executable():
    """A file that stands for ``sys.executable``, where there must be one word."""
    path = Path(_folder()) / "python"
    path.write_text(f'#!/bin/sh\nexec {shlex.join(python())} "$@"\n')
    path.chmod(0o700)
    return str(path)


@functools.cache
def _folder():
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    return folder


@functools.cache
def _server():
    """Starts the server of this process; returns its address."""
    address = f"{_folder()}/warm"
    server = subprocess.Popen(
        [sys.executable, FOLDER / "server.py", address],
        stdin=subprocess.PIPE,  # when this process ends, however it does, so does the server
        stdout=subprocess.PIPE,
        # A fork has no threads but its own: so NumPy must not have made any.
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        text=True,
    )
    atexit.register(_stop, server)
    if server.stdout.readline() != "listening\n":
        raise OSError("the server of warm processes did not start")
    return address


def _stop(server):
    server.stdin.close()
    server.stdout.close()
    server.wait()
