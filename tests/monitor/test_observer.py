import csv
import io
import logging
import os
import stat
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

import aggregathor as agt
from aggregathor import log as terminal
from aggregathor.errors import UserError
from aggregathor.monitor import observer as observer_module
from aggregathor.monitor.figures import Monitor
from aggregathor.monitor.observer import Observer, Status, new_folder, open_folder, summary
from aggregathor.protocols.aggregation import Aggregation
from aggregathor.protocols.report import RoundReport
from aggregathor.protocols.rounds import RoundsServer, TrainingStopped
from aggregathor.protocols.setting import Setting
from lossympi import memory

N, F, D = 7, 1, 400
SETTING = Setting(num_workers=N, f=F, gar="multi-krum")


def rows_of(folder):
    with (folder / "workers.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def scalars_of(folder):
    """{(tag, step): value} of the TensorBoard events in a folder."""
    found = {}
    for path in folder.iterdir():
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                found[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    return found


class Server:
    """A job's server over links in memory; rounds for each optimizer."""

    def __init__(self, setting, folder=None, every=10, optimizers=1, stop_after_s=1e-9):
        self.observer = Observer(setting, folder, every)
        self.limit_s = stop_after_s
        self.halves = [self._connect(setting) for _ in range(optimizers)]

    def _connect(self, setting):
        link, workers = memory.connect(setting.num_workers, D)
        half = RoundsServer(
            link,
            Aggregation(setting, D),
            lambda: np.zeros(D, np.float32),
            observer=self.observer.of_rounds(),
            first_limit_s=0.1,
            limit_s=self.limit_s,
        )
        return half, workers

    def round(self, rows, optimizer=0):
        """Rows are what each worker sends; None for one that sends nothing."""
        server, workers = self.halves[optimizer]
        for worker, row_d in zip(workers, rows, strict=True):
            if row_d is not None:
                worker.send(server.round, np.asarray(row_d, np.float32))
        return server.publish(server.aggregate().grad_d)

    def close(self):
        self.observer.close()
        for half, _ in self.halves:
            half.close()


@pytest.fixture
def honest(rng):
    def rows(n=N):
        return list(1 + 0.1 * rng.standard_normal((n, D)).astype(np.float32))

    return rows


@pytest.fixture(autouse=True)
def fresh_terminal(monkeypatch):
    monkeypatch.setattr(terminal, "_shown_columns", 0)


@pytest.mark.parametrize("poison", [-5.0, 0.0, 1e30, np.inf, np.nan])
def test_files_status_and_summary_name_who_attacks(poison, honest, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(observer_module, "BELOW_S", 0.0)
    server = Server(SETTING, new_folder(tmp_path))
    for round in range(25):
        rows = [*honest()[:-1], np.full(D, poison)]
        if round >= 20:
            rows[3] = None
        report = server.round(rows)
    assert report.suspected == (6,)
    server.close()

    rows = rows_of(tmp_path / "run-1")
    assert list(rows[0]) == list(Monitor.COLUMNS)
    assert [(r["step"], r["worker"]) for r in rows] == [
        (str(step), str(worker)) for step in (10, 20, 25) for worker in range(N)
    ]
    attacker = [row for row in rows if row["worker"] == "6"]
    assert {row["selected"] for row in attacker} == {"0"}
    far = 1e29 if poison in (1e30, np.inf) or np.isnan(poison) else 0.9 * 20 * abs(poison - 1)
    assert all(float(row["distance"]) > far for row in attacker[:2])
    assert [r["delivered"] for r in rows if r["worker"] == "3"] == ["1", "1", "0"]
    scalars = scalars_of(tmp_path / "run-1" / "events")
    assert scalars["worker_06/selected", 10] == 0
    assert scalars["worker_03/delivered", 25] == 0
    assert len(scalars) == 3 * N * 5
    assert all(float(row["distance"]) >= 0 for row in rows)

    said = capfd.readouterr().err.splitlines()
    assert said[-2].startswith("aggregathor: round 25, ")
    assert said[-2].endswith("/s; suspected worker 6; missing worker 3; 86% delivered")
    assert said[-1] == (
        "aggregathor: 25 rounds, multi-krum f=1; suspected: worker 6 in 25 rounds; nothing came "
        "from worker 3 in 5 rounds"
    )


def test_without_monitor_nothing_is_written_or_said(honest, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(observer_module, "BELOW_S", 0.0)
    server = Server(SETTING)
    for _ in range(20):
        report = server.round([*honest()[:-1], np.zeros(D)])
    server.close()
    assert report.suspected == (6,)  # which a script may ask for all the same
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_ends_before_its_first_round_says_so(tmp_path, capfd):
    Server(SETTING, new_folder(tmp_path), optimizers=0).close()
    Server(SETTING, new_folder(tmp_path), optimizers=1).close()
    said = "aggregathor: 0 rounds, multi-krum f=1; nobody was suspected\n"
    assert capfd.readouterr().err == 2 * said
    assert rows_of(tmp_path / "run-1") == rows_of(tmp_path / "run-2") == []


def test_the_average_is_said_to_suspect_nobody(honest, tmp_path, capfd):
    server = Server(Setting(num_workers=N), new_folder(tmp_path))
    server.round([*honest()[:-1], np.full(D, 1e30)])
    server.close()
    assert capfd.readouterr().err == "aggregathor: 1 round; average suspects nobody\n"


def test_rounds_that_too_little_came_in_are_counted(honest, tmp_path, capfd):
    server = Server(SETTING, new_folder(tmp_path))
    server.round(honest())
    with pytest.raises(TrainingStopped):
        server.round([None] * N)
    server.close()
    assert capfd.readouterr().err == (
        "aggregathor: 1 round, multi-krum f=1; nobody was suspected; too little came in 1 round "
        "more, which changed nothing\n"
    )


def test_each_optimizer_has_files_and_all_have_one_summary(honest, tmp_path, capfd):
    server = Server(SETTING, new_folder(tmp_path), every=5, optimizers=2)
    for _ in range(20):
        server.round([*honest()[:-1], np.zeros(D)], optimizer=0)
    for _ in range(5):
        server.round([None, *honest()[1:]], optimizer=1)
    server.close()
    run = tmp_path / "run-1"
    assert len(rows_of(run)) == 4 * N
    assert [r["delivered"] for r in rows_of(run / "optimizer-2")] == ["0", *["1"] * (N - 1)]
    assert scalars_of(run / "optimizer-2" / "events")["worker_00/delivered", 5] == 0
    assert capfd.readouterr().err == (
        "aggregathor: worker 0 (rank 1) is silent, and waited for no longer in round 3\n"
        "aggregathor: 25 rounds, multi-krum f=1; suspected: worker 6 in 20 rounds; nothing came "
        "from worker 0 in 5 rounds\n"
    )


def test_a_summary_of_many_names_those_most_often_first(tmp_path, capfd):
    setting = Setting(num_workers=20)
    server = Server(setting, new_folder(tmp_path))
    server.round([np.ones(D), *[None] * 19])
    server.round([np.ones(D), *[None] * 18, np.ones(D)])
    server.close()
    assert capfd.readouterr().err == (
        "aggregathor: 2 rounds; average suspects nobody; nothing came from worker 1 in 2 rounds, "
        "worker 2 in 2, worker 3 in 2, worker 4 in 2, worker 5 in 2, worker 6 in 2, worker 7 in 2, "
        "worker 8 in 2, worker 9 in 2, worker 10 in 2, worker 11 in 2, worker 12 in 2 and 7 "
        "others\n"
    )


def test_every_start_has_a_folder_of_its_own(tmp_path):
    (tmp_path / "run-7").mkdir()
    (tmp_path / "run-of-mine").write_text("")
    assert new_folder(tmp_path) == tmp_path / "run-8"
    assert new_folder(tmp_path / "new" / "one") == tmp_path / "new" / "one" / "run-1"


def test_others_cannot_write_to_the_folder_of_a_run_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        folder = new_folder(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_no_folder_is_made_unless_it_is_asked_for(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_folder("") is None
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "a/b"])
def test_a_folder_that_cannot_be_made_is_an_error(below, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .* to .*file.*: .*Give monitor another"):
        open_folder(str(tmp_path / "file" / below))


def test_a_folder_that_can_be_made_is_told(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_folder("out") == tmp_path / "out" / "run-1"
    assert capfd.readouterr().err == (
        f"aggregathor: what is seen of the workers is written to {tmp_path}/out/run-1\n"
    )


def test_a_training_goes_on_where_its_files_cannot(honest, tmp_path, capfd):
    folder = new_folder(tmp_path)
    server = Server(SETTING, folder, every=1)
    server.round(honest())
    (folder / "workers.csv").unlink()
    (folder / "workers.csv").mkdir()
    for _ in range(3):
        server.round(honest())
    server.close()
    assert capfd.readouterr().err == (
        f"aggregathor: cannot write to {folder}: Is a directory. The training goes on without.\n"
        "aggregathor: 4 rounds, multi-krum f=1; nobody was suspected\n"
    )


class Terminal(io.StringIO):
    """What a terminal of 60 columns is sent."""

    def isatty(self):
        return True

    def lines(self):
        """What it shows."""
        lines = [""]
        for text in self.getvalue().split("\n"):
            for part in text.split("\r"):
                lines[-1] = part + lines[-1][len(part) :]
            lines.append("")
        return [line.rstrip() for line in lines[:-1]]


@pytest.fixture
def sixty_columns(monkeypatch):
    screen = Terminal()
    screen.fileno = lambda: 99
    # pytest sets sys.stderr anew for the test itself
    monkeypatch.setattr(terminal, "sys", SimpleNamespace(stderr=screen, __stderr__=screen))
    size = SimpleNamespace(columns=60)
    monkeypatch.setattr(terminal.os, "get_terminal_size", lambda _: size)
    return screen


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr(observer_module.time, "monotonic", lambda: now.s)
    return now


def report_of(delivered_n, suspected=()):
    n = len(delivered_n)
    delivered_n = np.array(delivered_n, float)
    zeros_d = np.zeros(1, np.float32)
    return RoundReport(zeros_d, zeros_d, np.ones(n), delivered_n, suspected=suspected)


def test_on_a_terminal_the_status_is_one_line_a_second(sixty_columns, clock):
    status = Status()
    for _ in range(41):
        status.see(report_of([1, 0.5]))
        clock.s += 0.25
    assert sixty_columns.lines() == ["aggregathor: round 41, 4/s; 75% delivered"]
    assert sixty_columns.getvalue().count("aggregathor") == 10
    logging.getLogger("aggregathor.monitor").info("that is %s", "it")
    assert sixty_columns.lines() == ["aggregathor: that is it", ""]


def test_a_status_that_is_too_long_is_cut(sixty_columns, clock):
    status = Status()
    status.see(report_of([0] * 9))
    clock.s += 1
    status.see(report_of([0] * 9, suspected=(6, 7)))
    (line,) = sixty_columns.lines()
    assert line == "aggregathor: round 2, 2/s; suspected workers 6, 7; missi..."
    assert len(line) == 59
    clock.s += 1
    status.see(report_of([1] * 9))
    assert sixty_columns.lines() == ["aggregathor: round 3, 1/s; 100% delivered"]


def test_into_a_pipe_a_status_is_a_line_every_half_minute(clock, capfd):
    status = Status()
    for _ in range(700):
        status.see(report_of([1, 0, 0, 0, 0, 0, 0], suspected=(0,)))
        clock.s += 0.1
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "; suspected worker 0; missing workers 1, 2, 3, 4 +2; 14% delivered" in lines[0]


def test_the_type_of_a_last_round_can_be_imported():
    assert agt.RoundReport is RoundReport
    assert agt.last_round() is None


@pytest.mark.parametrize("gar", ["average", "multi-krum"])
def test_an_aggregate_that_is_not_finite_is_said_once(gar, honest, capfd):
    server = Server(Setting(num_workers=N, f=F, gar=gar))
    for _ in range(3):
        server.round([*honest()[:-1], np.full(D, np.inf)])
    server.close()
    said = capfd.readouterr().err
    if gar == "average":
        assert said.count("not finite") == 1
        assert (
            "round 1: worker 6 (rank 7): gradients of NaN or infinity, as of bad data. Lo" in said
        )
        assert "round 1: the aggregate of average is not finite in 400 of 400 coordinates" in said
        assert "average gives no protection: see `aggregathor advise`" in said
    else:
        assert said == (
            "aggregathor: round 1: worker 6 (rank 7): gradients of NaN or infinity, as of bad "
            "data. That makes 1 of the f=1 that are tolerated.\n"
        )


def test_who_sends_no_numbers_is_named_once_but_not_who_attacks(honest, capfd):
    setting = Setting(num_workers=N, f=1, gar="median", byzantine=1, attack="nan")
    server = Server(setting)
    nothing = np.full(D, np.nan, np.float32)
    some = np.where(np.arange(D) < 300, np.nan, 0)
    server.round([some, *honest()[1:-1], nothing])
    assert capfd.readouterr().err == ""
    for _ in range(2):
        server.round([*[nothing] * 3, *honest()[3:-1], nothing])
    said = capfd.readouterr().err
    assert said.count("gradients of NaN") == 1
    assert "round 2: workers 0, 1, 2 (ranks 1, 2, 3): gradients of NaN or infinity" in said
    assert "Look at the data, the loss and the learning rate." in said
    server.close()


def test_a_large_aggregate_is_finite(honest, capfd):
    server = Server(Setting(num_workers=N, gar="average"))
    server.round([np.full(D, 3e38, np.float32)] * N)  # whose sum is not
    server.close()
    assert "not finite" not in capfd.readouterr().err


def test_who_attacked_is_the_subject():
    setting = Setting(num_workers=N, f=2, gar="multi-krum", byzantine=1, attack="little")
    assert "; worker 6 attacked with little" in summary(setting, [])
    setting = Setting(num_workers=N, f=2, gar="multi-krum", byzantine=2, attack="little")
    assert "; workers 5, 6 attacked with little" in summary(setting, [])
