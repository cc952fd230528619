"""A warm process is to whoever starts it what a cold one is."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.warm.start import executable, python


@pytest.fixture(params=["cold", "warm"])
def words(request):
    return [sys.executable] if request.param == "cold" else python()


def run(words, *arguments, **keywords):
    return subprocess.run(
        [*words, *arguments], capture_output=True, text=True, timeout=60, **keywords
    )


def test_the_warm_one_has_imported_tensorflow():
    code = "import sys; print('tensorflow' in sys.modules, 'aggregathor' in sys.modules)"
    assert run(python(), "-c", code).stdout == "True False\n"


def test_streams_arguments_folder_and_environment(words, tmp_path):
    code = "import os, sys; print(sys.stdin.read(), sys.argv, os.getcwd(), os.environ['WORD'])"
    environment = {"WORD": "there"}
    done = run(words, "-c", code, "a b", input="in", cwd=tmp_path, env=environment)
    assert done.stdout == f"in ['-c', 'a b'] {tmp_path} there\n"
    done = run(words, "-c", "import sys; print('out'); print('err', file=sys.stderr)")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


@pytest.mark.parametrize("given", ["", "there", "there:also"])
def test_where_modules_are_looked_for(words, given, tmp_path):
    environment = os.environ | {"PYTHONPATH": given}
    code = "import sys; print(*sys.path, sep=':')"
    path = run(words, "-c", code, env=environment, cwd=tmp_path).stdout.split(":")
    names = [Path(each).name for each in path]
    wanted = list(filter(None, given.split(":")))
    assert names[: 1 + len(wanted)] == ["", *wanted]
    assert [name for name in names if name in ("there", "also")] == wanted


def test_one_word_may_stand_for_it(words):
    assert (
        run([executable()], "-c", "import sys; print(sys.argv)", "a b").stdout == "['-c', 'a b']\n"
    )


def test_a_script_and_a_module(words, tmp_path):
    (tmp_path / "beside.py").write_text("")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, beside\nprint(__name__, __file__ == sys.argv[0], sys.argv[1:])\n"
        "print(sys.path[0])\n"
    )
    assert run(words, script, "a").stdout == f"__main__ True ['a']\n{tmp_path}\n"
    done = run(words, "-m", "script", "a", cwd=tmp_path)
    assert done.stdout == f"__main__ True ['a']\n{tmp_path}\n"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", 0),
        ("import sys; sys.exit(3)", 3),
        ("import sys; sys.exit('words')", 1),
        ("import os; os._exit(4)", 4),
        ("raise ValueError('words')", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("import atexit; atexit.register(print, 'words')", 0),
    ],
)
def test_it_ends_as_the_program_does(words, code, status):
    done = run(words, "-c", code)
    assert done.returncode == status
    assert ("words" in done.stdout + done.stderr) == ("words" in code)


def test_warnings_are_errors_where_that_is_asked_for(words):
    code = "import warnings; warnings.warn('old', DeprecationWarning, stacklevel=1)"
    assert run(words, "-c", code).returncode == 0
    done = run(words, "-W", "error", "-c", code)
    assert done.returncode == 1
    assert "DeprecationWarning: old" in done.stderr


def test_tracebacks_are_of_the_program(words):
    done = run(words, "-c", "raise ValueError('words')")
    lines = 'Traceback (most recent call last):\n  File "<string>", line 1, in <module>\n'
    assert done.stderr == lines + "ValueError: words\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_reaches_it(words, number):
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(100)"
    keywords = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([*words, "-c", code], **keywords) as process:
        inner = int(process.stdout.readline())
        process.send_signal(number)
        assert process.wait(30) == -number
    end_s = time.monotonic() + 30
    while os.path.exists(f"/proc/{inner}"):
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_forks_do_not_share_what_is_random():
    code = (
        "import random, numpy as np, tensorflow as tf, keras\n"
        "unseeded = tf.raw_ops.RandomUniform(shape=[2], dtype=tf.float64, seed=0, seed2=0)\n"
        "print(random.random(), np.random.rand(), tf.random.uniform([2]).numpy(), "
        "unseeded.numpy(), keras.random.uniform([2]).numpy(), sep='\\n')"
    )
    first, second = (run(python(), "-c", code).stdout.splitlines() for _ in range(2))
    assert len(first) == 5
    assert all(a != b for a, b in zip(first, second, strict=True))
