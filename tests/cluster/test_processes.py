"""Which processes the server takes for its workers', and kills."""

import os
import secrets
import signal
import subprocess
import sys
import threading
import time

import pytest

from aggregathor.cluster import processes
from aggregathor.cluster.processes import Process, identify, identify_all, lineage, listen, now_s

LISTENS = """
import socket, sys
made = []
for rank in sys.argv[2:]:
    made.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    made[-1].bind(f"\\0aggregathor-{sys.argv[1]}-{rank}")
    made[-1].listen(8)
print("listens", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def killed():
    """Here processes are real ones, and so are signals."""


@pytest.fixture
def token():
    return secrets.token_hex(16)


@pytest.fixture
def start(token):
    """Returns a function that starts a process that listens as the given ranks do."""
    started = []

    def start(*ranks):
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", LISTENS, token, *map(str, ranks)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "listens\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def becomes(process, state):
    until_s = time.monotonic() + 10
    while process.state() != state and time.monotonic() < until_s:
        time.sleep(0.01)
    return process.state() == state


def test_a_worker_of_this_host_is_known_watched_and_killed(token, start):
    child = start(2)
    process = identify(token, 2, now_s())
    assert isinstance(process, Process)
    assert process.pid == child.pid
    assert process.state() in "RSD"
    child.send_signal(signal.SIGSTOP)
    assert becomes(process, "T")
    process.kill()
    assert becomes(process, "")  # a zombie, whose number nobody has yet
    assert child.wait(10) == -signal.SIGKILL
    assert process.state() == ""
    process.kill()  # does no harm
    process.close()


def test_who_does_not_listen_is_not_known(token):
    assert identify(token, 1, now_s()) == "it is not seen on the server's host"


def test_who_listens_for_another_job_is_not_known(start):
    start(1)
    assert identify(secrets.token_hex(16), 1, now_s()) == "it is not seen on the server's host"


def test_the_server_itself_is_no_worker(token):
    with listen(token, 1):
        words = "it is the server's own process, or one that started it"
        assert identify(token, 1, now_s()) == words


def test_who_started_the_server_is_no_worker(token, start, monkeypatch):
    assert {os.getpid(), os.getppid()} <= lineage()
    child = start(1)
    monkeypatch.setattr(processes, "lineage", lambda: {child.pid})
    assert "or one that started it" in identify(token, 1, now_s())


def test_a_process_of_another_user_is_not_known(token, start, monkeypatch):
    start(1)
    monkeypatch.setattr(processes.os, "geteuid", lambda: 12345)
    assert identify(token, 1, now_s()) == "it belongs to another user"


@pytest.mark.parametrize("pid", [0, -1, 1])
def test_no_process_has_these_numbers(token, start, pid, monkeypatch):
    """0 is what the kernel says of a process that this one cannot see."""
    start(1)
    monkeypatch.setattr(
        processes, "_CREDENTIALS", type("", (), {"size": 12, "unpack": lambda _: (pid, 0, 0)})
    )
    assert identify(token, 1, now_s()) == "it is in another container"


def test_a_number_that_was_given_again_is_not_the_workers(token, start):
    before_s = now_s()
    time.sleep(0.05)  # starts are told in hundredths of a second
    start(1)
    assert identify(token, 1, before_s) == "it has ended"


def test_of_two_ranks_that_are_one_process_neither_is_known(token, start):
    start(1, 3)
    honest = start(2)
    found = identify_all(token, [1, 2, 3], now_s())
    assert found[1] == found[3] == "another rank is the same process"
    assert found[2].pid == honest.pid
    found[2].close()


def test_a_name_that_somebody_has_taken_leaves_a_worker_unknown(token, start):
    start(1)
    assert listen(token, 1) is None


def test_who_takes_no_connection_holds_up_nobody(token):
    """Its queue is full after some."""
    with listen(token, 1):
        thread = threading.Thread(
            target=lambda: [identify(token, 1, now_s()) for _ in range(40)], daemon=True
        )
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
