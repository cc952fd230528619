"""What the server says, and does, about workers of which nothing comes."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from aggregathor.cluster.waits import ServerWaits
from aggregathor.monitor.observer import Observer
from aggregathor.protocols.aggregation import Aggregation
from aggregathor.protocols.rounds import RoundsServer
from aggregathor.protocols.setting import Setting
from lossympi import backend
from lossympi.options import Options

pytestmark = pytest.mark.skipif(backend.native() is None, reason=backend.why_not_native())
if backend.native() is not None:
    from lossympi.shm_link import SharedServer, SharedWorker

N, D = 3, 10
SETTING = Setting(num_workers=N, f=1, gar="median")


class Job:
    """A server and its workers, on shared memory."""

    def __init__(self, gone=tuple, **options):
        checked = Options.of_lossless(options)
        link = SharedServer(N, D, checked)
        self.workers = [SharedWorker(link.files, rank, D, checked) for rank in range(N)]
        link.hide()
        self.observer = Observer(SETTING)
        ranks = SimpleNamespace(rank=0, gone=gone, topology=SETTING.topology, tell=lambda _: None)
        ranks.describe_end = "rank {}'s script ended".format
        self.waits = ServerWaits(ranks)
        self.server = RoundsServer(
            link,
            Aggregation(SETTING, D),
            lambda: np.zeros(D, np.float32),
            observer=self.observer.of_rounds(),
            waiting=self.waits.context,
        )
        self.waits.begin(self.server)

    def round(self, *senders):
        for row in senders:
            self.workers[row].send(self.server.round, np.ones(D, np.float32))
        return self.server.publish(self.server.aggregate().grad_d)

    def close(self):
        self.observer.close()
        self.waits.close()
        self.server.close()


@pytest.fixture
def jobs():
    made = []

    def make(*args, **options):
        made.append(Job(*args, **options))
        return made[-1]

    yield make
    for job in made:
        job.close()


USED_UP = (
    "nothing came from worker 1 (rank 2): 1 of the f=1 are used up, and the other gradients may "
    "have 0 Byzantine ones among them (median needs n >= 2f + 1 gradients; f=1 needs 3, got 2)"
)


def said_by(capsys):
    return [line.removeprefix("aggregathor: ") for line in capsys.readouterr().err.splitlines()]


def test_who_is_silent_is_named_and_who_is_back(jobs, capsys, monkeypatch):
    monkeypatch.setattr("aggregathor.monitor.attendance._LONG_S", 0.2)
    job = jobs(timeout_s=0.3, patience=2)
    job.round(0, 1, 2)
    assert said_by(capsys) == []
    for _ in range(4):
        job.round(0, 2)
    assert said_by(capsys) == [
        "round 1 has waited 0 s for worker 1 (rank 2)",
        USED_UP,
        "round 2 has waited 0 s for worker 1 (rank 2)",
        "worker 1 (rank 2) is silent, and waited for no longer in round 3",
    ]
    job.round(0, 1, 2)
    job.round(0, 1, 2)
    assert said_by(capsys) == ["worker 1 (rank 2) is back in round 6"]
    job.observer.close()
    assert said_by(capsys) == [
        "7 rounds, median f=1; nobody was suspected; nothing came from worker 1 in 4 rounds"
    ]


def test_no_round_waits_for_a_process_that_has_ended(jobs, capsys):
    ended = []
    job = jobs(lambda: ended, timeout_s=30.0)
    job.round(0, 1, 2)
    threading.Timer(0.3, ended.append, (1,)).start()
    begun = time.monotonic()
    report = job.round(0, 2)
    assert time.monotonic() - begun < 5
    assert report.stats.closed_by == "complete"
    job.round(0, 2)
    assert time.monotonic() - begun < 5
    assert said_by(capsys) == [
        "rank 2's script ended, before round 1; 2 of 3 workers are left",
        "worker 1 (rank 2) is silent, and waited for no longer in round 1",
        USED_UP,
    ]
