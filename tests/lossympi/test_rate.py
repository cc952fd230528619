import numpy as np
import pytest

from lossympi.options import Options
from lossympi.rate import Rate
from lossympi.udp_link import UdpServer, granted_datagrams
from tests.lossympi.test_options import Endpoint

N = 4
GRANTED_N = np.full(N, 1000.0)


def observe(rate, overflow=1, fresh=(500,) * N, repeated=(0,) * N, strays=0):
    rate.observe(overflow, np.array(fresh), np.array(repeated), GRANTED_N, strays)
    return rate


def test_losses_in_the_servers_own_buffer_lower_the_rate_and_calm_raises_it():
    rate = Rate(1000.0, N)
    observe(rate)
    assert rate.bps == 700.0
    for _ in range(10):
        observe(rate, overflow=0)
    assert rate.bps == 700.0
    observe(rate, overflow=0)
    assert rate.bps == 707.0
    for _ in range(100):
        observe(rate, overflow=0)
    assert rate.bps == 1000.0
    for _ in range(50):
        observe(rate, overflow=99)
    assert rate.bps == 20.0
    assert (rate.share_n == 1).all()


def test_who_sends_more_than_was_granted_lowers_its_own_rate_only():
    rate = Rate(1000.0, N)
    for _ in range(50):
        observe(rate, fresh=(500, 1001, 1000, 0))
    assert rate.bps == 1000.0
    assert rate.share_n.tolist() == [1, 0.02, 1, 1]
    for _ in range(11):
        observe(rate, overflow=0)
    assert rate.share_n[1] == pytest.approx(0.0202)
    for _ in range(500):
        observe(rate, overflow=0)
    assert rate.share_n.tolist() == [1] * 4


@pytest.mark.parametrize(
    "flood", [{"strays": 300}, {"repeated": (0, 100_000, 0, 0)}, {"strays": 201, "overflow": 10**6}]
)
def test_what_anybody_may_have_sent_lowers_nobody_s_rate(flood):
    """Strangers' datagrams, forged ones, and a worker's own that somebody else sends again."""
    rate = observe(Rate(1000.0, N), **flood)
    assert (rate.bps, rate.share_n.tolist()) == (1000.0, [1] * N)


def test_a_few_strays_do_not_hide_that_the_rate_is_too_high():
    assert observe(Rate(1000.0, N), strays=200, repeated=(400,) * N).bps == 700.0


def test_what_is_granted_in_datagrams():
    granted_n = granted_datagrams((8000, 80), 2.0, 1000)
    np.testing.assert_array_equal(granted_n, [1.25 * 2000 + 100, 1.25 * 20 + 100])


class Flooded(Endpoint):
    """One whose buffer overflows in every round, by what the test says has come."""

    def __init__(self, came):
        super().__init__()
        self._came = {-1: {"overflow": 9}, **came}

    def counters(self):
        counters = super().counters()
        for rank, reasons in self._came.items():
            for reason, count in reasons.items():
                counters[rank][reason] = count * len(self.calls)
        return counters


@pytest.mark.parametrize(
    ("came", "granted"),
    [
        ({}, (350_000, 350_000)),
        ({2: {"malformed": 10**7}}, (500_000, 350_000)),
        ({2: {"early": 10**7}}, (500_000, 350_000)),
        ({2: {"accepted": 10**7}}, (500_000, 350_000)),
        ({2: {"forged": 10**7}}, (500_000, 500_000)),
        ({2: {"replayed": 10**7}}, (500_000, 500_000)),
        ({-1: {"overflow": 9, "foreign": 10**7}}, (500_000, 500_000)),
    ],
)
def test_a_link_grants_less_to_whom_it_concerns(came, granted):
    endpoint = Flooded(came)
    link = UdpServer(endpoint, 2, 10, 1e9, Options())
    for round in range(2):
        link.collect(round)
    assert [policy.rate_kbps for policy in endpoint.calls] == [(500_000, 500_000), granted]
