"""The server of a job: no port of TensorFlow's is open, and a worker has its row of the stack."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.locking.listeners import answers_grpc, tcp_ports
from tests.mpi.launch import ROOT, check, environment, train

SCRIPT = Path(__file__).with_name("construction_script.py")
SERVER = """
import sys, tensorflow as tf
server = tf.distribute.Server({"ps": ["127.0.0.1:0"]}, protocol="grpc")
print("up", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("transport", [pytest.param("shm", marks=pytest.mark.long), "udp"])
def test_a_worker_has_its_row_and_nothing_else(transport, tmp_path):
    said = check(train(4, SCRIPT, transport, tmp_path, PYTHONPATH=str(ROOT)))
    assert "ports that answer gRPC: 0 of " in said
    assert "rounds: 13, rows of others intact: True" in said
    assert float(re.search(r"arrived of them: (\S+)", said)[1]) > 0.9
    assert "made of the stack alone: True" in said
    # It has written, and it was seen.
    assert ("scribbled: True" in said) == (transport == "shm")
    assert (int(re.search(r"rejected: (\d+)", said)[1]) > 50) == (transport == "udp")


def test_a_server_of_tensorflow_has_such_a_port():
    """What is looked for above is found where it is."""
    command = [sys.executable, "-c", SERVER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, env=environment(), **pipes) as server:
        try:
            assert server.stdout.readline() == "up\n"
            assert any(map(answers_grpc, tcp_ports(server.pid)))
        finally:
            server.kill()
