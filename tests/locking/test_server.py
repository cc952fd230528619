"""The locked server by itself: what it refuses, what it counts, and where it cannot be had."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import tensorflow as tf

from aggregathor.errors import UserError
from aggregathor.locking import server
from aggregathor.version import VersionError
from tests.locking.grpc_cluster import free_address

v1 = tf.compat.v1
RESET = "/tensorflow.MasterService/Reset"
AT_ONCE_S = 5

needs_library = pytest.mark.skipif(not server.LIBRARY.exists(), reason="it was not built")


@pytest.fixture(scope="module")
def locked():
    """A channel to a locked server, and the server."""
    address = free_address()
    started = server.locked_server({"ps": [address]}, "ps", 0)
    with grpc.insecure_channel(address) as channel:
        yield channel, started


def code(channel, method, sent=b""):
    with pytest.raises(grpc.RpcError) as refusal:
        channel.unary_unary(method)(sent, timeout=AT_ONCE_S)
    return refusal.value.code()


@needs_library
@pytest.mark.parametrize(
    "sent",
    [b"", b"\xff" * 100, b"\x0a\x03abc", b"\x0a\x80\x80\x40" + bytes(1 << 20)],
    ids=["nothing", "nonsense", "a name", "a name of 1 MiB"],
)
def test_whatever_is_sent_is_refused(sent, locked):
    assert code(locked[0], RESET, sent) is grpc.StatusCode.PERMISSION_DENIED


@needs_library
def test_more_than_any_request_needs_is_not_even_read(locked):
    sent = bytes(5 << 20)
    assert code(locked[0], RESET, sent) is grpc.StatusCode.RESOURCE_EXHAUSTED


@needs_library
def test_a_stream_is_refused(locked):
    method = "/tensorflow.eager.EagerService/StreamingEnqueue"
    with pytest.raises(grpc.RpcError) as refusal:
        list(locked[0].stream_stream(method)(iter([b"", b""]), timeout=AT_ONCE_S))
    assert refusal.value.code() is grpc.StatusCode.PERMISSION_DENIED


@needs_library
def test_what_nobody_serves_is_not_either(locked):
    for _ in range(20):  # one after the other, as gRPC deals them to its queues in turn
        assert code(locked[0], "/tensorflow.MasterService/Nothing") is grpc.StatusCode.UNIMPLEMENTED


@needs_library
def test_refusals_are_counted(locked):
    before = server.refused_calls().get(RESET, 0)
    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda _: code(locked[0], RESET), range(100)))
    assert set(codes) == {grpc.StatusCode.PERMISSION_DENIED}
    assert server.refused_calls()[RESET] == before + 100
    assert "/tensorflow.MasterService/ListDevices" not in server.refused_calls()


@needs_library
def test_sessions_of_its_own_process_are_as_ever(locked):
    with tf.Graph().as_default():
        w = v1.get_variable("w", initializer=1.0)
        with v1.Session(locked[1].target) as session:
            session.run(w.initializer)
            assert session.run(v1.assign_add(w, 2.0)) == 3.0


@needs_library
def test_an_address_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=f"no server can listen on {address}"):
            server.locked_server({"ps": [address]}, "ps", 0)


@needs_library
def test_an_address_of_another_machine_is_named():
    with pytest.raises(UserError, match=r"192\.0\.2\.7:4567, which the cluster names for ps 1"):
        server.locked_server({"ps": ["127.0.0.1:1", "192.0.2.7:4567"]}, "ps", 1)


@needs_library
@pytest.mark.parametrize("what", ["cache_rpc_response", "coordination_config"])
def test_a_configuration_that_needs_what_is_refused(what):
    config = v1.ConfigProto()
    if what == "cache_rpc_response":
        config.rpc_options.cache_rpc_response = True
    else:
        config.experimental.coordination_config.service_type = "standalone"
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"grpc\+lock cannot have .*{what}"):
        server.locked_server({"ps": [free_address()]}, "ps", 0, config)


@pytest.fixture
def library(monkeypatch, tmp_path):
    """A folder that stands for the one with the library and what is known of it."""
    monkeypatch.setattr(server, "LIBRARY", tmp_path / "libaggregathor_grpc.so")
    monkeypatch.setattr(server, "BUILD_FACTS", tmp_path / "build.json")
    server._library.cache_clear()
    yield server.LIBRARY
    server._library.cache_clear()


def test_a_library_that_was_not_built(library):
    with pytest.raises(
        UserError, match=r'"grpc\+lock" needs libaggregathor_grpc\.so, which was not'
    ):
        server.register()


@pytest.mark.parametrize(
    ("facts", "found"),
    [({"tensorflow": "2.21.1000"}, r"built for TensorFlow 2\.21\.1000 and"), ({}, "nobody knows")],
)
def test_a_library_for_another_tensorflow(facts, found, library):
    library.write_bytes(b"not to be opened")
    server.BUILD_FACTS.write_text(json.dumps(facts))
    with pytest.raises(VersionError, match=found):
        server.register()


@pytest.mark.parametrize(
    ("facts", "found"),
    [({"library_bytes": 4}, "damaged: 3 bytes, and 4 were built"), ({}, "could not be loaded")],
)
def test_a_library_that_is_damaged(facts, found, library):
    library.write_bytes(b"cut")
    server.BUILD_FACTS.write_text(json.dumps({"tensorflow": tf.__version__, **facts}))
    with pytest.raises(UserError, match=found):
        server.register()
