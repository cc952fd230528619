import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossympi import Network
from lossympi.network import tail_drop
from lossympi.rng import generator

PACKET = 1484  # bytes: 352 floats with all headers


def arrivals(network, round=0, n=4, c=20_000, start_s=0.0, interval_s=1.0):
    """What becomes of n rows of c datagrams that leave a second apart."""
    start_s_n = np.full(n, start_s)
    return network.arrivals(
        round, np.ones((n, c), bool), start_s_n, interval_s, datagram_bytes=PACKET
    )


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_loses_the_share_it_is_told_to(loss):
    num_datagrams = 100_000
    arrived_c = Network(loss, seed=1).arrived(round=0, worker=0, num_datagrams=num_datagrams)
    assert arrived_c.dtype == np.bool_
    std = np.sqrt(loss * (1 - loss) / num_datagrams)
    assert abs((1 - arrived_c.mean()) - loss) <= 4 * std  # loss 0 and 1: exactly


def test_neither_call_order_nor_restart_changes_what_arrives():
    keys = [(round, worker) for round in range(4) for worker in range(5)]
    network, restarted = Network(0.5, seed=7), Network(0.5, seed=7)
    forward = {key: network.arrived(*key, 64) for key in keys}
    backward = {key: restarted.arrived(*key, 64) for key in reversed(keys)}
    for key in keys:
        np.testing.assert_array_equal(forward[key], backward[key])


def test_seed_round_and_worker_each_change_what_arrives():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**64 - 1, 0, 0)]
    drawn = {
        Network(0.5, seed).arrived(round, worker, 256).tobytes() for seed, round, worker in keys
    }
    assert len(drawn) == len(keys)


def test_datagrams_are_lost_independently_of_their_neighbours():
    lost_c = ~Network(0.5, seed=3).arrived(0, 0, 100_000)
    both = np.mean(lost_c[1:] & lost_c[:-1])
    assert abs(both - 0.25) < 0.01


@pytest.mark.parametrize("loss", [-0.1, 1.1, 10, np.nan, np.inf])
def test_loss_outside_0_to_1_is_refused(loss):
    with pytest.raises(ValueError, match=rf"probability in 0\.\.1, got {loss}"):
        Network(loss)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reorder": -0.1}, r"reorder is a probability in 0\.\.1, got -0.1"),
        ({"duplicate": 2}, r"duplicate is a probability in 0\.\.1, got 2"),
        ({"corrupt": np.nan}, r"corrupt is a probability in 0\.\.1, got nan"),
        ({"burst": 0}, r"burst is 1, .* at least 1 / \(1 - loss\) = 1, .* got 0"),
        ({"loss": 0.5, "burst": 1.9}, r"burst .* at least 1 / \(1 - loss\) = 2, .* got 1.9"),
        ({"loss": 1, "burst": 9}, r"burst .* = inf, .* got 9"),
        ({"burst": np.inf}, r"burst is 1, .* a finite mean .* got inf"),
        ({"burst": np.nan}, r"burst is 1, .* got nan"),
        ({"delay_s": -1}, r"delay_s is a finite time >= 0, got -1"),
        ({"jitter_s": np.inf}, r"jitter_s is a finite time >= 0, got inf"),
        ({"rate_bps": 0}, r"rate_bps is above 0, got 0"),
        ({"queue_bytes": -1}, r"queue_bytes is at least 0, got -1"),
        ({"partitioned": {2: (5, 4)}}, r"partitioned .* worker 2 has \(5, 4\)"),
        ({"partitioned": {2: (-1, 4)}}, r"partitioned .* worker 2 has \(-1, 4\)"),
        ({"crashed": {1: -1}}, r"crashed gives a round >= 0; worker 1 has -1"),
        ({"slow": {0: (-1, 1)}}, r"slow .* worker 0 has \(-1, 1\)"),
        ({"slow": {0: (0, 0)}}, r"slow .* worker 0 has \(0, 0\)"),
    ],
)
def test_fields_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Network(**fields)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=f"seed must be .* got {seed}"):
        Network(seed=seed)


