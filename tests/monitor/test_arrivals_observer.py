"""Who is suspected where gradients come one by one, and what the status line says."""

import numpy as np
import pytest

from aggregathor.monitor import observer as observer_module
from aggregathor.monitor.observer import Observer, open_folder
from aggregathor.monitor.suspicion import Rejections
from aggregathor.protocols.arrivals import ArrivalReport
from aggregathor.protocols.setting import Setting


def driven(shares, f, arrivals, seed=0):
    """Returns the judgement after arrivals of which these shares are rejected, and who was ever."""
    rng = np.random.default_rng(seed)
    rejections = Rejections(len(shares), f)
    ever = np.zeros(len(shares), bool)
    for row in rng.integers(len(shares), size=arrivals).tolist():
        ever |= rejections.see(row, bool(rng.random() < shares[row]))
    return rejections, ever


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9])
@pytest.mark.parametrize("f", [0, 2])
def test_nobody_is_suspected_where_all_are_alike(share, f):
    for seed in range(10):
        assert not driven([share] * 8, f, 1000, seed)[1].any()


def test_who_is_always_rejected_is_suspected_soon_and_nobody_else():
    rejections, ever = driven([0.05] * 7 + [1.0], 1, 400)
    assert ever.tolist() == [False] * 7 + [True]
    assert 0 < rejections.arrivals_n[7] - rejections.suspected_n[7] < 20


def test_most_may_be_rejected():
    """As with Zeno++, of which f may be more than half."""
    _, ever = driven([0.1] * 2 + [0.9] * 8, 8, 2000)
    assert ever.tolist() == [False] * 2 + [True] * 8


def report(row, why="", staleness=0, updates=0):
    step_d = None if why else np.zeros(3, np.float32)
    return ArrivalReport(row, 0, 0, staleness, step_d, why, updates, 0.0, lambda: [{}] * 4)


@pytest.fixture
def observed(tmp_path, monkeypatch):
    monkeypatch.setattr(observer_module, "BELOW_S", 0.0)
    setting = Setting(num_workers=4, f=1, protocol="kardam", byzantine=1, attack="sign-flip")
    columns = observer_module.columns_for(setting)
    return Observer(setting, open_folder(str(tmp_path / "seen"), columns), every=2)


def test_the_status_line_has_share_and_staleness_of_each_worker(observed, monkeypatch):
    said = []
    monkeypatch.setattr(observer_module._logger, "info", lambda text, *of: said.append(text % of))
    arrivals = observed.of_arrivals()
    arrivals._status._line._every_s = 1e9
    for each in (report(0, staleness=2, updates=1), report(1, "lipschitz", 4, 1)):
        arrivals.decided(each)
    arrivals._status._line._every_s = 0.0
    arrivals.decided(report(0, staleness=5, updates=2))
    [line] = said
    assert line.startswith("update 2, ")
    assert "accepted, staleness: 67%, 3.7 on average and 5 at most" in line
    assert line.endswith("; 0: 100% 3.5/5, 1: 0% 4.0/4")


def test_what_says_nothing_about_a_gradient_makes_nobody_a_suspect(observed):
    arrivals = observed.of_arrivals()
    for _ in range(200):
        for row in range(4):
            last = arrivals.decided(report(row, "frequency" if row == 3 else ""))
    assert last.suspected == ()
    for _ in range(200):
        for row in range(4):
            last = arrivals.decided(report(row, "lipschitz" if row == 3 else ""))
    assert last.suspected == (3,)


def test_the_end_says_who_was_suspected(observed, monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr(observer_module._logger, "info", lambda text, *of: said.append(text % of))
    arrivals = observed.of_arrivals()
    for number in range(40):
        for row in (0, 1, 3):
            arrivals.decided(report(row, "not finite" if row == 3 else "", updates=2 * number))
    observed.close()
    assert said[-1].startswith("78 updates by 120 gradients, kardam f=1; suspected: worker 3 in ")
    assert said[-1].endswith(
        "worker 3 attacked with sign-flip; nothing came from worker 2 (rank 3)"
    )
    rows = (tmp_path / "seen" / "run-1" / "workers.csv").read_text().splitlines()
    assert rows[0].startswith("step,worker,arrivals,accepted,staleness,most_stale,dropped,not_fin")
    assert len(rows) == 1 + 60 * 4
