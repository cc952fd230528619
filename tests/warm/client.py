"""Asks the server for a process, and is to its own parent what that process would be."""

import contextlib
import json
import os
import resource
import signal
import socket
import sys

PASSED_ON = (
    "SIGTERM",
    "SIGINT",
    "SIGHUP",
    "SIGQUIT",
    "SIGUSR1",
    "SIGUSR2",
    "SIGCONT",
    "SIGURG",
    "SIGPWR",
)


def main():
    signals = [getattr(signal, name) for name in PASSED_ON]
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # until they can be passed on
    address, *arguments = sys.argv[1:]
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        request = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
        text = json.dumps(request).encode()
        socket.send_fds(server, [len(text).to_bytes(4, "little")], [0, 1, 2])
        server.sendall(text)
        answer = server.makefile()
        process = int(answer.readline())
        for each in signals:
            signal.signal(each, lambda number, _: pass_on(process, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        status = int(answer.readline())
    if status < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if status != -signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def pass_on(process, number):
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(process, number)


main()