def test_only_a_network_without_further_effects_is_instant():
    assert Network(0.3, seed=4).instant
    for fields in EFFECTS:
        assert not Network(0.3, seed=4, **fields).instant


@pytest.mark.parametrize(("loss", "burst"), [(0.01, 3), (0.1, 1.2), (0.1, 20), (0.5, 4), (0.9, 15)])
def test_bursts_have_their_mean_length_and_leave_the_loss(loss, burst):
    rows = [Network(loss, seed=2, burst=burst).arrived(0, worker, 200_000) for worker in range(10)]
    shares = np.array([np.mean(~row) for row in rows])
    # Of a run of losses only the first follows what arrived.
    starts = sum(np.count_nonzero(~row[1:] & row[:-1]) for row in rows)
    length = sum(np.count_nonzero(~row) for row in rows) / starts
    # A share varies by loss (1 - loss) / c, times 2 burst at most: losses of a run come together.
    std = np.sqrt(loss * (1 - loss) / 2e6 * 2 * burst)
    assert abs(shares.mean() - loss) < 4 * std
    assert abs(length / burst - 1) < 6 / np.sqrt(starts)
    # Rows start as they are on average: short ones lose as much as long ones.
    network = Network(loss, seed=2, burst=burst)
    first = np.mean([~network.arrived(round, 0, 1)[0] for round in range(4000)])
    assert abs(first - loss) < 4 * np.sqrt(loss * (1 - loss) / 4000)


def test_bursts_of_the_length_of_independent_losses_are_independent_losses():
    independent = Network(0.5, seed=1).arrived(3, 2, 10_000)
    np.testing.assert_array_equal(Network(0.5, 1, burst=2).arrived(3, 2, 10_000), independent)
    np.testing.assert_array_equal(independent, generator("network", 1, 3, 2).random(10_000) >= 0.5)


def test_a_network_without_effects_only_loses():
    network = Network(0.2, seed=5)
    came_s_nc, copy_s_nc, damaged_nc = arrivals(network, round=7, start_s=3)
    arrived_nc = [network.arrived(7, worker, 20_000) for worker in range(4)]
    np.testing.assert_array_equal(came_s_nc < np.inf, arrived_nc)
    sent_s_nc = np.broadcast_to(3.0 + np.arange(20_000), (4, 20_000))
    np.testing.assert_array_equal(came_s_nc[arrived_nc], sent_s_nc[arrived_nc])
    assert np.isinf(copy_s_nc).all()
    assert not damaged_nc.any()


def test_only_what_is_wanted_is_sent_and_takes_time():
    wanted_nc = np.array([[False, True, False, True], [True] * 4, [False] * 4])
    came_s_nc, _, _ = Network().arrivals(0, wanted_nc, np.zeros(3), 1.0, datagram_bytes=PACKET)
    inf = np.inf
    np.testing.assert_array_equal(came_s_nc, [[inf, 0, inf, 1], [0, 1, 2, 3], [inf] * 4])


def test_delay_and_jitter_are_added_to_every_datagram():
    came_s_nc, _, _ = arrivals(Network(delay_s=5, jitter_s=2))
    extra_s = came_s_nc - np.arange(20_000) - 5
    assert extra_s.min() >= 0
    assert extra_s.max() < 2
    assert abs(extra_s.mean() - 1) < 4 * 2 / np.sqrt(12 * extra_s.size)
    assert abs(np.quantile(extra_s, 0.25) - 0.5) < 0.02


def test_reordered_datagrams_are_held_back_by_one_to_eight_others():
    came_s_nc, _, _ = arrivals(Network(reorder=0.3), interval_s=10.0)
    held_by = (came_s_nc - 10 * np.arange(20_000)) / 10
    held = held_by > 0
    assert abs(held.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / held.size)
    assert held_by[held].min() >= 1
    assert held_by[held].max() <= 8
    assert abs(held_by[held].mean() - 4.5) < 0.06


