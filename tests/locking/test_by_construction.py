"""The server of a job: no port of TensorFlow's is open, and a worker has its row of the stack."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.locking.listeners import answers_grpc, tcp_ports
from tests.mpi.launch import check, environment, train
from tests.mpi.results import collected

SCRIPT = Path(__file__).with_name("construction_script.py")
SERVER = """
import sys, tensorflow as tf
server = tf.distribute.Server({"ps": ["127.0.0.1:0"]}, protocol="grpc")
print("up", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("transport", [pytest.param("shm", marks=pytest.mark.long), "udp"])
def test_a_worker_has_its_row_and_nothing_else(transport, tmp_path):
    check(train(4, SCRIPT, transport, RESULTS=str(tmp_path)))
    found = collected(tmp_path)
    assert found[0]["ports that answer gRPC"] == 0
    assert found[0]["rounds"] == 13
    assert found[0]["rows of others are intact"]
    assert found[0]["arrived of them"] > 0.9
    assert found[0]["is made of the stack alone"]
    # It has written, and it was seen.
    assert (found[3]["scribbled"] > 0) == (transport == "shm")
    assert (found[0]["rejected"] > 50) == (transport == "udp")


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
