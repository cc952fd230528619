import numpy as np
import pytest

from lossympi.collectives import Collectives
from tests.lossympi.ranks import on_ranks


class Failed(RuntimeError):
    """What collectives raise here."""


class Known(ValueError):
    """What a step may fail with."""


def run(call, size=3, **options):
    return on_ranks(size, lambda comm: call(Collectives(comm, Failed, **options)))


def test_all_hear_all():
    assert run(lambda ranks: ranks.allgather(ranks.rank)) == [[0, 1, 2]] * 3
    assert run(lambda ranks: ranks.bcast(ranks.rank + 7)) == [7] * 3
    assert run(lambda ranks: ranks.each(lambda: ranks.rank**2)) == [[0, 1, 4]] * 3
    assert run(lambda ranks: (ranks.rank, ranks.size)) == [(0, 3), (1, 3), (2, 3)]


def test_what_a_step_gives_need_not_travel():
    """The ranks' threads share memory; what had travelled would be a list of all."""
    made = run(lambda ranks: ranks.together(lambda: [ranks.rank]))
    assert made == [[0], [1], [2]]


NO_ROOM = Known("no room")


def fails_on(*failing, error=NO_ROOM):
    def step(ranks):
        def work():
            if ranks.rank in failing:
                raise error
            return ranks.rank

        return work

    return step


@pytest.mark.parametrize("verb", ["each", "together"])
def test_the_failure_of_one_is_the_failure_of_all(verb):
    def call(step, **options):
        outcomes = run(lambda ranks: getattr(ranks, verb)(step(ranks)), **options)
        assert {type(outcome) for outcome in outcomes} == {Failed}
        assert len({str(outcome) for outcome in outcomes}) == 1
        return outcomes

    outcomes = call(fails_on(1))
    assert str(outcomes[0]) == "rank 1: no room"
    assert isinstance(outcomes[1].__cause__, Known)  # where it happened, how
    assert outcomes[0].__cause__ is None
    assert str(call(fails_on(0, 2))[1]) == "rank 0, 2: no room"
    assert str(call(fails_on(2, error=Known()))[0]) == "rank 2: Known"
    described = call(fails_on(1, 2), describe=lambda failures: f"so: {failures}")
    assert str(described[0]) == "so: {1: 'no room', 2: 'no room'}"


@pytest.mark.parametrize("verb", ["each", "together"])
def test_what_is_not_caught_is_raised_where_it_happens(verb):
    outcomes = on_ranks(
        1,
        lambda comm: getattr(Collectives(comm, Failed, catches=Known), verb)(
            fails_on(0, error=ZeroDivisionError("a mistake"))(comm)
        ),
    )
    assert isinstance(outcomes[0], ZeroDivisionError)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1, 1, 2], "rank 0 has 1 and rank 2 has 2"),
        (["a", None, "a"], "rank 0 has 'a' and rank 1 has None"),
        ([{"a": 1, "b": 2}, {"a": 1, "b": 3}, {}], "rank 0 and rank 1 have b=2 and b=3"),
        ([{"a": 1}, {"a": 1, "c": "x"}, {"a": 1}], "rank 0 and rank 1 have c=None and c='x'"),
        ([{"a": [1, 2]}, {"a": (1, 2)}, {"a": [2]}], "rank 2 have a=[1, 2] and a=[2]"),
    ],
)
def test_ranks_that_differ_are_told_in_what(values, words):
    outcomes = run(lambda ranks: ranks.agree("thing", values[ranks.rank]))
    assert {type(outcome) for outcome in outcomes} == {Failed}
    for outcome in outcomes:
        assert str(outcome).startswith("all ranks must have the same thing; rank 0 ")
        assert f"{words}. Do all hosts run the same script" in str(outcome)


@pytest.mark.parametrize(
    "values",
    [
        [5, np.int64(5), 5],
        [{"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": np.int32(1), "b": 2.0}],
        [float("inf")] * 3,
        [(1, 2), [1, 2], (1, 2)],
    ],
)
def test_equal_values_agree_however_they_are_written(values):
    assert run(lambda ranks: ranks.agree("thing", values[ranks.rank])) == [None] * 3
