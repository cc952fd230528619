"""What ``python -m aggregathor.run`` reads, what it says to mistakes, and a script that it runs."""

import os
import subprocess
import sys

import pytest

from aggregathor.cli.flags import help_text, parse
from aggregathor.cluster.config import FIELDS, Config
from aggregathor.errors import UserError


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text("import sys; print(sys.argv[1:], __name__)")
    return str(path)


def test_flags_become_variables_and_the_rest_is_the_scripts(script):
    words = ["--gar=multi-krum", "--f", "2", "--gar_args=m=3", "--link-args=timeout_s=2.5"]
    told, program = parse([*words, script, "--gar=its own", "x"])
    assert program == ("script", script, ["--gar=its own", "x"], [])
    config = Config.of({}, told)
    assert (config.gar, config.f, config.gar_args) == ("multi-krum", 2, {"m": 3})
    assert config.link_args == {"timeout_s": 2.5}
    assert Config.of({}, config.to_environment()) == config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gra=krum"], "there is no flag --gra: did you mean '--gar'"),
        (["--gra", "krum"], "there is no flag --gra: did you mean '--gar'"),
        (["--gra_args=a=1 b=2", "a.py"], "there is no flag --gra_args: did you mean '--gar_args'"),
        (["--f", "--gar=krum"], "--f needs a value"),
        (["--help=me"], "--help"),
        (["--f=two"], "--f must be a whole number, got 'two'"),
        (["--f"], "--f needs a value"),
        (["--gar_args=m"], "--gar_args takes name=value, got 'm'"),
        ([], "no script is named"),
        (["--checkpoint", "a.py"], "no script is named; if 'a.py' is it, --checkpoint lacks its"),
        (["nothere.py"], "there is no script 'nothere.py'"),
    ],
)
def test_mistakes_are_told(words, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        parse(words)


@pytest.mark.parametrize("columns", [45, 80, 200])
def test_help_tells_every_flag_within_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = help_text()
    assert all(f"\n  --{name}" in text for name in FIELDS)
    assert columns - 25 < max(map(len, text.splitlines())) <= columns


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--f=1", "--help", "script.py"]])
def test_help_is_printed_wherever_it_is_asked_for(words, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert ended.value.code == 0
    assert capsys.readouterr().out == help_text()


def test_a_script_runs_alone_and_as_itself(script):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OMPI_")}
    words = [sys.executable, "-m", "aggregathor.run", "--gar=median", "--f=1", script, "a", "--b"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['a', '--b'] __main__\n"
    assert "one process only" in done.stderr
