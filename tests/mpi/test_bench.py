"""``python -m lossympi.bench``: it runs, counts right and tells mistakes in a line."""

import json

import pytest

from tests.mpi.launch import check, run_on_one_host

BENCH = ("-m", "lossympi.bench", "--quick")


def test_table_and_samples(tmp_path):
    file = tmp_path / "bench.json"
    options = ("--drop=0.1", "--silent", "--timeout=0.2", "--gil", f"--json={file}")
    text = check(run_on_one_host(4, *BENCH, *options))
    assert max(map(len, text.splitlines())) <= 80
    for words in ("LossyMPI", "TCP", "MPI", "congestion control", "delivered", "t_B"):
        assert words in text
    result = json.loads(file.read_text())
    assert result["workers"] == 3
    udp = result["udp"]
    assert udp["wrong_floats"] == udp["wrong_floats_of_models"] == 0
    assert [len(udp[name]) for name in ("round_s", "broadcast_s", "closed_by")] == [5, 5, 5]
    for row, expected in enumerate([0.9, 0.9, 0.0]):  # the last is silent
        got = sum(delivered_n[row] for delivered_n in udp["delivered_n"]) / 5
        assert abs(got - expected) < 0.1
    for name in ("tcp", "mpi"):
        assert len(result[name]["round_s"]) == 5
        assert not result[name]["too_late"]


def test_narrow_wire_and_repairs(tmp_path):
    file = tmp_path / "bench.json"
    options = ("--only=udp", "--wire=bfloat16", "--max-loss=0", f"--json={file}")
    text = check(run_on_one_host(3, *BENCH, *options))
    udp = json.loads(file.read_text())["udp"]
    assert udp["delivered_n"] == [[1, 1]] * 5
    assert udp["wrong_floats"] == udp["wrong_floats_of_models"] == 0
    # And so it is told.
    assert "delivered 100.00%" in text
    assert "0 floats of gradients, 0 of models" in text


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--only=carrier-pigeon", "--only lists some of"),
        ("--drop=10", "--drop is a share in 0..1"),
        ("--wire=float8", "wire is one of float32"),
    ],
)
def test_mistakes_are_told_once(flag, words):
    done = run_on_one_host(2, *BENCH, flag)
    assert done.returncode == 2
    assert done.stderr.count(words) == 1
    assert "Traceback" not in done.stderr
