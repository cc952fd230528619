"""The server's half of rounds, over a link in memory, with a clock of the test's own."""

import numpy as np
import pytest

from aggregathor import checkpoint
from aggregathor.gars import Aggregated, gar
from aggregathor.gars.base import registered
from aggregathor.protocols.aggregation import Aggregation
from aggregathor.protocols.rounds import RefusedError, RoundsServer, TrainingStopped
from aggregathor.protocols.setting import Setting
from aggregathor.protocols.worker import WorkerHalf
from lossympi import Network, memory

N, D = 5, 800  # three datagrams


class Job:
    """A server and its workers, and the variables that are trained."""

    def __init__(self, network=None, now=None, observer=None, dtype=np.float32, **setting):
        self.setting = Setting(**{"num_workers": N, "gar": "krum", "f": 1} | setting)
        self.dtype = dtype
        n = self.setting.num_workers
        link, ends = memory.connect(n, D, network or Network(), dtype=dtype)
        self.params_d = np.zeros(D, dtype)
        self.server = RoundsServer(
            link,
            Aggregation(self.setting, D, dtype=dtype),
            lambda: self.params_d.copy(),
            observer=observer,
            first_limit_s=30.0,
            limit_s=10.0,
            **{"now": now} if now else {},
        )
        self.workers = [WorkerHalf(end) for end in ends]

    def send(self, rows):
        """Rows are what each worker sends; None for one that sends nothing."""
        for worker, row_d in zip(self.workers, rows, strict=True):
            if row_d is not None:
                worker.send(np.broadcast_to(self.dtype(row_d), D))

    def receive(self):
        return [worker.receive() for worker in self.workers]

    def step(self, rows):
        """Makes a round that the rule can be applied to; returns the report."""
        self.send(rows)
        report = self.server.collect()
        self.params_d = self.params_d - report.grad_d
        self.server.publish(self.params_d)
        self.receive()
        return report


class Observer:
    """Notes what a server reports, in its order."""

    def __init__(self):
        self.seen = []

    def arrived(self, stats):
        self.seen.append(("arrived", stats.round))

    def refused(self):
        self.seen.append("refused")

    def published(self, report):
        self.seen.append("published")
        return report


def test_a_round_is_collected_aggregated_and_published():
    observer = Observer()
    job = Job(observer=observer)
    report = job.step([1, 1, 1, 1, 1e30])
    np.testing.assert_array_equal(report.grad_d, np.ones(D))
    assert report.usage_n[4] == 0
    assert report.delivered_n.tolist() == [1] * N
    assert (job.server.round, [worker.round for worker in job.workers]) == (1, [1] * N)
    assert observer.seen == [("arrived", 0), "published"]


@pytest.mark.parametrize("rule", ["median", "krum", "bulyan", "nnm+geometric-median", "average"])
@pytest.mark.parametrize("wide", [True, False])
def test_a_round_of_float64_keeps_its_digits(rule, wide):
    """In float32 they are lost, in every rule."""
    dtype = np.float64 if wide else np.float32
    job = Job(dtype=dtype, num_workers=7, gar=rule)
    job.send([1 + 1e-12] * 7)
    report = job.server.collect()
    assert (report.grad_d.dtype, report.stack_nd.dtype) == (dtype, dtype)
    job.server.publish(report.grad_d)
    for params_d in job.receive():
        assert params_d.dtype == dtype
        assert (params_d.astype(np.float64) == 1 + 1e-12).all() == wide


def test_a_round_of_float64_that_is_refused_has_an_aggregate_of_float64():
    job = Job(dtype=np.float64)
    job.send([None, None, None, 1, 1])
    with pytest.raises(RefusedError) as refused:
        job.server.collect()
    assert refused.value.report.grad_d.dtype == np.float64


def test_a_refused_round_tells_why_and_gives_an_aggregate_of_nothing():
    observer = Observer()
    job = Job(observer=observer)
    job.send([1, 1, np.nan, np.nan, np.nan])
    with pytest.raises(RefusedError, match="krum: more than f=1 of the n=5 gradients") as caught:
        job.server.collect()
    report = caught.value.report
    assert not report.grad_d.any()
    assert not report.usage_n.any()
    assert report.delivered_n.tolist() == [1] * N
    assert job.server.publish(job.params_d) is None
    assert observer.seen == [("arrived", 0), "refused"]


def test_refused_rounds_publish_the_variables_of_now():
    """Not those that were there when the link was opened, or published last."""
    job = Job()
    job.step([1] * N)
    job.params_d = np.full(D, 7, np.float32)  # as a script does that loads weights
    rows, got = [[1, 1, np.nan, np.nan, np.nan], [2] * N], []
    link, collect = job.server._link, job.server._link.collect

    def collect_and_send(round, on_columns=None):
        if len(rows) < 2:
            got.extend(job.receive())
        job.send(rows.pop(0))
        return collect(round, on_columns)

    link.collect = collect_and_send
    report = job.server.aggregate()
    np.testing.assert_array_equal(report.grad_d, np.full(D, 2))
    assert job.server.round == 2  # of the round that is open
    for params_d in got:
        np.testing.assert_array_equal(params_d, np.full(D, 7))


@pytest.mark.parametrize(("rounds_before", "limit_s"), [(0, 30), (2, 10)])
def test_training_stops_where_the_rule_can_be_applied_to_nothing_for_too_long(
    rounds_before, limit_s
):
    clock = [0.0]
    job = Job(now=lambda: clock[0])
    for _ in range(rounds_before):
        job.send([1] * N)
        job.server.aggregate()
        job.server.publish(job.params_d)
        job.receive()
    link, collect, begun_s = job.server._link, job.server._link.collect, clock[0]

    def collect_nothing(round, on_columns=None):
        clock[0] += 4.0
        return collect(round, on_columns)

    link.collect = collect_nothing
    with pytest.raises(TrainingStopped, match=r"round \d+: nothing came from workers 0, 1, 2, 3"):
        job.server.aggregate()
    assert limit_s <= clock[0] - begun_s < limit_s + 4


