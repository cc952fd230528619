"""When a round of the in-memory link closes, and what it counts, on its virtual clock."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossympi import Network
from lossympi.closing import closed_by
from lossympi.memory import DATAGRAM_BYTES, connect

SECOND_EACH = 8 * DATAGRAM_BYTES  # bit/s at which a datagram takes a second


def rounds_of(num_rounds, n, c, network=None, **options):
    """Yields what rounds collect when every worker sends rows of its rank + 1."""
    server, workers = connect(n, 352 * c, network or Network(), **options)
    for round in range(num_rounds):
        for worker in workers:
            worker.send(round, np.full(352 * c, worker.rank + 1, np.float32))
        yield server.collect(round)


def one_round(*args, **options):
    return next(rounds_of(1, *args, **options))


class Scripted:
    """A network that does what it is told to, once."""

    instant = False
    workers = frozenset()
    delay_s = 0.0

    def __init__(self, came_s_nc, copy_s_nc, damaged_nc):
        self.script = came_s_nc, copy_s_nc, damaged_nc

    def silent_n(self, round, n):
        return np.zeros(n, bool)

    def start_s_n(self, n):
        return np.zeros(n)

    def arrivals(self, round, wanted_nc, *_, **__):
        return tuple(array.copy() for array in self.script)


def is_settled(row, max_missing, now):
    """Whether a row is whole, or has ended and misses no more than it may."""
    highest = max([k for k, s in enumerate(row) if s < math.inf], default=None)
    has_ended = highest is not None and row[highest] <= now
    missing = sum(s > now for s in row)
    return missing == 0 or (has_ended and missing <= max_missing)


def is_idle(row, max_missing, grace_s, now):
    """Whether a row is settled and nothing came for the grace; an infinite one knows the future.

    What still comes puts that off by a grace at the most.
    """
    if not is_settled(row, max_missing, now):
        return False
    if grace_s == math.inf:
        return not any(now < s < math.inf for s in row)
    if now >= 2 * grace_s and is_settled(row, max_missing, now - 2 * grace_s):
        return True
    return now - max(s for s in row if s <= now) >= grace_s


def slow_close(came, max_missing, quorum, grace_s, deadline_s):
    """The oracle: looks at every row at every second, as a server with a clock would."""
    last_s = int(max([s for row in came for s in row if s < math.inf], default=0))
    for now in range(10_000):
        if all(s <= now for row in came for s in row):
            return "complete", now
        if sum(is_idle(row, max_missing, grace_s, now) for row in came) >= quorum:
            return "early", now
        if now >= deadline_s:
            return "deadline", deadline_s
        if deadline_s == math.inf and now > last_s + (grace_s if grace_s < math.inf else 0):
            return "deadline", last_s
    raise AssertionError("no round takes so long")


times = st.one_of(st.integers(0, 12).map(float), st.just(math.inf))


@given(data=st.data())
def test_a_round_closes_when_a_server_with_a_clock_closes_it(data):
    n, c = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))

    def array(of):
        return np.array(data.draw(st.lists(of, min_size=n * c, max_size=n * c))).reshape(n, c)

    came_s_nc, copy_s_nc, damaged_nc = array(times), array(times), array(st.booleans())
    max_missing = data.draw(st.integers(0, c))
    quorum = data.draw(st.one_of(st.none(), st.integers(1, n)))
    grace_s = data.draw(st.one_of(st.integers(0, 4), st.just(math.inf)))
    deadline_s = data.draw(st.one_of(st.integers(1, 14), st.just(math.inf)))

    collected = one_round(
        n,
        c,
        Scripted(came_s_nc, copy_s_nc, damaged_nc),
        quorum=quorum,
        grace_s=grace_s,
        deadline_s=deadline_s,
        max_loss=max_missing / c,
    )
    stats = collected.stats
    whole_snc = np.where(damaged_nc, math.inf, [came_s_nc, copy_s_nc])
    first_s_nc = whole_snc.min(axis=0)
    closed_by, elapsed_s = slow_close(
        first_s_nc.tolist(), max_missing, quorum or n, grace_s, deadline_s
    )
    assert (stats.closed_by, stats.elapsed_s) == (closed_by, elapsed_s)
    np.testing.assert_array_equal(collected.arrived_nc, first_s_nc <= elapsed_s)
    if max_missing == c:  # otherwise the script is played again for what is missing
        for worker, seen in enumerate(stats.workers):
            whole = whole_snc[:, worker].ravel()
            assert seen.accepted == np.count_nonzero(first_s_nc[worker] <= elapsed_s)
            assert seen.accepted + seen.duplicate == np.count_nonzero(whole <= elapsed_s)
            assert seen.late == np.count_nonzero((whole > elapsed_s) & (whole < math.inf))
            came = np.array([came_s_nc, copy_s_nc])[:, worker] < math.inf
            assert seen.rejected.get("forged", 0) == np.count_nonzero(came & damaged_nc[worker])
            assert seen.heard == (seen.accepted > 0)
            assert seen.delivered == seen.accepted / c


def test_the_default_link_closes_at_once():
    stats = one_round(3, 4).stats
    assert (stats.round, stats.closed_by, stats.elapsed_s, stats.deadline_s) == (
        0,
        "complete",
        0.0,
        math.inf,
    )
    for worker in stats.workers:
        assert (worker.delivered, worker.heard, worker.live) == (1.0, True, True)
        assert (worker.settled_s, worker.accepted, worker.late, worker.duplicate) == (0.0, 4, 0, 0)
        assert worker.rejected == {}


@pytest.mark.parametrize(("loss", "closed_by"), [(0.2, "early"), (1.0, "deadline")])
def test_a_lossy_link_closes_early_unless_nothing_comes(loss, closed_by):
    stats = one_round(3, 50, Network(loss)).stats
    assert (stats.closed_by, stats.elapsed_s) == (closed_by, 0.0)
    for worker in stats.workers:
        assert worker.settled_s == 0.0 or (math.isnan(worker.settled_s) and loss == 1)
        assert worker.accepted == round(50 * worker.delivered)


@pytest.mark.parametrize("loss", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("options", [{"deadline_s": 1.0}, {"send_bps": 1e6}, {"grace_s": 1.0}])
def test_times_change_nothing_of_what_arrives_in_time(loss, options):
    plain = rounds_of(4, 3, 20, Network(loss, seed=2))
    timed = rounds_of(4, 3, 20, Network(loss, seed=2, delay_s=0.1, jitter_s=0.2), **options)
    for one, other in zip(plain, timed, strict=True):
        np.testing.assert_array_equal(one.arrived_nc, other.arrived_nc)
        np.testing.assert_array_equal(one.stack_nd, other.stack_nd)


def test_without_a_deadline_all_that_comes_is_in_time():
    network = Network(0.2, delay_s=1, jitter_s=50, reorder=0.5, rate_bps=SECOND_EACH)
    collected = one_round(3, 40, network, send_bps=SECOND_EACH)
    expected_nc = [network.arrived(0, worker, 40) for worker in range(3)]
    np.testing.assert_array_equal(collected.arrived_nc, expected_nc)
    assert collected.stats.closed_by == "early"
    assert collected.stats.elapsed_s > 3 * 40 * 0.7
    assert all(worker.late == 0 for worker in collected.stats.workers)


def test_what_comes_after_the_deadline_is_counted_and_not_written():
    server, workers = connect(1, 352 * 20, deadline_s=10.5, send_bps=SECOND_EACH)
    for round in range(2):
        workers[0].send(round, np.full(352 * 20, round + 1, np.float32))
        collected = server.collect(round)
        assert (collected.stats.closed_by, collected.stats.elapsed_s) == ("deadline", 10.5)
        assert (collected.stats.workers[0].accepted, collected.stats.workers[0].late) == (11, 9)
        assert np.isnan(collected.stats.workers[0].settled_s)
        assert (collected.stack_nd[0, : 352 * 11] == round + 1).all()
        assert (collected.stack_nd[0, 352 * 11 :] == 0).all()  # as the buffer was


def test_the_deadline_is_learnt_from_rounds_that_did_without():
    network = Network(delay_s=2.0, slow={0: (1.0, 1.0)})
    deadlines = [
        collected.stats.deadline_s for collected in rounds_of(25, 2, 3, network, deadline_s=60.0)
    ]
    assert deadlines == [60.0] * 20 + [4.5] * 5


def test_a_quorum_leaves_the_slow_behind_after_a_grace():
    network = Network(slow={2: (100.0, 1.0)})
    collected = one_round(3, 5, network, quorum=2, grace_s=1.5, send_bps=SECOND_EACH)
    assert (collected.stats.closed_by, collected.stats.elapsed_s) == ("early", 4 + 1.5)
    assert [worker.accepted for worker in collected.stats.workers] == [5, 5, 0]
    assert collected.stats.workers[2].late == 5
    assert not collected.stats.workers[2].heard


@pytest.mark.parametrize(("grace_s", "late"), [(0.0, 1), (3.0, 0)])
def test_what_was_overtaken_comes_within_the_grace(grace_s, late):
    came_s_nc = np.array([[0.0, 5.0, 2.0, 3.0], [0.0, 1.0, 2.0, math.inf]])  # END comes with 3
    network = Scripted(came_s_nc, np.full((2, 4), math.inf), np.zeros((2, 4), bool))
    stats = one_round(2, 4, network, grace_s=grace_s).stats
    assert (stats.closed_by, stats.elapsed_s) == ("early", 8.0 if grace_s else 3.0)
    assert stats.workers[0].late == late


@pytest.mark.parametrize("max_loss", [0.0, 0.1, 0.25])
def test_what_exceeds_max_loss_is_sent_again(max_loss):
    network = Network(0.3, seed=3, delay_s=1.0)
    again, once = one_round(5, 200, network, max_loss=max_loss), one_round(5, 200, network)
    enough_n = (~once.arrived_nc).mean(axis=1) <= max_loss
    assert not enough_n.all()
    assert (again.arrived_nc | ~once.arrived_nc).all()
    np.testing.assert_array_equal(again.arrived_nc[enough_n], once.arrived_nc[enough_n])
    missing_n = (~again.arrived_nc).mean(axis=1)
    assert (missing_n <= max_loss).all()
    assert again.stats.closed_by == ("early" if max_loss else "complete")
    # There once, and for each resending back and there again.
    resendings_n = []
    for worker in range(5):
        missing_c, resendings = ~network.arrived(0, worker, 200), 0
        while missing_c.mean() > max_loss:
            resendings += 1
            missing_c &= ~network.arrived(0, worker, 200, attempt=resendings)
        np.testing.assert_array_equal(again.arrived_nc[worker], ~missing_c)
        resendings_n.append(resendings)
    assert again.stats.elapsed_s == 1.0 + 2.0 * max(resendings_n)
    for worker in again.stats.workers:
        assert worker.duplicate == 0


def test_resending_ends_with_the_deadline_and_gives_up_on_the_silent():
    stats = one_round(2, 3, Network(1.0, delay_s=1.0), max_loss=0.0, deadline_s=9.0).stats
    assert (stats.closed_by, stats.elapsed_s) == ("deadline", 9.0)
    stats = one_round(2, 30, Network(0.5, delay_s=1.0), max_loss=0.0, deadline_s=1.5).stats
    assert [worker.late for worker in stats.workers] == [0, 0]  # nothing left after the close
    stats = one_round(2, 3, Network(0.5, crashed={1: 0}), max_loss=0.0).stats
    assert [worker.accepted for worker in stats.workers] == [3, 0]


def test_duplicates_and_damages_are_counted_and_the_damaged_are_missing():
    network = Network(0.2, seed=1, duplicate=0.3, corrupt=0.1)
    collected = one_round(4, 500, network)
    came_s_nc, copy_s_nc, damaged_nc = network.arrivals(
        0, np.ones((4, 500), bool), np.zeros(4), 0.0, datagram_bytes=DATAGRAM_BYTES
    )
    came_nc, copy_nc = came_s_nc < math.inf, copy_s_nc < math.inf
    np.testing.assert_array_equal(collected.arrived_nc, came_nc & ~damaged_nc)
    for worker, seen in enumerate(collected.stats.workers):
        damaged_c = damaged_nc[worker]
        forged = (came_nc[worker] & damaged_c).sum() + (copy_nc[worker] & damaged_c).sum()
        assert seen.rejected == {"forged": forged}
        assert seen.duplicate == (copy_nc[worker] & ~damaged_c).sum()
        assert seen.late == 0


def test_a_crashed_worker_is_waited_for_until_patience_ends():
    network = Network(0.1, delay_s=0.5, crashed={1: 2})
    options = {"deadline_s": 9.0, "grace_s": 0.25, "patience": 3}
    seen = [collected.stats for collected in rounds_of(8, 3, 50, network, **options)]
    assert [stats.closed_by for stats in seen] == ["early"] * 2 + ["deadline"] * 3 + ["early"] * 3
    assert [stats.elapsed_s for stats in seen] == [0.75] * 2 + [9.0] * 3 + [0.75] * 3
    assert [stats.workers[1].live for stats in seen] == [True] * 5 + [False] * 3
    assert [stats.workers[1].heard for stats in seen] == [True] * 2 + [False] * 6
    assert all(stats.workers[worker].live for stats in seen for worker in (0, 2))


def test_a_partition_heals_and_the_worker_lives_again():
    network = Network(delay_s=0.5, partitioned={0: (1, 5)})
    seen = [collected.stats for collected in rounds_of(9, 2, 5, network, deadline_s=9.0)]
    assert [stats.workers[0].delivered for stats in seen] == [1.0] + [0.0] * 5 + [1.0] * 3
    assert [stats.workers[0].live for stats in seen] == [True] * 4 + [False] * 3 + [True] * 2
    assert [stats.elapsed_s for stats in seen] == [0.5] + [9.0] * 3 + [0.5] * 5
    assert {stats.closed_by for stats in seen[4:]} == {"complete"}


def test_a_dead_row_stands_for_no_live_one():
    network = Network(0.1, partitioned={0: (0, 0)}, slow={2: (10.0, 1.0)})
    _, collected = rounds_of(2, 3, 50, network, patience=1, grace_s=1.0)
    assert [worker.live for worker in collected.stats.workers] == [False, True, True]
    assert all(worker.heard for worker in collected.stats.workers)
    assert (collected.stats.closed_by, collected.stats.elapsed_s) == ("early", 11.0)


def test_where_none_lives_the_deadline_closes():
    network = Network(crashed={0: 0, 1: 0})
    seen = [collected.stats for collected in rounds_of(6, 2, 5, network, deadline_s=9.0)]
    assert [(stats.closed_by, stats.elapsed_s) for stats in seen] == [("deadline", 9.0)] * 6
    assert not seen[-1].workers[0].live


def test_order_of_sends_does_not_matter_on_a_shared_bottleneck():
    network = Network(rate_bps=SECOND_EACH, queue_bytes=10 * DATAGRAM_BYTES)
    results = []
    for order in ([0, 1, 2], [2, 0, 1]):
        server, workers = connect(3, 352 * 20, network, send_bps=SECOND_EACH, deadline_s=25.0)
        for rank in order:
            workers[rank].send(0, np.full(352 * 20, rank + 1, np.float32))
        results.append(server.collect(0))
    assert 0 < results[0].arrived_nc.mean() < 1
    np.testing.assert_array_equal(results[0].stack_nd, results[1].stack_nd)
    np.testing.assert_array_equal(results[0].arrived_nc, results[1].arrived_nc)


def test_who_sends_nothing_takes_no_time_of_others():
    server, workers = connect(2, 352 * 4, Network(rate_bps=SECOND_EACH), send_bps=SECOND_EACH)
    workers[1].send(0, np.ones(352 * 4, np.float32))
    collected = server.collect(0)
    assert collected.stats.elapsed_s == 4.0
    np.testing.assert_array_equal(collected.delivered_n, [0, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deadline_s": 0}, "a deadline is above 0 seconds, got 0"),
        ({"grace_s": -1}, "grace_s is at least 0 seconds, got -1"),
        ({"quorum": 0}, r"a quorum is 1\.\.n workers; n is 2, got 0"),
        ({"quorum": 3}, r"a quorum is 1\.\.n workers; n is 2, got 3"),
        ({"max_loss": 1.1}, r"max_loss is a share of a row in 0\.\.1, got 1.1"),
        ({"patience": 0}, "got patience=0"),
        ({"send_bps": 0}, "send_bps is above 0, got 0"),
        ({"network": Network(slow={2: (1, 1)}, crashed={-1: 1})}, r"0\.\.1; got \[-1, 2\]"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        connect(2, 352, **options)


@pytest.mark.parametrize(
    ("num_live", "num_complete", "num_settled", "quorum", "is_late", "reason"),
    [
        (3, 3, 3, 3, True, "complete"),  # comes before the deadline
        (3, 2, 3, 3, True, "early"),
        (3, 2, 2, 3, False, None),
        (3, 2, 2, 3, True, "deadline"),
        (3, 1, 2, 2, False, "early"),
        (2, 1, 2, 3, False, "early"),  # the third is dead
        (0, 0, 0, 1, False, None),  # nobody is enough for no quorum
        (0, 0, 0, 1, True, "deadline"),
    ],
)
def test_the_rule_of_all_links(num_live, num_complete, num_settled, quorum, is_late, reason):
    assert closed_by(num_live, num_complete, num_settled, quorum, is_late) == reason


def test_each_row_of_a_quorum_is_idle_for_the_grace_and_no_other_need_be():
    """As over UDP: what still comes for the others does not put off the close."""
    came_s_nc = np.array([[0.0, 1.0, math.inf, 2.0], [0.0, 4.0, 2.0, 3.0]])  # ENDs at 2 and at 3
    network = Scripted(came_s_nc, np.full((2, 4), math.inf), np.zeros((2, 4), bool))
    stats = one_round(2, 4, network, quorum=1, grace_s=1.5).stats
    assert (stats.closed_by, stats.elapsed_s) == ("early", 3.5)
    assert stats.workers[1].late == 1
