import dataclasses
import json
import logging
import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import pytest
import tensorflow as tf

from aggregathor.errors import UserError
from experiments.__main__ import OWN, _split, default_folder, summary
from experiments.command import import_tensorflow, run_command
from experiments.config import Config
from experiments.run import Result, run
from tests.experiments.folders import ROOT, assert_same, rows_of

COMMAND = [sys.executable, "-m", "experiments"]


def experiments(*arguments):
    return subprocess.run(
        [*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def assert_is_a_mistake(done, *said):
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("experiments: error: ")
    assert len(done.stderr.splitlines()) == 1
    for part in said:
        assert part in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nonesuch=1"], "there is no flag --nonesuch: did you mean "),
        (["--gar-arg=m=3"], "there is no flag --gar_arg: did you mean '--gar_args'"),
        (["--leanring-rate=1"], "did you mean '--learning_rate'"),
        (["--steps=many"], "--steps=many"),
        (["krum"], "unexpected argument 'krum'"),
        (["--flagfile=nonesuch"], "nonesuch"),
    ],
)
def test_flags_that_do_not_parse_are_a_mistake(arguments, said):
    assert_is_a_mistake(experiments(*arguments), said)


def test_a_rule_is_tried_first_where_that_is_asked_for(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\ndef mean(stack_nd, *, f):\n    return np.mean(stack_nd, axis=0)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = experiments("--check-gar", "--gar=mine:mean", f"--output={tmp_path}/run")
    assert done.returncode == 2
    assert "experiments: error: mine:mean breaks " in done.stderr
    assert not (tmp_path / "run").exists()


def test_help_lists_every_flag():
    done = experiments("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for name in [*Config.__dataclass_fields__, *OWN]:
        assert re.search(rf"--(\[no\])?{name}\b", done.stdout), name


def test_an_unknown_name_is_a_mistake():
    done = experiments("--gar=kurm")
    assert_is_a_mistake(done, "no gradient aggregation rule is called 'kurm'", "'krum'")


def test_a_folder_below_a_file_is_a_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    done = experiments(f"--output={tmp_path}/file/results", "--steps=1")
    assert_is_a_mistake(done, "cannot write to", "Not a directory")


def test_a_folder_is_named_by_all_that_makes_a_run_differ():
    configs = [Config(), Config(workers=5), Config(loss=0.1), Config(f=0, steps=9, eval_every=3)]
    names = [default_folder(config) for config in configs]
    assert names[0] == names[3]
    assert len(set(names)) == 3
    for name in names:
        assert re.fullmatch("digits-average-no-attack-seed0-[0-9a-f]{8}", name)
    composed = default_folder(Config(gar="bucketing(s=2)+multi-krum(m=3, unsafe=True)"))
    assert re.fullmatch(
        r"digits-bucketing-s=2[+]multi-krum-m=3-unsafe=True-no-attack-seed0-[0-9a-f]{8}", composed
    )


def test_a_finished_run_says_where_it_is_and_no_rate(tmp_path):
    config = Config(steps=4, eval_every=2)
    assert re.fullmatch(
        r"accuracy 0[.]\d{4}, top-3 0[.]\d{4} at step 4, \d+[.]\d steps/s",
        summary(run(config, tmp_path)),
    )
    for steps in (4, 2):
        assert re.fullmatch(
            r"already at step 4: accuracy 0[.]\d{4}, top-3 0[.]\d{4} at step 4",
            summary(run(dataclasses.replace(config, steps=steps), tmp_path)),
        )


def test_a_model_that_has_become_nan_is_called_that():
    row = {"step": 4, "accuracy": 0.0, "top3": 0.0}
    ended = Result(4, [row], math.nan, None, "", is_finite=False)
    said = "accuracy 0.0000, top-3 0.0000 at step 4; the model has become NaN or infinite"
    assert summary(ended) == said


def test_parameters_are_words_as_aggregathor_run_takes_them():
    assert _split("--gar_args", "m=3 unsafe=True") == ["m=3", "unsafe=True"]
    assert _split("--gar_args", "compat='a b'") == ["compat=a b"]
    with pytest.raises(UserError, match='--gar_args takes name=value, got "m=\'"'):
        _split("--gar_args", "m='")


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "demo: stopped\n"),
        (UserError("no disk"), 2, "demo: error: no disk\n"),
    ],
)
def test_a_line_and_a_status_are_all_there_is_to_see(raised, status, said, capsys):
    def body():
        raise raised

    assert run_command("demo", body) == status
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize("module", ["experiments", "experiments.demo"])
def test_ctrl_c_while_it_starts_is_told_in_a_line(module, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", module, f"--output={tmp_path}/results"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end_s = time.monotonic() + 60
    # TensorFlow is being imported once its library is mapped.
    while "libtensorflow" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
        assert time.monotonic() < end_s
        time.sleep(0.02)  # looking takes the kernel a while
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err in ("", f"{module.rpartition('.')[2]}: stopped\n")  # silent within the import
    assert not (tmp_path / "results").exists()


def test_another_keras_is_told(monkeypatch, capsys):
    monkeypatch.setattr(keras, "__version__", "3.99.0")
    import_tensorflow()
    assert capsys.readouterr().err.startswith("aggregathor: Keras 3.99.0 is untested; aggregathor")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    import_tensorflow()
    assert capsys.readouterr().err == ""  # as rank 0 does
    monkeypatch.delattr(keras.src.random.seed_generator, "make_default_seed")
    with pytest.raises(UserError, match=r"Keras 3\.99\.0 has no keras.*make_default_seed, which"):
        import_tensorflow()


def test_no_advice_about_tracing_between_runs(monkeypatch):
    """Each run traces functions of its own, which TensorFlow takes for a mistake."""
    logger = tf.get_logger()
    monkeypatch.setattr(logger, "level", logger.level)
    import_tensorflow()
    assert not logger.isEnabledFor(logging.WARNING)
    assert logger.isEnabledFor(logging.ERROR)


def test_flags_may_come_from_a_file(tmp_path):
    flags = {"gar": "multi-krum", "byzantine": 2, "attack": "little", "steps": 3, "workers": 9}
    file = tmp_path / "flags"
    lines = [f"--{name}={value}" for name, value in flags.items()]
    file.write_text("# a comment\n" + "\n".join([*lines, "--gar_args=m=3", "--attack_args=z=1.5"]))
    done = experiments(f"--flagfile={file}", "--steps=2", f"--output={tmp_path}/results")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.match(r"accuracy 0[.]\d{4}, top-3 .* at step 2, ", done.stdout)
    assert len(done.stdout.splitlines()) == 1
    config = json.loads((tmp_path / "results" / "config.json").read_text())
    assert config.items() >= (flags | {"steps": 2}).items()
    assert (config["gar_args"], config["attack_args"]) == ({"m": 3}, {"z": 1.5})


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path):
    """The steps are too many to be made; how many are by the time we look does not matter."""
    config = Config(
        gar="median", byzantine=2, attack="gaussian", workers=5, momentum=0.9, eval_every=20,
        loss=0.2, fill="previous", steps=10**6,
    )  # fmt: skip
    flags = [
        f"--{name}={value}" for name, value in vars(config).items() if value != vars(Config())[name]
    ]
    folder = tmp_path / "stopped"
    process = subprocess.Popen(
        [*COMMAND, *flags, f"--output={folder}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = folder / "metrics.csv"
    end_s = time.monotonic() + 120
    while not (metrics.exists() and len(rows_of(metrics)) >= 3):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end_s
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.startswith("accuracy ")
    made = int(re.fullmatch(r"stopped at step (\d+) of 1000000 and saved; .* goes on .*\n", err)[1])
    assert (folder / "checkpoints" / f"step-{made:09d}.npz").exists()
    assert (folder / "accuracy.png").stat().st_size > 0

    last = Config(**{**vars(config), "steps": made + 50})
    run(last, folder)
    run(last, tmp_path / "whole")
    assert_same(folder, tmp_path / "whole")
