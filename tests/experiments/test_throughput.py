"""``make bench-throughput`` without its minutes, and one of the baselines for real."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import throughput
from experiments.baselines import cluster, workload
from experiments.goals import Goal
from experiments.throughput import Case, FailedError
from tests.warm.start import executable, python

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("size", "d"), [("small", 89_610), ("big", 1_735_350)])
def test_the_models_are_as_large_as_the_goals_say(size, d):
    assert sum(math.prod(shape) for shape in workload.shapes(size)) == d


def test_steps_are_timed_after_the_warm_up_and_bounded():
    said = []
    seconds = workload.timed(lambda: said.append("step"), 3, once_warm=lambda: said.append("warm"))
    assert said == ["step"] * workload.WARM_UP + ["warm"] + ["step"] * 3
    assert len(seconds) == 3
    assert workload.timed(lambda: None, 3, limit_s=0) == []


@pytest.mark.parametrize("lock", ["", pytest.param(", grpc+lock", marks=pytest.mark.long)])
def test_a_baseline_runs_and_prints_one_line(lock):
    protocol = lock.removeprefix(", ") or "grpc"
    found = run("ingraph", "--workers=2", "--steps=3", f"--protocol={protocol}")
    assert {key: found[key] for key in ("name", "d", "n", "batch")} == {
        "name": f"in-graph, flat{lock}",
        "d": 89_610,
        "n": 2,
        "batch": 32,
    }
    assert len(found["seconds"]) == 3
    assert found["gradients_per_s"] == pytest.approx(2 * 3 / sum(found["seconds"]), rel=0.01)


@pytest.mark.long
def test_a_locked_server_is_as_fast():
    assert run("lock_cost", "--workers=2", "--steps=500")["throughput"] > 0.9


def run(baseline, *arguments):
    """Returns the line that a baseline prints."""
    # It and the processes that it starts have TensorFlow from the beginning.
    code = f"import runpy, sys; sys.executable = {executable()!r}; "
    code += f"runpy.run_module('experiments.baselines.{baseline}', run_name='__main__')"
    command = [*python(), "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    return json.loads(line)


MEMBER = """
import os, sys, threading
from experiments.baselines import cluster
assert cluster.is_task()
role = os.environ["TF_CONFIG"].partition('"type": "')[2].partition('"')[0]
{body}
threading.Event().wait()
"""


@pytest.fixture
def members(tmp_path, monkeypatch):
    """Returns a function that launches a server and two workers that run a few lines."""

    def launch(body, limit_s=60.0):
        (tmp_path / "member.py").write_text(MEMBER.format(body=body))
        monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")
        monkeypatch.setattr(sys, "argv", ["member"])
        begun = []
        popen = subprocess.Popen

        def noted(*arguments, **keywords):
            begun.append(popen(*arguments, **keywords))
            return begun[-1]

        monkeypatch.setattr(cluster.subprocess, "Popen", noted)
        jobs = {"ps": 1, "worker": 2}
        status = cluster.launch("member", jobs, ("ps", 0), limit_s=limit_s)
        assert [process.poll() is not None for process in begun] == [True] * 3
        return status

    return launch


def test_all_end_with_the_one_that_reports(members, capfd):
    assert members("if role == 'ps': cluster.end_with('done')") == 0
    assert capfd.readouterr() == ("done", "")


def test_all_end_when_one_fails(members, capfd):
    assert members("if role == 'worker': sys.exit(7)") == 1
    assert re.fullmatch(r"worker [01] ended with status 7\n", capfd.readouterr().err)


def test_all_end_when_the_time_is_up(members, capfd):
    assert members("", limit_s=0.2) == 1
    assert capfd.readouterr().err == "not done after 0.2 s\n"


def test_members_end_when_their_launcher_was_killed(tmp_path):
    (tmp_path / "member.py").write_text(MEMBER.format(body="print('ready', flush=True)"))
    command = [sys.executable, "-c", "import member"]
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "TF_CONFIG": '{"type": "ps"}'}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe) as member:
        assert member.stdout.readline() == b"ready\n"
        member.stdin.close()  # what the kernel does for a process that is killed
        assert member.wait(20) == 1


def result(per_s, n=4):
    return {"gradients_per_s": per_s, "n": n, "seconds": [n / per_s] * 3, "d": 1}


def runs_of(**rates):
    names = {"ours": "big: ours", "flat": "big: in-graph, flat", "mwms": f"big: {MWMS}"}
    return {names[key]: [each and result(each) for each in of] for key, of in rates.items()}


MWMS = "MultiWorkerMirroredStrategy"


def test_rates_are_compared_within_a_turn():
    # The machine was three times slower in the second turn, and one contender failed in the last.
    runs = runs_of(ours=[30.0, 10.0, 33.0], flat=[10.0, 5.0, None])
    assert throughput.ratios(runs, "big: ours", "big: in-graph, flat") == [3.0, 2.0]
    assert throughput.ratios(runs, "big: ours", "big: nobody") == []


def test_we_compare_with_the_baseline_that_is_best():
    runs = runs_of(ours=[40.0] * 3, flat=[10.0, 10.0, 100.0], mwms=[20.0] * 3)
    assert throughput.best_baseline(runs, "big") == f"big: {MWMS}"
    assert throughput.best_baseline(runs, "small") is None
    measured = [goal for goal in throughput.goals(runs) if goal.got is not None]
    assert [goal.row() for goal in measured] == [
        f"| gradients/s, over the best baseline ({MWMS}), big | x | 1.8 | 2.5 | 2 | yes |"
    ]


def test_an_overhead_is_time_beyond_the_other():
    runs = {
        "rules: average": [result(100.0)],
        "rules: multi-krum": [result(80.0)],
        "udp: 0% loss": [result(50.0)],
        "udp: 10% loss": [result(100.0)],
    }
    got = {goal.name: goal.got for goal in throughput.goals(runs)}
    assert got["multi-krum, time beyond average's, big"] == pytest.approx(25)
    assert got["10% UDP loss, time beyond 0%'s, big"] == pytest.approx(-50)


@pytest.mark.parametrize(
    ("got", "more_is_better", "verdict"),
    [
        (1.0, True, "**missed**"),
        (2.0, True, "yes"),
        (3.0, True, "stretch"),
        (2.5, False, "**missed**"),
        (None, False, "not measured"),
    ],
)
def test_verdicts(got, more_is_better, verdict):
    assert Goal("g", 2, 3 if more_is_better else 1, got, "x", more_is_better).verdict() == verdict


@pytest.mark.parametrize(
    ("stderr", "told"),
    [
        ("", "it said nothing"),
        ("Traceback\n\nImportError: no such thing\n", "ImportError: no such thing"),
        (
            f"python: No module named x\n{'-' * 78}\nprterun detected ...\n",
            "python: No module named x",
        ),
        (f"{'-' * 78}\nprterun found no slots.\n", "prterun found no slots."),
    ],
)
def test_the_reason_is_a_contenders_own(stderr, told):
    assert throughput.reason(stderr) == told


def test_a_contender_is_bounded_and_its_last_json_counts(monkeypatch):
    def case(code, limit_s=20.0):
        return Case((sys.executable, "-c", code), limit_s=limit_s)

    code = "import sys; print('chatter'); print('{\"n\": 1}'); print(sys.argv[1])"
    assert throughput.run(case(code), 7) == {"n": 1}
    with pytest.raises(FailedError, match=r"^not done after 0.3 s$"):
        throughput.run(case("import time; time.sleep(60)", 0.3), 7)
    with pytest.raises(FailedError, match=r"^status 3: it said nothing$"):
        throughput.run(case("import sys; sys.exit(3)"), 7)
    with pytest.raises(FailedError, match=r"^printed no result$"):
        throughput.run(case(""), 7)


@pytest.fixture
def written(tmp_path, monkeypatch, capfd):
    """What a run leaves when our contenders fail and the others take a second a step."""

    def run(case, steps, steps_s=0):
        if "aggregathor.run" in case.words:
            raise FailedError("status 1: no such module")
        return {**result(4.0), "seconds": [1.0] * steps}

    monkeypatch.setattr(throughput, "run", run)
    assert throughput.main(["--quick", f"--output={tmp_path}"]) == 0
    return {path.suffix: path for path in tmp_path.iterdir()}


def test_who_fails_is_told_and_the_others_are_measured(written):
    assert set(written) == {".json", ".md", ".png"}
    assert {
        bool(re.fullmatch(r"throughput_[a-z0-9-]+_\d{4}-\d\d-\d\d_quick", path.stem))
        for path in written.values()
    } == {True}
    found = json.loads(written[".json"].read_text())
    assert found["command"].startswith("python -m experiments.throughput --quick ")
    assert found["versions"]["tensorflow"].startswith("2.21")
    assert found["failed"]["udp: 10% loss"] == "in turn 1: status 1: no such module"
    assert [len(each["seconds"]) for each in found["runs"]["small: in-graph, flat"]] == [10]
    text = written[".md"].read_text()
    assert "| small: in-graph, flat | 4 | 4 | 4 | 4 | 1000 | 1 |" in text
    assert "- big: ours: in turn 1: status 1: no such module" in text


def test_steps_fill_the_time_of_a_turn(monkeypatch):
    asked = []

    def run(case, steps, steps_s=0):
        asked.append(steps)
        return {**result(4.0), "seconds": [0.1] * steps}

    monkeypatch.setattr(throughput, "run", run)
    assert throughput.main(["--only=big: in-graph, variables", "--turns=2", "--seconds=3"]) == 0
    assert asked == [10, 30, 30]


def test_rules_are_run_with_as_many_workers_as_they_need():
    words = throughput.cases(4, with_hosts=False)["rules"].words
    ranks = int(words[words.index("-n") + 1])
    f = int(next(word for word in words if word.startswith("--f=")).partition("=")[2])
    assert ranks - 1 >= 4 * f + 3


def test_a_contender_of_several_parts_counts_as_these(monkeypatch):
    parts = {"average": result(7.0), "bulyan": result(6.0)}
    monkeypatch.setattr(throughput, "run", lambda *_: {"seconds": [0.1], "parts": parts})
    case = throughput.Case(("rules",), steps=None)
    runs, failed = throughput._measure({"rules": case}, 2, 1.0)
    assert not failed
    assert runs == {"rules": [], **{f"rules: {name}": [of] * 2 for name, of in parts.items()}}
    assert throughput.beyond(runs, "rules: bulyan", "rules: average") == pytest.approx(
        [100 / 6] * 2
    )
