"""The lines of README.md that start a script on one machine, run as they stand."""

import re
import shlex
from pathlib import Path

import pytest

SECTION = (
    (Path(__file__).parents[2] / "README.md")
    .read_text()
    .partition("## Over several machines")[2]
    .partition("\n## ")[0]
)
SCRIPT = re.search(r"```python\n(.*?)```", SECTION, re.DOTALL)[1]
LINES = [
    shlex.split(line, comments=True)
    for line in re.sub(r"\\\n\s+", "", SECTION).splitlines()
    if line.startswith("    mpirun ")
]
# Two hosts are not here; their lines share every flag but these with the others.
ONE_HOST = [line for line in LINES if not {"--host", "--hostfile"} & set(line)]


def test_the_section_has_what_it_should():
    assert len(SCRIPT.splitlines()) <= 20
    assert len(LINES) == len(ONE_HOST) + 2 == 7


@pytest.mark.parametrize("line", ONE_HOST, ids=" ".join)
def test_a_line_runs(line, mpirun, tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    ranks = int(line[line.index("-n") + 1])
    done = mpirun(*line[1:])
    assert done.returncode == 0, done.stdout + done.stderr
    if "train.py" in line:
        assert done.stdout.split() == ["1.000"] * ranks
    else:
        assert "path to worker 1" in done.stdout
        assert "All that is needed works." in done.stdout


def test_two_hosts_lines_run_where_both_are_this_one(mpirun, tmp_path):
    """As far as that shows: their flags are understood, and tcp joins the ranks."""
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "hosts").write_text("localhost slots=5\n")
    for line in LINES:
        if line in ONE_HOST:
            continue
        arguments = [word.replace("a:1,b:4", "localhost:5") for word in line[1:]]
        arguments = [word.replace("10.0.0.0/8", "127.0.0.0/8") for word in arguments]
        done = mpirun(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.split() == ["1.000"] * 5
