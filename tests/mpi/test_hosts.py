"""A job over three hosts, which are network namespaces whose packets nftables drops."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.mpi.launch import HOSTS, ROOT, check, environment, run, skip_without_hosts


def test_a_tenth_of_the_packets_is_lost_on_the_way():
    skip_without_hosts()
    command = (sys.executable, "-W", "error", "-m", "tests.mpi.ranks", "lossy", "native")
    check(run([HOSTS, "--hosts=3", "--drop=100", *command]))


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_run_that_is_interrupted(sign, tmp_path):
    skip_without_hosts()
    started = tmp_path / "started"
    body = 'readlink /proc/self/ns/net >"$1.new" && mv "$1.new" "$1" && sleep 60'
    command = [HOSTS, "--plain", "ip", "netns", "exec", "lm_1", "sh", "-c", body, "sh", started]
    with subprocess.Popen(command, cwd=ROOT, env=environment()) as script:
        wait_until(started.exists)
        script.send_signal(sign)
        assert script.wait(timeout=10) != 0
    host = started.read_text().strip()
    wait_until(lambda: host not in networks_in_use())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--hosts=1", "true"], "hosts are 2..99, got '1'"),
        (["--drop=0.1", "true"], "drop is 0..1000 per mille, got '0.1'"),
        (["--hosts=2"], "which command shall run?"),
        (["--nonsense", "true"], "there is no option --nonsense"),
    ],
)
def test_mistakes_are_told(arguments, words):
    done = run([HOSTS, *arguments])
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def wait_until(true, timeout_s=10):
    until = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def networks_in_use():
    found = set()
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(os.readlink(link))
        except OSError:  # it has just ended, or is not ours
            continue
    return found
