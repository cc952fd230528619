import pytest

from lossympi.topology import Topology


@pytest.mark.parametrize(("servers", "workers"), [(1, 1), (1, 4), (2, 1), (3, 5)])
def test_every_rank_has_one_role_and_workers_have_rows(servers, workers):
    topology = Topology.of_size(servers + workers, servers)
    assert topology == Topology(servers, workers)
    assert topology.size == servers + workers
    assert [*topology.server_ranks, *topology.worker_ranks] == [*range(topology.size)]
    for rank in range(topology.size):
        is_server = rank in topology.server_ranks
        assert topology.is_server(rank) == is_server
        others = topology.worker_ranks if is_server else topology.server_ranks
        assert topology.peers_of(rank) == others
    rows = [topology.row_of(rank) for rank in topology.worker_ranks]
    assert rows == [*range(workers)]
    assert [topology.rank_of(row) for row in rows] == [*topology.worker_ranks]


def test_one_server_is_the_rule():
    assert Topology.of_size(5) == Topology(servers=1, workers=4)


@pytest.mark.parametrize("rank", [-1, 0, 1, 5])
def test_only_workers_have_rows(rank):
    with pytest.raises(ValueError, match=rf"workers are the ranks 2\.\.4, got rank {rank}"):
        Topology(2, 3).row_of(rank)


@pytest.mark.parametrize("row", [-1, 3])
def test_only_rows_have_workers(row):
    with pytest.raises(ValueError, match=rf"rows are 0\.\.2, got row {row}"):
        Topology(2, 3).rank_of(row)


@pytest.mark.parametrize(("servers", "workers"), [(0, 3), (1, 0), (1, -1)])
def test_both_roles_are_needed(servers, workers):
    with pytest.raises(ValueError, match="at least 1 server and 1 worker"):
        Topology(servers, workers)


def test_a_rank_is_told_by_its_role():
    one, two = Topology(1, 3), Topology(2, 3)
    assert [one.describe(rank) for rank in (0, 1)] == ["the server (rank 0)", "worker 0 (rank 1)"]
    assert [two.describe(rank) for rank in (1, 4)] == ["server 1 (rank 1)", "worker 2 (rank 4)"]


def test_rows_are_told_with_their_ranks():
    topology = Topology(1, 5)
    assert topology.describe_rows([3]) == "worker 3 (rank 4)"
    assert topology.describe_rows(row for row in (0, 3)) == "workers 0, 3 (ranks 1, 4)"
    assert topology.describe_rows([]) == "no worker in particular"
