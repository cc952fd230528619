"""Ctrl-C and SIGTERM at ``aggregathor run``: what is saved and said, and the status."""

import re
import signal
import subprocess
import sys

import pytest

from tests.mpi.launch import environment
from tests.warm.start import executable

START = """\
import sys
from lossympi import machine
library = machine.try_library()
machine.try_library = lambda: library
sys.executable = {python!r}  # which has imported TensorFlow
from aggregathor.cli.main import main
sys.exit(main())
"""


def begin(command, **variables):
    return subprocess.Popen(
        command,
        env=environment(TF_CPP_MIN_LOG_LEVEL="2", **variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("number", "word", "status"),
    [(signal.SIGINT, "raise", 130), (signal.SIGINT, "go on", 130), (signal.SIGTERM, "", 143)],
)
def test_it_saves_and_sums_up(number, word, status, tmp_path):
    saved, seen = tmp_path / "saved", tmp_path / "seen"
    (tmp_path / "start.py").write_text(START.format(python=executable()))
    words = ["--gar=median", f"--checkpoint={saved}", f"--monitor={seen}"]
    script = __file__.replace("test_stopping", "stopped_script")
    start = [sys.executable, tmp_path / "start.py", "run", "-n", "3", *words, script, word]
    started = begin(start)
    assert started.stdout.readline() == "training\n", started.communicate()
    started.send_signal(number)
    out, err = started.communicate(timeout=120)
    assert started.returncode == status, err
    assert ("caught" in out) == (number == signal.SIGINT)
    assert f"aggregathor: saved in {saved / 'server' / 'server.npz'}: the same command" in err
    assert " rounds, median f=0; nobody was suspected" in err
    assert "Traceback" not in err
    assert (seen / "run-1" / "workers.csv").read_text().count("\n") > 2
    if word == "go on":  # in the middle of the third epoch
        again = begin(start, EPOCHS="4")
        _, err = again.communicate(timeout=120)
        assert again.returncode == 0, err
        assert re.search(r"aggregathor: going on after step \d+, from ", err)
        rounds = re.search(r"aggregathor: (\d+) rounds, median f=0", err)
        assert rounds, err
        assert 8 <= int(rounds[1]) <= 8 + 5
