import pytest

from lossympi.plane.pacing import Pacer


def test_a_rate_is_kept():
    pacer = Pacer(1000.0, burst_s=0.0)
    assert [pacer.when(10.0, 100) for _ in range(4)] == pytest.approx([10.0, 10.1, 10.2, 10.3])


def test_idle_time_earns_a_burst_and_no_more():
    pacer = Pacer(1000.0, burst_s=0.2)
    for now in (10.0, 99.0):
        sent_at = [pacer.when(now, 100) for _ in range(5)]
        assert sent_at == pytest.approx([now - 0.2, now - 0.1, now, now + 0.1, now + 0.2])


def test_oversleeping_is_made_up_for():
    pacer = Pacer(1000.0, burst_s=0.2)
    now = 0.0
    for _ in range(1000):
        now = max(now, pacer.when(now, 100)) + 0.05  # each wait ends half a datagram too late
    assert now == pytest.approx(100.0, abs=0.5)


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_no_rate_is_refused(rate):
    with pytest.raises(ValueError, match="above 0"):
        Pacer(rate)
