"""What a job asks of its protocol."""

import pytest

from aggregathor.cluster.loops import Arrivals, Rounds, loop_of
from aggregathor.errors import UserError
from aggregathor.protocols.setting import Setting


def loop(protocol, **given):
    return loop_of(Setting(num_workers=7, protocol=protocol, **given))


@pytest.mark.parametrize("protocol", ["sync", "draco"])
def test_in_rounds_all_step_together(protocol):
    rounds = loop(protocol)
    assert isinstance(rounds, Rounds)
    assert (rounds.in_step, rounds.tells_place) == (True, True)
    assert rounds.steps_of_fit() == ""
    rounds.check_further(["fit 1 of m", ""], "")


@pytest.mark.parametrize("protocol", ["async", "basgd", "zeno++", "kardam"])
def test_without_rounds_each_steps_by_itself(protocol):
    arrivals = loop(protocol)
    assert isinstance(arrivals, Arrivals)
    assert (arrivals.in_step, arrivals.tells_place) == (False, False)


@pytest.mark.parametrize(
    ("given", "gradients"),
    [
        ({"protocol": "async"}, "one worker's gradient"),
        ({"protocol": "basgd", "f": 2, "gar": "median"}, "5 or more gradients"),
        ({"protocol": "basgd", "protocol_args": {"buffers": 3}}, "3 or more gradients"),
    ],
)
def test_a_step_of_fit_is_explained(given, gradients):
    said = f"each step is an update of the model by {gradients}"
    assert loop(**given).steps_of_fit() == said


@pytest.mark.parametrize("doing", ["", "fit 2 of m"])
def test_without_rounds_nothing_is_trained_by_turns(doing):
    arrivals = loop("kardam")
    arrivals.check_further([], doing)
    arrivals.check_further(["fit 1 of m"], doing)
    with pytest.raises(UserError, match="this script trains several by turns"):
        arrivals.check_further(["fit 1 of m", doing], doing)
