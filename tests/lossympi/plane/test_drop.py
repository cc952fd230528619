import pytest

from lossympi.plane.drop import Drops, splitmix64


def test_numbers_are_those_of_the_published_generator():
    # The first outputs of splitmix64.c with seed 1234567, as its ports test them.
    golden, state = 0x9E3779B97F4A7C15, 1234567
    numbers = [splitmix64((state + (i + 1) * golden) % 2**64) for i in range(3)]
    assert numbers == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_losses_are_those_of_the_text():
    drops, state = Drops(0.25, seed=3, rank=2), 3 * 2**32 + 2
    for _ in range(100):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        assert drops.next() == ((splitmix64(state) >> 11) / 2**53 < 0.25)


@pytest.mark.parametrize("probability", [0.0, 0.1, 1.0])
def test_as_many_are_lost_as_should_be(probability):
    drops = Drops(probability, seed=0, rank=1)
    share = sum(drops.next() for _ in range(20_000)) / 20_000
    assert share == pytest.approx(probability, abs=0.01 if 0 < probability < 1 else 0)


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_no_probability_is_refused(probability):
    with pytest.raises(ValueError, match=r"0\.\.1"):
        Drops(probability, 0, 0)
