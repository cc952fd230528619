"""Columns that all workers' gradients have are aggregated while the rest of a round arrives."""

import contextlib
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregathor import ops
from aggregathor.cluster.loops import corruption
from aggregathor.gars import GARS
from aggregathor.protocols.aggregation import SAMPLED, Aggregation
from aggregathor.protocols.overlap import StreamingAggregate, others
from aggregathor.protocols.rounds import RoundsServer
from aggregathor.protocols.setting import Setting
from lossympi.link import columns_of
from lossympi.options import Options
from lossympi.udp_link import UdpServer, UdpWorker
from tests.lossympi.conftest import PLANES, Job

N, D, ROUNDS = 4, 100_003, 3
RATE_BPS = 4e8  # 100 kfloats of 4 workers take 30 ms
pytestmark = pytest.mark.skipif(not ops.has_arrays(), reason="needs the native library")


@pytest.fixture(params=["native", "python"])
def ends(request):
    """Returns a function that makes the server's and the workers' ends of a link over UDP."""
    with contextlib.closing(Job(PLANES[request.param])) as job:

        def make(drop, **options):
            chosen = Options(**options)
            server, workers = job.connected(N, D, drop=drop)
            links = [UdpWorker(each, rank, D, chosen) for rank, each in enumerate(workers)]
            return UdpServer(server, N, D, RATE_BPS, chosen), links

        yield make


@pytest.fixture
def told(monkeypatch):
    """Counts the columns that were aggregated before all was there."""
    counts = []
    aggregate = StreamingAggregate.__call__

    def spy(self, stack_nd, ranges_k2):
        counts.append(int(np.diff(ranges_k2, axis=1).sum()))
        aggregate(self, stack_nd, ranges_k2)

    monkeypatch.setattr(StreamingAggregate, "__call__", spy)
    return counts


def rounds(ends, setting, drop=0.0, senders=range(N)):
    """Returns the reports of some rounds, each with a stack of its own."""
    server, workers = ends(drop, timeout_s=1.0)
    grads_nd = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)

    def work(worker, grad_d):
        for round in range(ROUNDS):
            worker.send(round, grad_d * (round + 1))
            worker.receive(round)

    threads = [
        threading.Thread(target=work, args=(workers[row], grads_nd[row]), daemon=True)
        for row in senders
    ]
    for thread in threads:
        thread.start()
    half = RoundsServer(
        server,
        Aggregation(setting, D),
        lambda: np.zeros(D, np.float32),
        corrupt=corruption(setting),
    )
    reports = []
    for _ in range(ROUNDS):
        report = half.aggregate()
        reports.append((report, report.stack_nd.copy()))
        half.publish(report.grad_d)
    for thread in threads:
        thread.join(10)
    half.close()
    return reports


@pytest.mark.parametrize("gar", ["average-nan", "median", "trimmed-mean", "meamed", "phocas"])
@pytest.mark.parametrize("drop", [0.0, 0.1])
def test_the_aggregate_is_that_of_the_whole_stack(ends, told, gar, drop):
    setting = Setting(num_workers=N, gar=gar, f=0 if gar == "average-nan" else 1, fill="nan")
    for report, stack_nd in rounds(ends, setting, drop):
        assert np.isnan(stack_nd).any() == (drop > 0)
        expected_d = GARS[gar].aggregate(stack_nd, f=setting.f).grad_d
        np.testing.assert_array_equal(report.grad_d.view(np.uint32), expected_d.view(np.uint32))
        assert (report.usage_n > 0).all()
    assert sum(told) > ROUNDS * D * (0.1 if drop else 0.2)  # most of it, but on a busy machine


def test_nothing_is_whole_while_a_worker_is_silent(ends, told):
    setting = Setting(num_workers=N, gar="median", f=1)
    for report, stack_nd in rounds(ends, setting, senders=range(N - 1)):
        assert report.delivered_n.tolist() == [1, 1, 1, 0]
        np.testing.assert_array_equal(report.grad_d, GARS["median"].aggregate(stack_nd, f=1).grad_d)
    assert told == []


@pytest.mark.parametrize(
    ("gar", "attack"), [("multi-krum", None), ("geometric-median", None), ("median", "bit-flip")]
)
def test_rules_and_attacks_that_need_all_of_it_get_it(ends, told, gar, attack):
    setting = Setting(num_workers=N, gar=gar, f=0, attack=attack)
    for report, stack_nd in rounds(ends, setting):
        np.testing.assert_array_equal(report.grad_d, GARS[gar].aggregate(stack_nd, f=0).grad_d)
    assert told == []


def test_a_small_model_is_not_worth_it():
    setting = Setting(num_workers=N, gar="median")
    assert Aggregation(setting, SAMPLED).streaming() is None
    assert Aggregation(setting, SAMPLED + 1).streaming() is not None
    assert Aggregation(setting, SAMPLED + 1, dtype=np.float64).streaming() is None
    with ops.using("tensorflow"):
        assert Aggregation(setting, SAMPLED + 1).streaming() is None


@given(st.sets(st.integers(0, 20), min_size=1), st.integers(1, 4), st.randoms())
def test_columns_of_datagrams_and_all_others(datagrams, floats, random):
    dim = 21 * floats - random.randrange(floats)
    order = list(datagrams)
    random.shuffle(order)
    middle = len(order) // 2
    parts = [
        columns_of(np.array(part, np.uint32), dim, floats)
        for part in (order[:middle], order[middle:])
        if part
    ]
    chosen_d = np.zeros(dim, int)
    for begin, end in np.concatenate(parts):
        chosen_d[begin:end] += 1
    for begin, end in others(parts, dim):
        assert begin < end
        chosen_d[begin:end] -= 1
    is_in_d = np.isin(np.arange(dim) // floats, order)
    np.testing.assert_array_equal(chosen_d, np.where(is_in_d, 1, -1))
