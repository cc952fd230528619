"""``fit`` on workers is Keras's, and ends with what the server's ends with."""

from pathlib import Path

import pytest

from tests.mpi.results import results_of

SCRIPT = Path(__file__).with_name("fit_script.py")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Returns what each rank has left, by name; two jobs, for the time limit of one."""
    found, said = {rank: {} for rank in range(3)}, ""
    for names in (NAMES[:8], NAMES[8:]):
        results, done = results_of(3, tmp_path_factory.mktemp("fits"), SCRIPT, *names)
        for rank, result in results.items():
            found[rank] |= result
        said += done.stderr
    return found, said


NAMES = (
    "validated",
    "unknown length",
    "several steps a call",
    "stopped in an epoch",
    "stopped by a worker",
    "no epochs",
    "nothing to train",
    "nothing to train, unknown length",
    "data that run out",
    "the server's data run out",
    "objects",
    "changed at the beginning",
    "rates",
    "nested",
    "left after an epoch",
    "left by the server",
)


# How many batches of each epoch a rank trains on, where that is alike.
EPOCHS = {
    "unknown length": [0, 1, 2],
    "several steps a call": [0, 1, 2],
    "stopped in an epoch": [0, 1],
    "stopped by a worker": [0, 1, 2],
    "no epochs": [],
    "nothing to train": [0, 1, 2],
    "changed at the beginning": [2, 3],
    "the server's data run out": [0, 1, 2],
}


@pytest.mark.parametrize("name", NAMES)
def test_what_a_script_reads_is_the_same_on_all_ranks(ranks, name):
    server, *workers = (result[name]["found"] for _, result in sorted(ranks[0].items()))
    for worker in workers:
        for key, value in server.items():
            assert worker[key] == value, key


@pytest.mark.parametrize("name", EPOCHS)
def test_epochs_are_the_servers(ranks, name):
    assert {tuple(result[name]["found"]["epoch"]) for result in ranks[0].values()} == {
        tuple(EPOCHS[name])
    }


@pytest.mark.parametrize("name", ["validated", "stopped by a worker", "rates", "nested"])
def test_a_worker_makes_the_steps_of_the_server(ranks, name):
    assert {result[name]["batches"] for result in ranks[0].values()} == {12}


def test_decisions_are_made_and_given_back(ranks):
    found = ranks[0][2]["validated"]["found"]
    assert found["stop"]
    assert found["epoch"] == [3, 4, 5]
    assert set(found["first"]["history"]) == {"accuracy", "loss", "val_accuracy", "val_loss"}
    assert found["rate"] == pytest.approx(1e-4)
    assert not ranks[0][2]["stopped by a worker"]["found"]["stop"]
    assert ranks[0][1]["rates"]["found"]["rate"] == pytest.approx(0.04)
    assert ranks[0][1]["nested"]["found"]["seen"][2][2]["other"] > 0


def test_an_epoch_that_ends_with_the_data_makes_no_further_update(ranks):
    """The server's round needs nothing of its batch."""
    assert ranks[0][0]["unknown length"]["found"]["iterations"] == 12


def test_what_raises_on_all_ranks_is_caught_on_all(ranks):
    assert ranks[0][1]["left after an epoch"]["found"]["raised"] == "enough of epochs"


def test_a_worker_without_data_says_so(ranks):
    assert "rank 2 has no more data to train on" in ranks[1]
