"""The server's loop of arrivals, over the in-memory link."""

import numpy as np
import pytest

from aggregathor.protocols.aggregation import RuleError
from aggregathor.protocols.arrivals import ArrivalsServer, Need
from aggregathor.protocols.offers import Verdict
from aggregathor.protocols.plain import Plain
from aggregathor.protocols.rounds import TrainingStopped
from aggregathor.protocols.worker import WorkerHalf
from lossympi import memory

N, D = 3, 4


class Noting:
    """Accepts each second gradient, and notes what it was offered."""

    def __init__(self):
        self.offers = []

    def offer(self, offer):
        self.offers.append(offer._replace(grad_d=offer.grad_d.copy()))
        return Verdict(offer.grad_d) if len(self.offers) % 2 else Verdict(None, "even")

    def state(self):
        return {"count": np.array(len(self.offers))}

    def restore(self, state):
        self.offers = [None] * int(state["count"])


class Model:
    def __init__(self):
        self.params_d = np.zeros(D, np.float32)

    def apply(self, step_d):
        self.params_d -= step_d

    def read(self):
        return self.params_d


def connected(rule, **given):
    link, workers = memory.connect(N, D, arrivals=True)
    model = Model()
    server = ArrivalsServer(link, rule, model.read, **given)
    server.model = model
    return server, [WorkerHalf(worker) for worker in workers], model


def vector(value):
    return np.full(D, value, np.float32)


def exchange(server, workers, row, value):
    workers[row].send(vector(value))
    report = step(server)
    return report, workers[row].receive()


def step(server):
    """Makes one arrival, and the step that it may be."""
    report = server.collect()
    if report.is_step:
        server.model.apply(report.grad_d)
        server.publish(server.model.read())
    return report


def test_staleness_is_the_servers_own_book_keeping():
    rule = Noting()
    server, workers, model = connected(rule)
    seen = []
    for row, value in [(0, 1), (0, 2), (1, 4), (0, 8), (2, 16), (1, 32)]:
        report, params_d = exchange(server, workers, row, value)
        np.testing.assert_array_equal(params_d, model.params_d)
        seen.append((report.row, report.ticket, report.version, report.staleness, report.updates))
    assert seen == [(0, 0, 0, 0, 1), (0, 1, 1, 0, 1), (1, 0, 0, 1, 2), (0, 2, 1, 1, 2),
                    (2, 0, 0, 2, 3), (1, 1, 2, 1, 3)]  # fmt: skip
    assert server.round == 6
    assert server.version == 3
    models = [offer.model_d[0] for offer in rule.offers]
    assert models == [0, -1, 0, -1, 0, -5]
    assert [offer.params_d[0] for offer in rule.offers] == [0, -1, -1, -5, -5, -21]
    assert not any(offer.model_d.flags.writeable for offer in rule.offers)


