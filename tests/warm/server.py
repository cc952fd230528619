"""Imports TensorFlow once, and forks itself for each program that is to run with it.

usage: server.py ADDRESS. It ends when its standard input does.
"""

import contextlib
import gc
import io
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import warnings

PATHS = len(list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))))


def main():
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen(64)
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    import numpy
    import sklearn.datasets  # noqa: F401 - for who comes
    import tensorflow  # noqa: F401 - and with it Keras

    # A fork has the thread that forks and no other.
    assert len(os.listdir("/proc/self/task")) == 1
    gc.freeze()  # what is here stays: forks need not look at it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the tests' Ctrl-C
    request = serve(listener)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    numpy.random.seed(None)  # noqa: NPY002 - what a start does; Python's own generator does it
    try:
        become(request)
    except Exception as error:  # what Python does, less this file's frames
        traceback = error.__traceback__
        while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
            traceback = traceback.tb_next
        sys.excepthook(type(error), error.with_traceback(traceback), traceback)
        sys.exit(1)


def serve(listener):
    """Forks for each request; returns it in the fork."""
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ, ("request",))
        selector.register(sys.stdin, selectors.EVENT_READ, ("end",))
        while True:
            # One at a time: what is done may make the next one void.
            key, _ = selector.select()[0]
            what, *of = key.data
            if what == "end":
                os._exit(0)
            elif what == "request":
                connection, _ = listener.accept()
                request, streams = receive(connection)
                process = os.fork()
                if process == 0:
                    connection.close()
                    listener.close()
                    for number, stream in enumerate(streams):
                        os.dup2(stream, number)
                        os.close(stream)
                    return request
                for stream in streams:
                    os.close(stream)
                connection.sendall(f"{process}\n".encode())
                handle = os.pidfd_open(process)
                selector.register(handle, selectors.EVENT_READ, ("ended", process, connection))
                selector.register(connection, selectors.EVENT_READ, ("left", process))
            elif what == "left":  # the client was killed
                selector.unregister(key.fileobj)
                os.kill(of[0], signal.SIGKILL)
            else:
                process, connection = of
                selector.unregister(key.fileobj)
                os.close(key.fileobj)
                if connection in selector.get_map():
                    selector.unregister(connection)
                _, status = os.waitpid(process, 0)
                with contextlib.suppress(OSError):  # the client was killed
                    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
                connection.close()


def receive(connection):
    """Returns what a client asks for, and its standard streams."""
    size, streams, _, _ = socket.recv_fds(connection, 4, 3)
    text = b""
    while len(text) < int.from_bytes(size, "little"):
        text += connection.recv(65536)
    return json.loads(text), streams


def become(request):
    """Does what Python does at its start, then runs the program."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    given = os.environ.get("PYTHONPATH", "")
    sys.path[1 : 1 + PATHS] = filter(None, given.split(os.pathsep))
    sys.stdin = os.fdopen(0, closefd=False)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = io.TextIOWrapper(
            os.fdopen(number, "wb", closefd=False),
            errors="backslashreplace" if name == "stderr" else "strict",
            line_buffering=name == "stderr" or os.isatty(number),
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    how, *words = request["arguments"]
    if request["arguments"][:2] == ["-W", "error"]:
        warnings.simplefilter("error")
        how, *words = words[1:]
    if how == "-m":
        sys.path[0] = os.getcwd()
        sys.argv = words
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    elif how == "-c":
        sys.path[0] = ""
        sys.argv = ["-c", *words[1:]]
        exec(compile(words[0], "<string>", "exec"), {"__name__": "__main__"})
    elif how.startswith("-"):
        sys.exit(f"warm: no option of Python's is understood, got {how}")
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(how))
        sys.argv = [how, *words]
        runpy.run_path(how, run_name="__main__")


main()
