"""What every link does with ``take`` and ``reply``: each function gets its ends and checks it.

``connect(n, dim, dtype)`` returns the server's end, and for each worker something that does on its
end what it is called for.
"""

import time

import numpy as np
import pytest

N = 4
SOON_S = 10.0  # for what must come


def vector(row, ticket, link):
    return np.random.default_rng([row, ticket]).standard_normal(link.dim).astype(link.dtype)


def take(server):
    arrival = server.take(SOON_S)
    assert arrival is not None
    return arrival


def check_arrival(arrival, row, ticket, server):
    assert (arrival.row, arrival.ticket) == (row, ticket)
    assert arrival.grad_d.dtype == server.dtype
    np.testing.assert_array_equal(arrival.grad_d, vector(row, ticket, server))


def each_gradient_is_answered_by_itself(connect, dim, dtype):
    """Whoever comes: its bits are exact, and so are those of its own answer."""
    server, workers = connect(N, dim, dtype)
    tickets = [0] * N
    for row in np.random.default_rng(0).integers(N, size=30).tolist():
        ticket = tickets[row]
        assert workers[row].send(ticket, vector(row, ticket, server)) is True
        check_arrival(take(server), row, ticket, server)
        params_d = vector(100 + row, ticket, server)
        server.reply(row, params_d)
        expected_d = params_d.copy()
        params_d.fill(0)  # the caller's again
        round, received_d = workers[row].receive(ticket)
        assert round == ticket
        np.testing.assert_array_equal(received_d, expected_d)
        tickets[row] += 1
    assert server.dropped() == [{}] * N


def rows_are_served_in_turn(connect, dim, dtype):
    """From the one after the last taken, though each sends again at once."""
    server, workers = connect(N, dim, dtype)
    for row in (2, 0, 3, 1):
        workers[row].send(0, vector(row, 0, server))
    order = []
    for _ in range(24):
        row, ticket, *_ = take(server)
        order.append(row)
        server.reply(row, vector(row, 9, server))
        workers[row].receive(ticket)
        workers[row].send(ticket + 1, vector(row, ticket + 1, server))
        counts = [order.count(each) for each in range(N)]
        assert max(counts) - min(counts) <= 2  # what is long may come a turn later
    return order


def a_row_has_one_buffer(connect, dim, dtype):
    """What comes before the answer is dropped and counted, and changes nothing."""
    server, workers = connect(N, dim, dtype)
    workers[1].send(0, vector(1, 0, server))
    arrival = take(server)
    for ticket in (0, 5):  # the same, and one to come
        workers[1].send(ticket, vector(7, 7, server))
        assert server.take(0.2) is None
    check_arrival(arrival, 1, 0, server)
    server.reply(1, vector(1, 8, server))
    workers[1].send(0, vector(7, 7, server))  # one that was answered
    assert server.take(0.2) is None
    assert server.dropped() == [{}, {"duplicate": 1, "early": 1, "late": 1}, {}, {}]
    assert server.dropped() == [{}] * N
    workers[1].send(1, vector(1, 1, server))
    check_arrival(take(server), 1, 1, server)


def who_is_not_answered_holds_nobody_up(connect, dim, dtype):
    server, workers = connect(N, dim, dtype)
    for row in range(N):
        workers[row].send(0, vector(row, 0, server))
    taken = {take(server).row for _ in range(N)}
    assert taken == set(range(N))
    assert server.take(0.0) is None
    server.reply(2, vector(2, 9, server))
    workers[2].receive(0)
    assert server.waiting_for() == [2]
    for ticket in (1, 2):
        workers[2].send(ticket, vector(2, ticket, server))
        check_arrival(take(server), 2, ticket, server)
        server.reply(2, vector(2, 9, server))
        workers[2].receive(ticket)


def a_worker_that_takes_no_answers_keeps_few(connect, dim, dtype):
    """It sends on and never receives: the newest answer waits for it, and others are served."""
    server, workers = connect(N, dim, dtype)
    for ticket in range(12):
        for row in (0, 3):
            workers[row].send(ticket, vector(row, ticket, server))
            check_arrival(take(server), row, ticket, server)
            server.reply(row, vector(row + 100, ticket, server))
        workers[0].receive(ticket)
    if hasattr(server, "_parcels"):
        assert len(server._parcels) <= 2 * N + 1
    until = time.monotonic() + SOON_S
    round, received_d = workers[3].receive(0)
    while round < 11 and time.monotonic() < until:
        server.take(0.01)
        round, received_d = workers[3].receive(round)
    assert round == 11
    np.testing.assert_array_equal(received_d, vector(103, 11, server))


def tickets_may_begin_anywhere(connect, dim, dtype):
    server, workers = connect(N, dim, dtype)
    with pytest.raises(ValueError, match="4 tickets are named"):
        server.expect([1, 2])
    with pytest.raises(ValueError, match="whole numbers"):
        server.expect([1, 2, -1, 0])
    server.expect([5, 0, 2**40, 7])
    workers[2].send(2**40, vector(2, 2**40, server))
    check_arrival(take(server), 2, 2**40, server)
    server.reply(2, vector(2, 9, server))
    assert workers[2].receive(2**40)[0] == 2**40
    with pytest.raises(ValueError, match="before the first `take`"):
        server.expect([0] * N)


def what_is_wrong_is_an_error(connect, dim, dtype):
    server, workers = connect(N, dim, dtype)
    with pytest.raises(ValueError, match="none of row 0 waits for an answer"):
        server.reply(0, vector(0, 0, server))
    workers[0].send(0, vector(0, 0, server))
    assert take(server).row == 0
    with pytest.raises(ValueError, match="params_d must be"):
        server.reply(0, np.zeros(dim + 1, dtype))
    with pytest.raises(ValueError, match=r"rows are 0\.\.3, got 4"):
        server.reply(4, vector(0, 0, server))
    with pytest.raises(ValueError, match="wait_s"):
        server.take(-1)
    server.reply(0, vector(0, 0, server))
    with pytest.raises(ValueError, match="waits for an answer"):
        server.reply(0, vector(0, 0, server))
    with pytest.raises(ValueError, match="used with take and reply, and not with collect"):
        server.collect(0)
    with pytest.raises(ValueError, match="used with take and reply, and not with collect"):
        server.broadcast(0, vector(0, 0, server))
    server.close()
    with pytest.raises(ValueError, match="closed"):
        server.take(0)


CONTRACT = [
    each_gradient_is_answered_by_itself,
    rows_are_served_in_turn,
    a_row_has_one_buffer,
    who_is_not_answered_holds_nobody_up,
    a_worker_that_takes_no_answers_keeps_few,
    tickets_may_begin_anywhere,
    what_is_wrong_is_an_error,
]
