"""What each rank runs: a script, a module or a line of code, checked before anything is started."""

import os
import subprocess
import sys
import zipfile

import pytest

from aggregathor.cli.program import Program, read
from aggregathor.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    package = tmp_path / "things"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "train.py").write_text("from .nets import x")
    (package / "broken.py").write_text("x = 1\nx =\n")
    (tmp_path / "train.py").write_text("")
    (tmp_path / "plain").write_text("#!/usr/bin/env python3\n")
    (tmp_path / "notes.ipynb").write_text("{}")
    (tmp_path / "latin.py").write_bytes(b"# coding: latin-1\nx = '\xe4'\n")
    (tmp_path / "utf8.py").write_bytes(b"x = 1\nx = '\xe4'\n")
    (tmp_path / "typo.py").write_text("import keras\n\nif True\n    pass\n")
    (tmp_path / "nul.py").write_bytes(b"x = 1\0")
    (tmp_path / "escape.py").write_text("x = '\\d'\n")
    (tmp_path / "outside.py").write_text("x = 1\nreturn x\n")
    with zipfile.ZipFile(tmp_path / "app.pyz", "w") as archive:
        archive.writestr("__main__.py", "print('zip')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "program"),
    [
        (["train.py", "-m", "x"], ("script", "train.py", ["-m", "x"], [])),
        (["plain"], ("script", "plain", [], [])),
        (["app.pyz"], ("script", "app.pyz", [], [])),
        (["latin.py"], ("script", "latin.py", [], [])),
        (["escape.py"], ("script", "escape.py", [], [])),
        (["-m", "things.train", "--x"], ("module", "things.train", ["--x"], [])),
        (["-mjson.tool", "x"], ("module", "json.tool", ["x"], [])),
        (["-m", "timeit"], ("module", "timeit", [], [])),
        (["-c", "print(1)", "x"], ("code", "print(1)", ["x"], [])),
        (["python", "train.py"], ("script", "train.py", [], [])),
        ([sys.executable, "-u", "-X", "d", "plain"], ("script", "plain", [], ["-u", "-X", "d"])),
        (["python3", "-Wd", "-m", "timeit", "-h"], ("module", "timeit", ["-h"], ["-Wd"])),
    ],
)  # fmt: skip
def test_programs(words, program):
    named = read(words)
    assert named == program
    named.check()  # of things.train no line was run
    assert read(named.words()) == named._replace(python=[])


def test_no_words_are_no_program():
    assert read([]) is None
    assert read(["python", "-u"]) is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trian.py"], "there is no script 'trian.py': did you mean 'train.py'"),
        (["things"], "'things' is a directory"),
        (["notes.ipynb"], "jupyter nbconvert --to script notes.ipynb"),
        (["typo.py"], "typo.py, line 3: expected ':': if True"),
        (["utf8.py"], "utf8.py"),
        (["nul.py"], "null byte"),
        (["outside.py"], "outside.py, line 2: 'return' outside function: return x"),
        (["-m"], "-m needs a value: -m package.module"),
        (["-c"], "-c needs a value"),
        (["-c", "print("], "the code after -c, line 1: "),
        (["-m", "things.broken"], "broken.py, line 2: invalid syntax: x ="),
        (["-m", "things.nothere"], "no 'nothere' in the package things"),
        (["-m", "nothere.train"], "there is no module 'nothere.train': no 'nothere' in"),
        (["-m", "train.more"], "train is no package"),
        (["-m", "things"], "things is a package without a __main__.py"),
        (["-m", "things/train.py"], "leave -m out, or take -m things.train"),
        (["-"], "write it to a file"),
        (["python", "-"], "write it to a file"),
        (["python", "-i", "train.py"], "-i is no option of Python's that can be passed on"),
    ],
)
def test_what_cannot_run_is_refused_in_words(words, told):
    with pytest.raises(UserError) as error:
        read(words).check()
    assert told in str(error.value)
    assert "\n" not in str(error.value)


RUN = "import sys; from aggregathor.cli.program import read; read(sys.argv[1:]).run()"
SAY = """\
import os, pickle, sys
from multiprocessing import get_context
class Thing: pass
def work(x): return (x, __name__)
if __name__ == "__main__":
    assert type(pickle.loads(pickle.dumps(Thing()))) is Thing
    for how in ("spawn", "fork"):
        with get_context(how).Pool(1) as pool:
            assert pool.map(work, [1])[0][0] == 1
    print(sys.argv, sys.path[0], os.getcwd(), __package__ or "none")
    print(sys.modules["__main__"].Thing is Thing)
"""


@pytest.mark.parametrize("words", [["say.py", "a"], ["plain", "a"], ["-m", "pkg.say", "a"]])
def test_it_runs_as_python_runs_it(words, folder):
    (folder / "pkg").mkdir()
    (folder / "pkg" / "__init__.py").write_text("")
    (folder / "pkg" / "near.py").write_text("")
    (folder / "pkg" / "say.py").write_text("from . import near\n" + SAY)
    for name in ("say.py", "plain"):
        (folder / name).write_text(SAY)
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    said = [
        subprocess.run(
            [sys.executable, *start, *words],
            capture_output=True,
            text=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": root},
        )
        for start in ([], ["-c", RUN])
    ]
    assert said[0].returncode == 0, said[0].stderr
    assert (said[1].stdout, said[1].stderr) == (said[0].stdout, said[0].stderr)


def test_code_runs_as_python_runs_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["before"])
    monkeypatch.setattr(sys, "path", ["before", *sys.path])
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    Program("code", "import sys; print(sys.argv, repr(sys.path[0]), __name__)", ["a"], []).run()
    assert capsys.readouterr().out == "['-c', 'a'] '' __main__\n"
