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
    said = run("scripts/fuzz-lossympi", "60000")
    assert "60000 inputs" in said
    if shutil.which("gcov"):
        # Every one, with GCC 12; other compilers make other branches of the same code.
        taken = re.search(r"the seeds take ([0-9.]+)% of [0-9]+ branches of protocol.cc", said)
        assert taken is not None, said
        assert float(taken[1]) >= 98


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