def test_training_stops_at_once_where_too_many_have_gone():
    job = Job(now=lambda: 0.0)
    job.server.forget(3)
    job.send([1, 1, 1, None, None])
    job.server.forget(4)
    with pytest.raises(TrainingStopped, match="nothing came from workers 3, 4"):
        job.server.aggregate()


def test_training_stops_at_once_where_the_job_ends():
    job = Job(now=lambda: 0.0)
    job.server.leave()
    with pytest.raises(TrainingStopped):
        job.server.aggregate()


def test_who_is_missing_counts_among_the_f():
    job = Job()
    job.step([1, 1, 1, 1, None])
    with pytest.raises(RefusedError, match=r"nothing came from workers 3, 4 .*krum needs n >= 2f"):
        job.step([1, 1, 1, None, None])


def test_where_more_are_missing_the_rule_is_applied_to_those_that_are_there():
    job = Job(num_workers=9)
    report = job.step([1, 1, 1, 2, 1, 1, None, None, None])
    np.testing.assert_array_equal(report.grad_d, np.ones(D))
    assert report.usage_n.tolist().count(1) == 1
    assert not report.usage_n[6:].any()


def test_corruption_hits_what_has_arrived():
    def corrupt(collected):
        collected.stack_nd[0] = 9

    job = Job(gar="average")
    job.server._corrupt = corrupt
    report = job.step([1] * N)
    np.testing.assert_allclose(report.grad_d, np.full(D, (9 + 4) / 5))


@pytest.fixture
def mean_of_all():
    """A rule with state: the mean over all rounds."""

    def init(n, d):
        return {"sum": np.zeros(d), "rounds": np.zeros(())}

    @gar("mean-of-all", condition="n >= 1", cost="", source="", robust=False, init=init)
    def mean_of_all(stack_nd, state, context, *, f=0):
        mean_d = np.mean(stack_nd, axis=0)
        state = {"sum": state["sum"] + mean_d, "rounds": state["rounds"] + 1}
        usage_n = np.ones(stack_nd.shape[0])
        return Aggregated(state["sum"] / state["rounds"], usage_n), state

    yield
    del registered["mean-of-all"]


RESUMED = {
    "previous": {"gar": "median", "fill": "previous"},
    "random fill": {"gar": "median", "fill": "random"},
    "previous in float64": {"gar": "median", "fill": "previous", "dtype": np.float64},
    "state in float64": {"gar": "mean-of-all", "fill": "zero", "dtype": np.float64},
    "rule with state": {"gar": "mean-of-all", "fill": "zero"},
    "random rule": {"gar": "bucketing(s=2)+median", "f": 1, "num_workers": 7},
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_restored_server_goes_on_bit_for_bit(name, mean_of_all, tmp_path):
    def make():
        return Job(network=Network(loss=0.3, seed=3), **RESUMED[name])

    def rows(round, job):
        return np.random.default_rng(round).standard_normal((job.setting.num_workers, D))

    whole, first, second = make(), make(), make()
    expected = [whole.step(rows(r, whole)).grad_d for r in range(6)]
    for r in range(3):
        first.step(rows(r, first))
    checkpoint.write(tmp_path / "saved", first.server.state())
    second.server.restore(checkpoint.read(tmp_path / "saved"))
    for worker in second.workers:
        worker.round = first.server.round
    got = [second.step(rows(r, second)).grad_d for r in range(3, 6)]
    np.testing.assert_array_equal(got, expected[3:])
    third = make()  # which has no state
    third.server.round = 3
    for worker in third.workers:
        worker.round = 3
    fresh = [third.step(rows(r, third)).grad_d for r in range(3, 6)]
    assert got[0].dtype == RESUMED[name].get("dtype", got[0].dtype)
    needs_state = name.startswith(("previous", "rule with", "state"))
    assert np.array_equal(fresh, expected[3:]) == (not needs_state)


def test_asking_with_other_columns_meets_the_rule_as_in_its_first_round(mean_of_all):
    aggregation = Aggregation(Setting(num_workers=3, gar="mean-of-all"), D)
    stack_nd = np.arange(3 * D, dtype=np.float32).reshape(3, D)
    for _ in range(2):
        aggregation.follow(stack_nd, aggregation.context(0))
    state = {name: array.copy() for name, array in aggregation.rule_state.items()}
    asked = aggregation.ask(-stack_nd[:, :2], aggregation.context(0))
    np.testing.assert_allclose(asked.grad_d, -stack_nd[:, :2].mean(axis=0))
    np.testing.assert_allclose(
        aggregation.ask(-stack_nd, aggregation.context(0)).grad_d, stack_nd.mean(axis=0) / 3
    )
    for name, array in state.items():
        np.testing.assert_array_equal(aggregation.rule_state[name], array)


def test_what_a_random_rule_draws_is_the_servers_secret():
    def grads(secret):
        job = Job(num_workers=7, gar="bucketing(s=2)+median", f=1)
        job.server.aggregation = Aggregation(job.setting, D, secret=secret)
        rows = np.random.default_rng(0).standard_normal((7, D))
        return [job.step(rows).grad_d for _ in range(4)]

    first = grads(1)
    np.testing.assert_array_equal(first, grads(1))
    assert not np.array_equal(first, grads(2))
    assert not np.array_equal(first[0], first[1])  # rounds differ too