def test_duplicates_and_damages_have_their_shares():
    came_s_nc, copy_s_nc, damaged_nc = arrivals(Network(0.5, duplicate=0.1, corrupt=0.2))
    assert not np.any((copy_s_nc < np.inf) & np.isinf(came_s_nc))  # nothing lost is doubled
    doubled = (copy_s_nc < np.inf)[came_s_nc < np.inf]
    assert abs(doubled.mean() - 0.1) < 4 * np.sqrt(0.1 * 0.9 / doubled.size)
    assert abs(damaged_nc.mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / damaged_nc.size)


def test_a_duplicate_has_a_jitter_of_its_own():
    came_s_nc, copy_s_nc, _ = arrivals(Network(delay_s=5, jitter_s=2, duplicate=1))
    apart_s = copy_s_nc - came_s_nc
    assert abs(apart_s.mean()) < 0.02
    assert abs(apart_s.std() - 2 / np.sqrt(6)) < 0.02  # of two independent uniform ones
    assert (copy_s_nc - np.arange(20_000)).min() >= 5


def test_a_resending_has_draws_of_its_own():
    network = Network(0.5, jitter_s=1, reorder=0.5, duplicate=0.5, corrupt=0.5)
    wanted_nc = np.ones((1, 20_000), bool)
    came, doubled, damaged = zip(
        *(
            network.arrivals(0, wanted_nc, np.zeros(1), 1.0, datagram_bytes=PACKET, attempt=k)
            for k in range(2)
        ),
        strict=True,
    )
    # Two events of probability 1/2 agree by chance in half of the cases.
    assert abs(np.mean(np.isinf(came[0]) == np.isinf(came[1])) - 0.5) < 0.02
    assert abs(np.mean(damaged[0] == damaged[1]) - 0.5) < 0.02
    both = (came[0] < np.inf) & (came[1] < np.inf)
    assert abs(np.mean(np.isinf(doubled[0][both]) == np.isinf(doubled[1][both])) - 0.5) < 0.03
    assert not np.any(came[0][both] == came[1][both])


def test_partitioned_and_crashed_workers_are_silent_in_their_rounds():
    network = Network(partitioned={1: (2, 4), 2: (3, 3)}, crashed={2: 5})
    silent = [
        [worker for worker in range(4) if np.isinf(arrivals(network, round, c=3)[0][worker]).all()]
        for round in range(8)
    ]
    assert silent == [[], [], [1], [1, 2], [1], [2], [2], [2]]
    assert [np.flatnonzero(network.silent_n(round, 4)).tolist() for round in range(8)] == silent


def test_slow_workers_start_late_and_take_longer():
    network = Network(slow={1: (5.0, 1.0), 2: (0.5, 3.0)})
    start_s_n = network.start_s_n(3)
    came_s_nc, _, _ = network.arrivals(
        0, np.ones((3, 3), bool), start_s_n, 1.0, datagram_bytes=PACKET
    )
    np.testing.assert_array_equal(came_s_nc, [[0, 1, 2], [5, 6, 7], [0.5, 3.5, 6.5]])


EFFECTS = [
    {"burst": 5.0},
    {"delay_s": 1.0},
    {"jitter_s": 1.0},
    {"reorder": 0.5},
    {"duplicate": 0.5},
    {"corrupt": 0.5},
    {"partitioned": {0: (0, 9)}},
    {"crashed": {0: 0}},
    {"slow": {0: (1.0, 2.0)}},
    {"rate_bps": 8.0 * PACKET},
    {"queue_bytes": 20_000.0},
]


@pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: next(iter(effect)))
def test_an_effect_changes_no_draw_of_another(effect):
    base = {"loss": 0.3, "seed": 6, "jitter_s": 0.25, "duplicate": 0.2, "corrupt": 0.2}
    without, with_it = Network(**base), Network(**(base | effect))
    kinds = {
        "lost": lambda came, copy, damaged: np.isinf(came),
        "doubled": lambda came, copy, damaged: copy < np.inf,
        "damaged": lambda came, copy, damaged: damaged,
        "jitter": lambda came, copy, damaged: came,
    }
    touched = {
        "burst": {"lost", "doubled", "jitter"},  # what is lost is neither doubled nor late
        "delay_s": {"jitter"},
        "jitter_s": {"jitter"},
        "reorder": {"jitter"},
        "duplicate": {"doubled"},
        "corrupt": {"damaged"},
        "partitioned": {"lost", "doubled", "jitter"},
        "crashed": {"lost", "doubled", "jitter"},
        "slow": {"jitter"},
        "rate_bps": {"jitter"},
        "queue_bytes": set(),  # of a bottleneck without limit
    }[next(iter(effect))]
    before, after = arrivals(without, c=200), arrivals(with_it, c=200)
    changed = {name for name, of in kinds.items() if not np.array_equal(of(*before), of(*after))}
    assert changed == touched
    # Of the workers that an effect does not name, and of what it leaves to arrive, nothing changes.
    if effect.keys() & {"partitioned", "crashed", "slow"}:
        for one, other in zip(before, after, strict=True):
            np.testing.assert_array_equal(one[1:], other[1:])


def test_arrivals_depend_on_neither_call_order_nor_restart():
    fields = {name: value for effect in EFFECTS for name, value in effect.items()}
    fields |= {"loss": 0.3, "seed": 8, "partitioned": {0: (1, 1)}, "crashed": {2: 3}}
    network, restarted = Network(**fields), Network(**fields)
    forward = {round: arrivals(network, round, c=100) for round in range(4)}
    backward = {round: arrivals(restarted, round, c=100) for round in reversed(range(4))}
    for round in range(4):
        for one, other in zip(forward[round], backward[round], strict=True):
            np.testing.assert_array_equal(one, other)
    assert len({forward[round][0].tobytes() for round in range(4)}) == 4


def slow_tail_drop(came_s, service_s, room):
    """The oracle: a datagram at a time, with a list of those in the queue."""
    in_queue, passed_s = [], []
    for now_s in came_s:
        in_queue = [until_s for until_s in in_queue if until_s > now_s]
        if len(in_queue) < room:
            in_queue.append(max([now_s, *in_queue]) + service_s)
            passed_s.append(in_queue[-1])
        else:
            passed_s.append(np.inf)
    return np.array(passed_s)


@given(
    steps=st.lists(st.integers(0, 12), max_size=60),  # whole seconds: no rounding, many ties
    service_s=st.integers(0, 9),
    room=st.one_of(st.integers(1, 12), st.just(np.inf)),
)
def test_tail_drop_does_what_a_queue_does(steps, service_s, room):
    came_s = np.cumsum(steps, dtype=float)
    expected = slow_tail_drop(came_s.tolist(), service_s, room)
    np.testing.assert_array_equal(tail_drop(came_s, service_s, room), expected)


def test_all_workers_share_the_bottleneck_and_its_queue(rng):
    network = Network(rate_bps=8 * PACKET, queue_bytes=9.5 * PACKET, jitter_s=50.0)
    n, c = 5, 400
    came_s_nc, _, _ = arrivals(network, n=n, c=c, interval_s=2.5)  # at twice the rate
    offered_s = arrivals(Network(jitter_s=50.0), n=n, c=c, interval_s=2.5)[0].ravel()
    order = np.argsort(offered_s)
    expected = np.empty(n * c)
    expected[order] = slow_tail_drop(offered_s[order].tolist(), 1.0, 1 + 9)
    np.testing.assert_allclose(came_s_nc.ravel(), expected, rtol=1e-12)
    assert abs(np.mean(np.isinf(expected)) - 0.5) < 0.05


def test_the_queue_prefers_no_worker_that_sends_in_step_with_others():
    network = Network(rate_bps=8 * PACKET, queue_bytes=20 * PACKET)
    lost_n = np.isinf(arrivals(network, n=8, c=4000, interval_s=16.0 / 3)[0]).mean(axis=1)
    np.testing.assert_allclose(lost_n, 1 / 3, atol=0.05)


def test_a_queue_without_end_delays_and_loses_nothing():
    came_s_nc, _, _ = arrivals(Network(rate_bps=8 * PACKET), n=3, c=50, interval_s=0.0)
    np.testing.assert_array_equal(np.sort(came_s_nc.ravel()), 1.0 + np.arange(150))
