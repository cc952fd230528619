import dataclasses
import inspect
import math

import numpy as np
import pytest

from lossympi import LinkError, Options
from lossympi.collectives import Collectives
from lossympi.endpoint import REASONS, Closed
from lossympi.udp_link import UdpServer, UdpWorker
from tests.lossympi.ranks import on_ranks

NAN, INF = math.nan, math.inf
# Of each option: values at the ends of its range, values beyond them, and a word of the error.
TIME = ([1e-9, 1e9], [0, -1.0, INF, NAN], "is a time above 0 s")
RANGES = {
    "timeout_s": TIME,
    "floor_s": ([0, 1], [-1e-9, INF, NAN], "is a time of 0 s or more"),
    "f": ([None, 0, 7], [-1], "is at least 0 workers"),
    "max_loss": ([0, 0.01, 1], [-0.01, 1.01, 5, NAN], "is a share in 0..1"),
    "quorum": ([None, 1, 7], [0, -1], "is at least 1 worker"),
    "patience": ([1, 100], [0, -3], "is at least 1 round"),
    "auth": (["aead", "none"], ["AEAD", "", None, "aes"], "is 'aead' or 'none'"),
    "wire": (["float32", "float16", "bfloat16"], ["float64", "", None], "is one of float32"),
    "mtu": ([576, 1500, 9000, 65535], [575, 0, 65536], "is 576..65535 bytes"),
    "rate_bps": ([None, 1e3, 3.9e12], [999, 0, -1, 4e12, NAN], "is 1e3..4e12 bit/s"),
    "grace_s": ([0, 1], [-1e-9, INF, NAN], "is a time of 0 s or more"),
    "quiet_s": TIME,
    "silence_s": TIME,
    "give_up_s": TIME,
}


def test_every_option_is_in_the_table_and_told():
    names = [field.name for field in dataclasses.fields(Options)]
    assert list(RANGES) == names
    for name in names:
        assert f"\n      {name}: " in "\n" + inspect.getdoc(Options).replace("\n  ", "\n      ")


@pytest.mark.parametrize("name", RANGES)
def test_range(name):
    good, bad, words = RANGES[name]
    for value in good:
        assert getattr(Options(**{name: value}), name) == value
    for value in bad:
        with pytest.raises(ValueError, match=f"{name} {words}") as told:
            Options(**{name: value})
        assert repr(value) in str(told.value) or f"got {value}" in str(told.value)


@pytest.mark.parametrize("name", RANGES)
def test_ranks_that_differ_in_an_option_are_told_which(name):
    default = getattr(Options(), name)
    other = next(value for value in RANGES[name][0] if value != default)

    def agree(*of_ranks):
        def on_rank(comm):
            options = Options(**{name: of_ranks[comm.rank]})
            Collectives(comm, LinkError).agree("options", dataclasses.asdict(options))

        return on_ranks(2, on_rank)

    assert agree(other, other) == [None, None]
    for error in agree(default, other):
        assert f"; rank 0 and rank 1 have {name}={default!r} and {name}={other!r}. " in str(error)


@pytest.mark.parametrize(
    ("mtu", "wire", "floats"),
    [
        (1500, "float32", 352),
        (1500, "float16", 704),
        (1500, "bfloat16", 704),
        (9000, "float32", 2224),
        (576, "float32", 112),
        (1400, "float32", 320),
    ],
)
def test_floats_per_datagram(mtu, wire, floats):
    assert Options(mtu=mtu, wire=wire).floats_per_datagram == floats


class Endpoint:
    """Keeps what it is called with; no worker is ever heard."""

    def __init__(self):
        self.calls = []

    def collect(self, round, stack_nd, policy, on_whole):
        self.calls.append(policy)
        n = len(stack_nd)
        return Closed(
            "deadline", 0.0, np.zeros((n, 1), bool), np.zeros(n, bool), np.full(n, np.nan)
        )

    def broadcast(self, *arguments):
        self.calls.append(arguments)
        return np.zeros(2, bool)

    def send(self, *arguments):
        self.calls.append(arguments)
        return True

    def receive(self, round, timeout_s):
        self.calls.append(timeout_s)
        return round, np.zeros(10, np.float32)

    def counters(self):
        return {row: dict.fromkeys(("accepted", *REASONS, "unsent"), 0) for row in (-1, 1, 2)}


def server_with(**options):
    endpoint = Endpoint()
    return endpoint, UdpServer(endpoint, 2, 10, 1e9, Options(**options))


@pytest.mark.parametrize(
    ("options", "attribute", "value"),
    [
        ({}, "deadline_s", 30.0),
        ({"timeout_s": 2.0}, "deadline_s", 2.0),
        ({"grace_s": 0.5}, "grace_s", 0.5),
        ({"quiet_s": 0.5}, "quiet_s", 0.5),
        ({"max_loss": 0.1}, "max_loss", 0.1),
        ({}, "quorum", 2),
        ({"quorum": 1}, "quorum", 1),
    ],
)
def test_a_round_is_closed_as_the_options_say(options, attribute, value):
    endpoint, server = server_with(**options)
    server.collect(0)
    assert getattr(endpoint.calls[0], attribute) == value


@pytest.mark.parametrize("patience", [1, 3])
def test_patience(patience):
    endpoint, server = server_with(patience=patience)
    for round in range(5):
        server.collect(round)
    live = [policy.live_n == (True, True) for policy in endpoint.calls]
    assert live == [round < patience for round in range(5)]


def test_a_broadcast_is_as_the_options_say():
    endpoint, server = server_with(timeout_s=2.0, silence_s=0.7)
    server.broadcast(0, np.zeros(10, np.float32))
    assert endpoint.calls[0][-2:] == (2.0, 0.7)


def test_a_worker_does_as_the_options_say():
    endpoint = Endpoint()
    worker = UdpWorker(endpoint, 0, 10, Options(max_loss=0.1, give_up_s=9.0))
    worker.send(0, np.zeros(10, np.float32))
    worker.receive(0)
    assert endpoint.calls[0][2:] == (0.1, 9.0)
    assert endpoint.calls[1] == 9.0
