"""Starts the cluster of grpc_task.py, and listens in on what its tasks tell each other."""

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

from tests.warm.start import python as warm_python

TASK = Path(__file__).with_name("grpc_task.py")
ANSWER_S = 60
# In a RunGraphRequest field 8 is the handle of the master's session, 16 hexadecimal digits.
SESSION = re.compile(rb"\x42\x10([0-9a-f]{16})")
# Field 1 is the graph's handle, and field 2 the step's number.
STEP = re.compile(rb"\x0a\x10[0-9a-f]{16}\x10([\x80-\xff]+[\x00-\x7f])")


class Victim:
    """A parameter server with a worker, in processes of their own."""

    def __init__(self, protocol, folder):
        self.protocol = protocol
        self.folder = folder  # of files that are the server's
        self.steps = 0  # since training began
        ps, worker = free_address(), free_address()
        self.address, self.worker_address = ps, worker
        self._wire = Wire(worker)
        with contextlib.ExitStack() as undo:
            undo.callback(self._wire.close)
            self._worker = self._start("worker", {"ps": [ps], "worker": [worker]})
            undo.callback(_end, self._worker)
            self._ps = self._start_server()
            undo.callback(lambda: _end(self._ps))
            for each in (self._worker, self._ps):
                assert _read(each) == "up"
            self.close = undo.pop_all().close

    def _start_server(self):
        # It reaches its worker by somebody who reads along.
        cluster = {"ps": [self.address], "worker": [self._wire.address]}
        return self._start("ps", cluster)

    def _start(self, task, cluster):
        # The worker is stopped at times, which a process that stands for another cannot pass on.
        python = warm_python() if task == "ps" else [sys.executable]
        return subprocess.Popen(
            [*python, str(TASK), task, self.protocol, json.dumps(cluster)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=self.folder,  # an attacker may have files written there
            env={**os.environ, "PYTHONPATH": str(TASK.parents[2])},
        )

    def renew(self):
        """Begins training anew, in a new session; in a new process, if the last one has ended."""
        if self.has_ended(0):
            _end(self._ps)
            self._ps = self._start_server()
            assert _read(self._ps) == "up"
        assert self._ask("renew") == "renewed"
        self.steps = 0

    def step(self):
        """Returns the loss of a step, or the error of the parameter server."""
        self.begin_step()
        return self.end_step()

    def has_ended(self, within_s):
        """Whether the parameter server's process is no more, within some time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._ps.wait(within_s) is not None
        return False

    def noted(self):
        """Returns what the server's own Python function was called with."""
        return self._ask("noted")

    def refused(self):
        """Returns how often which method was refused."""
        return self._ask("refused")

    def session(self):
        """Returns the handle of the master's session, as it was last read on the wire."""
        return SESSION.findall(self._wire.heard())[-1].decode()

    def steps_heard(self):
        """Returns the numbers of all steps, as they were read on the wire."""
        return {
            sum((byte & 127) << 7 * at for at, byte in enumerate(number))
            for number in STEP.findall(self._wire.heard())
        }

    def begin_step(self):
        """Begins a step, whose loss ``end_step`` returns."""
        self.steps += 1
        self._tell("step")

    def end_step(self):
        return _read(self._ps)

    @contextlib.contextmanager
    def slow_worker(self):
        """Lets the worker do nothing meanwhile."""
        self._worker.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._worker.send_signal(signal.SIGCONT)

    def _ask(self, order):
        self._tell(order)
        return _read(self._ps)

    def _tell(self, order):
        self._ps.stdin.write(order + "\n")
        self._ps.stdin.flush()


class Wire:
    """Passes on what comes to its address, and keeps what the one who connects has said."""

    def __init__(self, to):
        self._to = to
        self._heard = bytearray()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = address_of(self._listener)
        threading.Thread(target=self._serve, daemon=True).start()

    def heard(self):
        return bytes(self._heard)

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)  # which ends accept
        self._listener.close()

    def _serve(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            host, port = self._to.split(":")
            try:
                far = socket.create_connection((host, int(port)))
            except OSError:  # it is not up yet, and gRPC tries again
                near.close()
                continue
            for source, sink, keeps in ((near, far, True), (far, near, False)):
                thread = threading.Thread(
                    target=self._pass_on, args=(source, sink, keeps), daemon=True
                )
                thread.start()

    def _pass_on(self, source, sink, keeps):
        with contextlib.suppress(OSError), source, sink:
            while data := source.recv(65536):
                if keeps:
                    self._heard += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)


def free_address():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return address_of(taken)


def address_of(listener):
    host, port = listener.getsockname()
    return f"{host}:{port}"


def _read(process):
    ready, _, _ = select.select([process.stdout], [], [], ANSWER_S)
    assert ready, f"no answer within {ANSWER_S} s"
    line = process.stdout.readline()
    assert line, "the process has ended"
    return json.loads(line)


def _end(process):
    process.kill()
    process.communicate()