class Losing:
    """The server's end of a link that loses half of each worker's gradient 1, and leaves waste."""

    def __init__(self, link):
        self._link = link

    def __getattr__(self, name):
        return getattr(self._link, name)

    def take(self, wait_s):
        arrival = self._link.take(wait_s)
        if arrival.ticket != 1:
            return arrival
        arrival.grad_d[: D // 2] = np.nan
        return arrival._replace(arrived_c=np.array([False, True]), floats_per_datagram=D // 2)


@pytest.mark.parametrize("resumes", [False, True])
@pytest.mark.parametrize(("fill", "filled"), [("zero", 0), ("previous", 1)])
def test_what_is_lost_is_filled(fill, filled, resumes):
    """By 0, or by what the same worker has sent before, which a checkpoint keeps."""
    rule, model = Noting(), Model()
    link, workers = memory.connect(N, D, arrivals=True)

    def half():
        server = ArrivalsServer(Losing(link), rule, model.read, fill=fill)
        server.model = model
        return server

    server = half()
    for ticket, value in enumerate([1, 2]):
        for row in range(2):
            workers[row].send(ticket, vector((row + 1) * value))
            step(server)
        if resumes and ticket == 0:
            before, server = server, half()
            server.restore(before.state())
            rule.offers = []
    grads = [offer.grad_d.tolist() for offer in rule.offers[-2:]]
    assert grads == [[filled, filled, 2, 2], [2 * filled, 2 * filled, 4, 4]]


def test_a_verdict_in_a_word():
    server, workers, _ = connected(Noting())
    assert [exchange(server, workers, 0, 1)[0].verdict for _ in range(2)] == ["step", "even"]

    class Keeping(Plain):
        def offer(self, offer):
            return Verdict(None)

    server, workers, _ = connected(Keeping())
    assert exchange(server, workers, 0, 1)[0].verdict == "kept"


def test_a_loop_goes_on_from_its_state():
    moments = [(0, 1), (1, 2), (2, 3), (0, 4), (1, 5), (1, 6), (2, 7)]
    first, workers, model = connected(Noting())
    for row, value in moments:
        exchange(first, workers, row, value)
    state = first.state()
    second, workers2, model2 = connected(Noting())
    model2.params_d[:] = model.params_d
    second.restore(state)
    second.restore_workers(first.state_of_workers())
    for half, half2 in zip(workers, workers2, strict=True):
        half2.round = half.round
    assert second.rounds() == first.rounds() == [half.round for half in workers]
    for row, value in moments:
        reports = [exchange(*of, row, value)[0] for of in ((first, workers), (second, workers2))]
        same = {"now_s": 0, "dropped": None, "grad_d": None}
        a, b = (vars(report) | {"is_step": report.is_step} | same for report in reports)
        assert a == b
    np.testing.assert_array_equal(model.params_d, model2.params_d)
    third, _, model3 = connected(Noting())
    model3.params_d[:] = model.params_d
    third.restore(first.state())
    assert [third.held(row)[0] for row in range(N)] == [first.version] * N


class Clock:
    def __init__(self, step_s):
        self.now_s, self._step_s = 0.0, step_s

    def __call__(self):
        self.now_s += self._step_s
        return self.now_s


def test_without_an_update_for_too_long_it_stops_and_names_who_was_silent():
    server, workers, _ = connected(
        Plain(), now=Clock(1.0), first_limit_s=100.0, limit_s=30.0, need=Need(1, "all need it")
    )
    for _ in range(5):
        exchange(server, workers, 0, 1)

    def spoil():
        for _ in range(100):
            exchange(server, workers, 1, np.nan)

    said = (
        r"the model has had no update for 3\d s, and nothing came from workers 0, 2 "
        r"\(ranks 1, 3\) for 15 s or longer: all need it\."
    )
    with pytest.raises(TrainingStopped, match=said):
        spoil()


def test_what_the_server_does_else_is_no_wait():
    """It validates for 100 s, and the gradient that has come meanwhile makes no step."""
    clock = Clock(0.1)
    server, workers, _ = connected(Plain(), now=clock, first_limit_s=60.0, limit_s=30.0)
    exchange(server, workers, 0, 1)
    clock.now_s += 100.0
    assert exchange(server, workers, 1, np.nan)[0].why == "not finite"
    clock.now_s += 100.0
    assert exchange(server, workers, 1, 1)[0].is_step


def test_nobody_comes():
    server, _, _ = connected(Plain(), now=Clock(1.0), first_limit_s=20.0)
    with pytest.raises(TrainingStopped, match=r"no update for 2\d s"):
        server.collect()


def test_leaving_ends_a_wait():
    server, _, _ = connected(Plain())
    server.leave()
    with pytest.raises(TrainingStopped):
        server.collect()


def test_where_too_few_processes_are_left_it_stops_at_once():
    server, workers, _ = connected(Plain(), need=Need(2, "two are needed"))
    exchange(server, workers, 0, 1)
    server.forget(1)
    exchange(server, workers, 0, 1)
    server.forget(2)
    said = r"workers 1, 2 \(ranks 2, 3\) ended, and 1 of 3 workers are left: two are needed"
    with pytest.raises(TrainingStopped, match=said):
        server.collect()


def test_an_aggregate_is_the_next_step_and_what_makes_none_is_answered_before():
    observed = []

    class Observer:
        def decided(self, report):
            observed.append((report.row, report.verdict))
            return report

    server, workers, _ = connected(Noting(), observer=Observer())
    for row in range(N):
        workers[row].send(vector(row + 1))
    assert server.aggregate().grad_d[0] == 1
    assert server.publish(vector(-1)).row == 0
    assert server.aggregate().grad_d[0] == 3  # the one between was rejected
    np.testing.assert_array_equal(workers[1].receive(), vector(-1))
    server.publish(vector(-4))
    np.testing.assert_array_equal(workers[2].receive(), vector(-4))
    np.testing.assert_array_equal(workers[0].receive(), vector(-1))
    assert observed == [(0, "step"), (1, "even"), (2, "step")]


def test_a_rule_that_cannot_be_applied_stops_the_training():
    class Failing(Plain):
        def offer(self, offer):
            raise RuleError("cannot be applied")

    server, workers, _ = connected(Failing())
    workers[0].send(vector(1))
    with pytest.raises(TrainingStopped, match="cannot be applied"):
        server.aggregate()


def test_what_was_sent_before_all_go_on_together_is_not_offered():
    """A worker may have sent at a model that is none any more; nobody knows whether it has."""
    rule = Noting()
    server, workers, model = connected(rule)
    exchange(server, workers, 0, 1)
    workers[1].send(vector(7))  # not answered
    model.params_d[:] = 5
    server.resume()
    assert server.rounds() == [1, 0, 0]
    assert [server.held(row)[1][0] for row in range(N)] == [5] * N
    workers[0].send(vector(2))
    workers[2].send(vector(4))
    server.leave()
    for _ in workers:
        with pytest.raises(TrainingStopped):  # none of them counts
            server.collect()
    for worker in workers:
        np.testing.assert_array_equal(worker.receive(), vector(5))
    assert (len(rule.offers), server.round) == (1, 1)
    assert server.rounds() == [2, 1, 1]


def test_nothing_is_lost_where_nobody_can_have_sent_before():
    rule = Noting()
    server, workers, _ = connected(rule)
    server.resume()
    server.resume()
    exchange(server, workers, 0, 1)
    assert len(rule.offers) == 1
