"""SECURITY.md: the tests that its table names are there."""

import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_TABLE = (_ROOT / "SECURITY.md").read_text().partition("## Means and costs")[2]
_ROWS = re.findall(r"^\| (?!means|---|\*\*)(.+?) \| .+ \| (.+) \|$", _TABLE, re.MULTILINE)


@pytest.mark.parametrize(("means", "tests"), _ROWS, ids=[means[:40] for means, _ in _ROWS])
def test_a_cost_is_shown_by_tests(means, tests):
    named = re.findall("`(.+?)`", tests)
    assert named or tests == "none"
    for path in named:
        where = _ROOT / "tests" / path
        assert where.is_dir() or where.with_suffix(".py").exists(), path


def test_the_table_is_found():
    assert len(_ROWS) > 25
