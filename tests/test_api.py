"""``agt.init`` in a process that was started alone: what it says, and what it does not load."""

import os
import subprocess
import sys

import pytest

SAID = (
    "aggregathor: one process only, so nothing is distributed: start it with `aggregathor run -n 5 "
    "...`\n"
)


def run(code, **variables):
    outer = {k: v for k, v in os.environ.items() if not k.startswith(("AGGREGATHOR_", "OMPI_"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**outer, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_it_says_that_it_is_alone_and_loads_no_tensorflow():
    code = "import sys, aggregathor as agt; agt.init(); assert 'tensorflow' not in sys.modules"
    assert run(code) == SAID


@pytest.mark.parametrize(
    ("code", "variables"),
    [
        ("agt.init(log='warning')", {}),
        ("agt.init()", {"AGGREGATHOR_LOG": "error"}),
        ("logging.getLogger('aggregathor').setLevel(logging.ERROR); agt.init()", {}),
        ("logging.getLogger('aggregathor').addHandler(logging.NullHandler()); agt.init()", {}),
    ],
)
def test_it_can_be_silenced(code, variables):
    assert run(f"import logging, aggregathor as agt; {code}", **variables) == ""
