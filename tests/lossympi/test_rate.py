from lossympi.rate import Rate


def test_losses_in_the_servers_own_buffer_lower_the_rate_and_calm_raises_it():
    rate = Rate(1000.0)
    rate.observe(overflow=1)
    assert rate.bps == 700.0
    for _ in range(10):
        rate.observe(overflow=0)
    assert rate.bps == 700.0
    rate.observe(overflow=0)
    assert rate.bps == 707.0
    for _ in range(100):
        rate.observe(overflow=0)
    assert rate.bps == 1000.0
    for _ in range(50):
        rate.observe(overflow=99)
    assert rate.bps == 20.0
