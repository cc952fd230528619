"""``make bench`` at tiny sizes."""

import itertools
import json
import os
import re
import sys

import numpy as np
import pytest

from aggregathor import ops
from experiments.bench import __main__ as bench
from experiments.bench import growth, memory, peers, report, table
from experiments.bench.plan import FULL, QUICK
from tests.gars.cases import ALONE


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What a quick run leaves, and its exit status."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "peak_mib", lambda *_: 1.5)  # a process of its own, tried below
        status = bench.main(["--quick", f"--output={folder}"])
    return status, {path.suffix: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def result(written):
    return json.loads(written[1][".json"].read_text())


def test_it_ends_well_and_leaves_three_files_of_one_name(written, result):
    status, files = written
    assert status == 0  # also where goals are missed
    assert set(files) == {".json", ".md", ".png"}
    name = rf"gars_[a-z0-9-]+_{result['kernels']}_{result['date']}_quick"
    assert {bool(re.fullmatch(name, path.stem)) for path in files.values()} == {True}
    assert files[".png"].stat().st_size > 10_000


def test_it_says_where_when_and_how(result):
    assert result["command"] == "python -m experiments.bench --quick"
    assert result["machine"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", result["date"])
    assert result["kernels"] == ops.state().in_use
    assert result["threads"] == os.environ["TF_NUM_INTRAOP_THREADS"]


def test_the_table_has_every_rule_every_goal_and_what_is_installed(result):
    names = {row["name"] for row in result["table"]}
    assert names >= set(ALONE) - {"brute", "geometric-median"}
    assert names >= set(table.GOALS)
    assert names >= {"tf.sort", "numpy.median", "median, stand-in", "multi-krum, stand-in"}
    assert names >= {"trimmed-mean, 10% missing", "meamed, 10% missing"}
    for row in result["table"]:
        assert 1 <= row["pairs"] <= QUICK.repeats
        assert np.isfinite([row["ms"], row["ratio"]]).all()


def test_memory_of_a_rule_holds_its_result():
    d = 4_000_000
    mib = memory.peak_mib("median", 3, 1, d)
    result_mib = 4 * d / 2**20
    # Linux counts pages to within some dozens a processor. Less than a copy of the stack.
    assert 0.95 * result_mib <= mib < 4 * result_mib


def test_growth_has_every_rule_at_every_size(written, result):
    cells = {(row["name"], row["n"], row["d"]) for row in result["growth"]}
    sizes = [(n, d) for n in QUICK.growth_ns for d in QUICK.growth_ds]
    assert cells == {(name, n, d) for name in growth.RULES for n, d in sizes}
    for row in result["growth"]:
        assert row["ns_per_value"] == pytest.approx(1e6 * row["ms"] / (row["n"] * row["d"]))
    text = written[1][".md"].read_text()
    for name in growth.RULES:
        assert len(re.findall(rf"^\| {name}, 5,000 (\| [\d.e+]+ ){{4}}\|$", text, re.M)) == 3


def test_sizes_beyond_the_memory_are_left_out_and_told(monkeypatch):
    monkeypatch.setattr(growth, "_most_bytes", lambda: 8 << 30)
    assert growth.left_out(FULL) == [
        "n = 100, d = 25,000,000: 9.3 GiB, and a stack may take 8.0 GiB",
        "n = 200, d = 25,000,000: 18.6 GiB, and a stack may take 8.0 GiB",
    ]


@pytest.mark.parametrize(("n", "d"), [(33, 5_000), (7, 90_000)])
def test_stacks_of_the_growth_have_no_ties(n, d, monkeypatch):
    # Longer than a row or shorter, the rows begin anywhere in it.
    for block in (9_973, 65_537):
        monkeypatch.setattr(growth, "BLOCK", block)
        stack_nd = growth.random_values(n * d).reshape(n, d)
        sorted_nd = np.sort(stack_nd, axis=0)
        # Two draws of a block are equal now and then, two rows at one place in all columns.
        assert np.mean(sorted_nd[1:] == sorted_nd[:-1]) < 1e-4


def shown(result, **changes):
    facts = {"machine": "one"}
    return report.as_markdown(facts, result | changes).splitlines()


def row(name, ratio):
    return {"name": name, "ms": 1.0, "ratio": ratio, "pairs": 2}


@pytest.mark.parametrize(
    ("kernels", "ratio", "line"),
    [
        ("avx512", 1.01, "| median | 1.00 | 1.01 | 1.0 | 0.7 | missed | 2 |"),
        ("avx512", 0.99, "| median | 1.00 | 0.99 | 1.0 | 0.7 | met | 2 |"),
        ("avx512", 0.69, "| median | 1.00 | 0.69 | 1.0 | 0.7 | met, stretch too | 2 |"),
        ("avx2", 1.59, "| median | 1.00 | 1.59 | 1.6 | 1.1 | met | 2 |"),
        ("avx2", 1.61, "| median | 1.00 | 1.61 | 1.6 | 1.1 | missed | 2 |"),
        ("baseline", 9.99, "| median | 1.00 | 9.99 |  |  |  | 2 |"),
    ],
)
def test_goals_are_shown_with_what_became_of_them(kernels, ratio, line, result):
    assert line in shown(result, kernels=kernels, table=[row("median", ratio)])


def test_too_much_memory_is_shown(result):
    lines = shown(result, n=20, d=1 << 20, peak_mib={"median": 63.9, "krum": 64.1, "bulyan": None})
    assert "| median | 63.9 | 80% | within |" in lines
    assert "| krum | 64.1 | 80% | too much |" in lines
    assert "| bulyan | | | unknown to this operating system |" in lines


def test_a_cliff_is_shown(result):
    found = [
        {"name": name, "d": 1_000, "factor": factor, "pairs": 3}
        for name, factor in (("median", 1.6), ("meamed", 1.4))
    ]
    lines = shown(result, cliffs=found)
    assert "| median | 1,000 | 1.60 | cliff | 3 |" in lines
    assert "| meamed | 1,000 | 1.40 | none | 3 |" in lines


def test_cliffs_are_looked_for_in_each_rule_that_sorts_at_each_d(result):
    assert {(row["name"], row["d"]) for row in result["cliffs"]} == {
        (name, d) for name in growth.COORDINATE_WISE for d in QUICK.growth_ds
    }
    assert {row["pairs"] for row in result["cliffs"]} == {3}


@pytest.mark.parametrize("slow", range(2, 8))  # the first two are not counted
def test_one_slow_moment_is_no_cliff(slow, monkeypatch):
    calls = itertools.count()

    def seconds(run):
        n = run.args[0].shape[0]
        return n * (100.0 if next(calls) // 2 % 8 == slow else 1.0)  # 8 times two runs each

    monkeypatch.setattr(growth, "seconds", seconds)
    factors = [row["factor"] for row in growth.measure_cliffs(QUICK)]
    assert factors == pytest.approx([1.0] * len(factors))


def test_a_slower_method_is_a_cliff(monkeypatch):
    cost = {32: 32.0, 33: 66.0}
    monkeypatch.setattr(growth, "seconds", lambda run: cost[run.args[0].shape[0]])
    assert {row["factor"] for row in growth.measure_cliffs(QUICK)} == {2.0}


class FakeTensor:
    """As much of a PyTorch tensor as a run needs."""

    def __init__(self, values):
        self.values = values

    def numpy(self):
        return self.values


class FakeTorch:
    from_numpy = FakeTensor

    @staticmethod
    def set_num_threads(number):
        pass


def peer_labels(stack_nd):
    return [label for label, _, _ in peers.peer_rules(stack_nd, 2, stack_nd, 2)]


def test_a_missing_peer_is_silent(monkeypatch, rng, capfd):
    for name in ("torch", "byzfl", "byzpy"):
        monkeypatch.setitem(sys.modules, name, None)  # ImportError
    assert peer_labels(rng.standard_normal((11, 50), np.float32)) == []
    assert capfd.readouterr() == ("", "")


def test_one_peer_is_there_and_rules_that_are_others_are_labelled(monkeypatch, rng):
    monkeypatch.setitem(sys.modules, "torch", FakeTorch)
    monkeypatch.setitem(sys.modules, "byzpy.aggregators.coordinate_wise", None)
    rules = {
        "median": lambda rows: FakeTensor(np.median(rows.values, axis=0)),
        "krum": lambda rows: FakeTensor(rows.values[0] + 1),
    }
    monkeypatch.setattr(peers, "_byzfl", lambda *_: rules)
    stack_nd = rng.standard_normal((11, 50), np.float32)
    assert peer_labels(stack_nd) == ["ByzFL median", "ByzFL krum (its own definition)"]
