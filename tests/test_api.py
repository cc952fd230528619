"""``agt.init`` in a process that was started alone: what it says, and what it does not load."""

import os
import subprocess
import sys

import pytest

SAID = (
    "aggregathor: one process only, so nothing is distributed: start it with `aggregathor run -n 5 "
    "...`\n"
)


def run(code, timeout_s=60, **variables):
    outer = {k: v for k, v in os.environ.items() if not k.startswith(("AGGREGATHOR_", "OMPI_"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**outer, **variables},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "gar='mediann'",
            "no gradient aggregation rule is called 'mediann': did you mean 'median'",
        ),
        ("gar='nnm+'", "'nnm+' has an empty name"),
        ("gar='nnm+krum', gar_args={'m': 2}", "krum has no parameter 'm'"),
        ("gar=5", "gar must be a string, got 5"),
    ],
)
def test_it_checks_the_names_of_rules_and_loads_no_tensorflow(given, message):
    code = f"""
import sys, aggregathor as agt
try:
    agt.init({given})
except ValueError as error:
    assert {message!r} in str(error), error
else:
    raise AssertionError("it was taken")
assert 'tensorflow' not in sys.modules
"""
    assert run(code) == ""


def test_a_rule_of_the_script_is_known():
    code = """
import aggregathor as agt
from aggregathor import gars
@gars.gar("mine", condition="n >= 1", cost="", source="")
def mine(stack_nd, *, f, by=1.0):
    return gars.Aggregated(by * stack_nd[0], None)
agt.init(gar="nnm+mine(by=2.0)")
"""
    assert run(code, timeout_s=300, TF_CPP_MIN_LOG_LEVEL="3").endswith(SAID)


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


def test_children_of_a_rank_are_no_ranks():
    code = """
import sys
import aggregathor as agt
agt.init(gar='median', f=1)
assert agt.rank() == 0 and agt.num_workers() == 1 and agt.is_server()
assert 'mpi4py' not in sys.modules
"""
    launched = {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "1"}
    assert run(code, AGGREGATHOR_PROCESS="1", **launched) == ""


def test_a_later_call_completes_an_earlier_one_and_must_not_contradict_it():
    code = """
import aggregathor as agt
from aggregathor import api
from aggregathor.errors import UserError

class Job:
    is_server = True
    def complete(self, config):
        said.append((config.gar, config.f, config.fill))

said = []
agt.init(fill='zero')
api._job = Job()
agt.init()
agt.init(gar='median')
agt.init(gar='median', f=2)
assert said == [('median', 2, 'zero')] * 2, said
for given in ({'gar': 'krum', 'f': 2}, {'f': 1}, {'fill': 'previous'}):
    try:
        agt.init(**given)
    except UserError as error:
        said.append(str(error))
assert said[2:] == [
    "agt.init(gar='krum') contradicts agt.init(gar='median') before. Call it once.",
    "agt.init(f=1) in the script contradicts the command line, which says f=2. Leave one of them "
    "out.",
    "agt.init(fill='previous') contradicts agt.init(fill='zero') before. Call it once.",
], said[2:]
api._job = None
"""
    assert run(code, AGGREGATHOR_F="2") == SAID
