"""Ranks that train different variables: who would wait for ever is told what each side trains."""

from types import SimpleNamespace

import pytest

from aggregathor.cluster.places import Places
from aggregathor.errors import UserError

TRUNK, HEADS = "trunk/kernel", ("head_0/kernel", "head_1/kernel")


class Wire:
    """What the server says, as a worker hears it."""

    rank = 1

    def __init__(self):
        self.said = []

    def tell_place(self, place):
        self.said.append(place)

    def server_places(self):
        said, self.said = self.said, []
        return said


def sides(server, worker):
    """The places of a server and of a worker that have made so many rounds of each half."""
    wire = Wire()
    made = []
    for rounds in (server, worker):
        places = Places(wire, [SimpleNamespace(round=round) for round in rounds])
        places.names += [[TRUNK, HEADS[0]], [TRUNK, HEADS[1]]]
        made.append(places)
    return made


def test_who_waits_for_each_other_in_different_rounds_is_told():
    server, worker = sides((4, 3), (4, 3))
    server.tell(0)
    with pytest.raises(UserError) as error:
        worker.compare(1)
    assert "rank 1 waits to train head_1/kernel, and" in str(error.value)
    assert "waits for it to train head_0/kernel." in str(error.value)


def test_who_begins_anew_is_told_too():
    server, worker = sides((4, 3), (4, 3))
    server.tell(0)
    with pytest.raises(UserError, match="rank 1 begins with other variables, and the server wai"):
        worker.compare(None)


@pytest.mark.parametrize(
    ("server", "at", "worker", "half"),
    [
        ((4, 3), 0, (4, 3), 0),  # it waits for this very gradient
        ((4, 4), 0, (4, 3), 1),  # it has answered, and the answer is under way
        ((4, 3), 0, (5, 3), 1),  # it waits no longer: what it said is old
        ((4, 3, 0), 2, (4, 3), 1),  # of what this rank does not know yet
        ((4,), 0, (4, 3), 1),  # it does not know yet what this rank waits in
    ],
)
def test_who_will_go_on_is_not(server, at, worker, half):
    server, worker = sides(server, worker)
    server.tell(at)
    worker.compare(half)
    worker.compare(half)


def test_the_same_variables_are_named_as_a_whole():
    _, worker = sides((0, 0), (0, 0))
    assert TRUNK in str(worker.apart(0, [TRUNK, HEADS[0]]))
