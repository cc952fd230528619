"""C++ that has threads or takes any bytes under sanitizers, briefly.

`make fuzz` and `make sanitize` do it at length.
"""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


def run(*command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_short_fuzz_finds_nothing():
    assert "30000 inputs" in run("scripts/fuzz-lossympi", "30000")


def test_hostile_jobs_find_nothing():
    assert "200 jobs" in run("scripts/fuzz-lossympi", "jobs", "200")


@pytest.mark.skipif(shutil.which("gcov") is None, reason="no gcov")
def test_the_seeds_take_every_branch():
    """Every one of protocol.cc, with GCC 12; other compilers make other branches of it."""
    said = run("scripts/fuzz-lossympi", "coverage", "0")
    words = r"core/protocol\.cc: (\d+) of (\d+) lines, (\d+) of (\d+) branches"
    found = re.search(words, said)
    assert found is not None, said
    lines, all_lines, branches, all_branches = map(int, found.groups())
    assert lines == all_lines
    assert branches >= 0.98 * all_branches


def test_the_pool_s_threads_do_not_race():
    assert "nothing wrong" in run("scripts/sanitize-pool", "thread")


def test_lossympi_s_threads_do_not_race():
    if not Path("/usr/include/sodium.h").exists():
        pytest.skip("no sodium.h: apt-get install libsodium-dev")
    assert "nothing wrong" in run("scripts/sanitize-lossympi", "thread")


def test_seeds_are_those_of_the_script():
    path = ROOT / "tests/native/make_fuzz_seeds.py"
    spec = importlib.util.spec_from_file_location("make_fuzz_seeds", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    kept = {file.name: file.read_bytes() for file in script.FOLDER.iterdir()}
    assert kept == script.SEEDS
