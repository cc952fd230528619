"""What is known of rules without TensorFlow is what they are."""

import pytest

from aggregathor import compositions
from aggregathor.errors import UserError
from aggregathor.gars import GARS, PRE_AGGREGATIONS


def test_the_names_that_are_known_before_rules_are_loaded_are_theirs():
    known = {
        name: (kind.is_rule, kind.parameters) for name, kind in compositions._built_in().items()
    }
    rules = {name: (True, tuple(rule.parameters)) for name, rule in GARS.items()}
    mixings = {name: (False, tuple(pre.parameters)) for name, pre in PRE_AGGREGATIONS.items()}
    assert known == {**rules, **mixings}


@pytest.mark.parametrize("text", ["median", "nnm+krum", "bucketing(s=2)+multi-krum(m=5)"])
def test_what_can_be_read_passes(text):
    compositions.check(text, {"unsafe": True})


def test_values_are_checked_where_the_rules_are():
    compositions.check("multi-krum(m=two)", {})
    with pytest.raises(UserError, match="f is no parameter of krum among others"):
        compositions.check("krum", {"f": 1})
