"""What ``python -m aggregathor.run`` reads, and what it says to mistakes."""

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
    told, found, rest = parse([*words, script, "--gar=its own", "x"])
    assert (found, rest) == (script, ["--gar=its own", "x"])
    config = Config.of({}, told)
    assert (config.gar, config.f, config.gar_args) == ("multi-krum", 2, {"m": 3})
    assert config.link_args == {"timeout_s": 2.5}
    assert Config.of({}, config.to_environment()) == config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gra=krum"], "there is no flag --gra: did you mean '--gar'"),
        (["--f=two"], "--f must be a whole number, got 'two'"),
        (["--f"], "--f takes a value"),
        (["--gar_args=m"], "--gar_args takes name=value, got 'm'"),
        ([], "no script is named"),
        (["--checkpoint", "a.py"], "no script is named; if 'a.py' is it, --checkpoint lacks its"),
        (["nothere.py"], "there is no script nothere.py"),
    ],
)
def test_mistakes_are_told(words, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        parse(words)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gra": "krum"}, "agt.init has no parameter 'gra': did you mean 'gar'"),
        ({"gar": "median"}, "the script asks for gar='median' and the command line for 'krum'"),
        ({"transport": "pigeon"}, "no transport is called 'pigeon'"),
        ({"f": 1.5}, "f must be a whole number, got 1.5"),
        ({"link_args": "timeout_s=1"}, "link_args must be a dict of parameters"),
        ({"link_args": {"timeout": 1}}, "link_args: no option is called timeout. Did you mean "),
        ({"link_args": {"timeout_s": -1}}, "link_args: timeout_s is a time above 0 s, got -1"),
        ({"link_args": {"rate_bps": 1e9}}, "link_args: without UDP nothing is lost, and there is"),
        ({"lock": "tight"}, "no lock is called 'tight'"),
        ({"lock": "scan,digets"}, "no lock is called 'digets': did you mean 'digest'"),
        ({"lock": "scan,off"}, "lock='scan,off': off goes with no other"),
        ({"digest_every": 0}, "digest_every must be at least 1 round"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1 round"),
        ({"start_s": float("nan")}, "start_s must be a time above 0 s"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        Config.of(given, {"AGGREGATHOR_GAR": "krum", "AGGREGATHOR_KERNELS": "auto"})


@pytest.mark.parametrize(
    ("lock", "layers"),
    [("off", set()), ("kernel", {"kernel"}), ("scan,kernel", {"scan", "kernel"})],
)
def test_the_lock_has_layers(lock, layers):
    assert Config.of({"lock": lock}, {}).locks == layers


def test_an_unknown_variable_is_told():
    with pytest.raises(UserError, match="AGGREGATHOR_GRA, which is unknown: did you mean 'AGG"):
        Config.of({}, {"AGGREGATHOR_GRA": "krum"})


@pytest.mark.parametrize("columns", [45, 80, 200])
def test_help_tells_every_flag_within_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = help_text()
    assert all(f"\n  --{name}" in text for name in FIELDS)
    assert columns - 25 < max(map(len, text.splitlines())) <= columns


def test_a_script_runs_alone_and_as_itself(script):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OMPI_")}
    words = [sys.executable, "-m", "aggregathor.run", "--gar=median", "--f=1", script, "a", "--b"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['a', '--b'] __main__\n"
    assert "one process only" in done.stderr
