"""The examples of the docstrings are what they say."""

import doctest
import importlib
import pkgutil

import pytest

from aggregathor import gars, testing
from aggregathor.gars import GARS

WITHOUT = ("base", "composition", "context", "distances", "pre_aggregation", "stacks")
MODULES = [
    f"aggregathor.gars.{module.name}"
    for module in pkgutil.iter_modules(gars.__path__)
    if module.name not in WITHOUT  # which have none
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    # doctest passes by a decorated function, whose code is in another module.
    examples = {key: value.__doc__ for key, value in vars(module).items() if is_rule(value)}
    assert examples
    for key, doc in examples.items():
        example = doctest.DocTestParser().get_doctest(doc, dict(vars(module)), key, name, 0)
        assert example.examples, key
        assert doctest.DocTestRunner().run(example).failed == 0, key


def is_rule(value):
    return any(value is rule.function for rule in GARS.values())


def test_example_of_testing():
    assert doctest.testmod(testing, optionflags=doctest.ELLIPSIS) == (0, 2)


@pytest.mark.parametrize("name", GARS)
@pytest.mark.parametrize("section", ["Args:", "Returns:", "Raises:", "Cost:", "Source:"])
def test_sections(name, section):
    assert section in GARS[name].function.__doc__
