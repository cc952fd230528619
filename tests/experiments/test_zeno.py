"""Zeno's figure, and what its rounds cost: the commands, and what they must show."""

import csv
import dataclasses

import numpy as np
import pytest

from experiments import zeno_cost
from experiments.config import Config
from experiments.figures import zeno
from experiments.run import Result
from experiments.zeno_cost import Cost


def test_every_case_can_be_run_and_differs_from_the_others():
    all_cases = list(zeno.cases())
    configs = [Config(workers=20, validation_share=0.1, **case.settings()) for case in all_cases]
    for config in configs:
        config.check()
    assert len({config.digest() for config in configs}) == len(configs) == 30
    assert len({(case.rule, case.column) for case in all_cases}) == 30
    tolerated = {config.gar: config.f for config in configs if config.byzantine == 12}
    assert tolerated == {"average": 0, "median": 9, "krum": 8, "bulyan": 4, "zeno": 12}


def test_table_picture_and_csv(tmp_path):
    def result(accuracy):
        metrics = [{"step": 0, "accuracy": 0.1}, {"step": 5, "accuracy": accuracy}]
        return Result(5, metrics, 1.0, None, "")

    runs = {case: result(0.5 + i / 100) for i, case in enumerate(zeno.cases())}
    lines = zeno._table(runs).splitlines()
    assert lines[0] == (
        "| rule | no attack | label-flip, 8 of 20 | label-flip, 12 of 20 | sign-flip, 8 of 20 | "
        "sign-flip, 12 of 20 |"
    )
    assert lines[2] == "| average | 50.0 | 56.0 | 62.0 | 68.0 | 74.0 |"
    assert lines[-1] == "| zeno, n_r=16 | 55.0 | 61.0 | 67.0 | 73.0 | 79.0 |"
    refused = dataclasses.replace(runs[next(iter(runs))], failure="too few")
    assert "| average | 50.0 (refused after step 5) | 56.0 |" in zeno._table(
        {**runs, next(iter(runs)): refused}
    )
    zeno._write_csv(runs, tmp_path / "zeno.csv")
    with (tmp_path / "zeno.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    assert set(rows[1].values()) == {"average", "none", "0", "5", "0.5000"}
    zeno._plot(runs, tmp_path / "zeno.png")
    assert (tmp_path / "zeno.png").stat().st_size > 10_000


@pytest.mark.long
def test_zeno_learns_where_most_workers_lie_and_other_rules_do_not(tmp_path, monkeypatch, capsys):
    """In points of the average without an attack: 3 with 12 of 20 Byzantine workers, 2 with 8."""
    words = ["zeno", f"--runs={tmp_path}/runs", f"--output={tmp_path}"]
    monkeypatch.setattr("sys.argv", words)
    assert zeno.main() == 0
    table = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    (_, *columns), _, *rows = rows
    found = {(rule, column): float(cell.split()[0]) for rule, *cells in rows
             for column, cell in zip(columns, cells, strict=True)}  # fmt: skip
    best = found["average", "no attack"]
    for column in columns[1:]:
        most = 3 if "12 of 20" in column else 2
        assert found["zeno, n_r=16", column] > best - most, column
        if "12 of 20" in column:
            for rule in zeno.RULES:
                assert found[rule, column] < best - 20, (rule, column)


def test_a_round_is_timed_beside_its_passes(monkeypatch):
    monkeypatch.setattr(zeno_cost, "N", 4)
    monkeypatch.setattr(zeno_cost, "F", 0)
    cost = zeno_cost.measure("digits MLP", *zeno_cost.MODELS["digits MLP"], turns=3)
    assert cost.dim == 4810
    assert np.all(np.array(cost[2:]) > 0)


def test_report_of_the_cost():
    text = zeno_cost.report([Cost("m", 5, 2.0, 2.5, 0.1, 1.25), Cost("k", 6, 1, 2, 0, 2.0)], 9)
    assert "| m | 5 | 2.00 | 2.50 | 0.10 |" in text
    assert "| m: what Zeno costs over Multi-Krum | of the passes | 1.3 | 1.1 | 1.25 | yes |" in text
    assert "| 2 | **missed** |" in text
    assert "--turns=9`" in text
