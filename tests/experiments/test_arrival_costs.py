"""The commands that time arrivals: on small vectors, and what they report."""

import pytest

from experiments import arrival_cost, arrival_rate
from experiments.arrival_cost import RULES
from experiments.arrival_rate import Rate


@pytest.mark.parametrize("protocol", RULES)
def test_what_an_arrival_costs_is_measured(protocol):
    cost = arrival_cost.measure(protocol, RULES[protocol][0], 1000, 100)
    assert cost.protocol == protocol
    assert min(cost.copy_ms, cost.pass_ms, cost.offer_ms, cost.ratio) > 0
    assert (cost.step_ms > 0) == (protocol == "basgd")
    text = arrival_cost.report([cost], 1000, "command")
    assert f"| {protocol}: an arrival beyond the copy, over one pass | ratio |" in text


def test_a_rate_is_compared_with_its_goal():
    rates = [Rate(10, False, 100.0, 110.0, 1.1), Rate(10, True, 50.0, 100.0, 2.0)]
    text = arrival_rate.report(rates, 4, "command")
    assert "| 10 | one 10 times slower | 50.0 | 100.0 |" in text
    assert "equal workers, d=10 | ratio | 1 | 1.2 | 1.1 | yes |" in text
    assert "10 times slower, d=10 | ratio | 3 | 3.6 | 2 | **missed** |" in text
