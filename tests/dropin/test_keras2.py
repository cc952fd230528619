"""Keras 2, the package ``tf_keras``, is refused by name where it trains, and else left alone."""

import importlib
import sys

import pytest

from aggregathor.dropin import keras2
from aggregathor.dropin.install import checked_optimizer
from aggregathor.errors import UserError

PACKAGE = """
class Model:
    def fit(self, x):
        return x

class optimizers:
    class Optimizer:
        def apply_gradients(self, pairs):
            return pairs
    class legacy:
        class Optimizer:
            def apply_gradients(self, pairs):
                return pairs
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of its name, with what is patched; returns what imports it."""
    (tmp_path / "tf_keras.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delitem(sys.modules, "tf_keras", raising=False)
    yield lambda: importlib.import_module("tf_keras")
    sys.modules.pop("tf_keras", None)


@pytest.mark.parametrize("imported_before", [True, False])
def test_training_by_it_is_refused(imported_before, package):
    refused = True
    if imported_before:
        package()
    keras2.refuse(lambda: refused)
    found = package()
    kinds = (found.optimizers.Optimizer, found.optimizers.legacy.Optimizer)
    for call in (found.Model().fit, *(kind().apply_gradients for kind in kinds)):
        with pytest.raises(UserError, match=r"^tf_keras, which is Keras 2, .* agt\.apply\(zip"):
            call([])
    refused = False  # what takes no part, or is called by `agt.apply`
    assert found.Model().fit([1]) == [1]
    assert found.optimizers.Optimizer().apply_gradients([2]) == [2]


def test_it_cannot_be_marked(package):
    with pytest.raises(UserError, match=r"got tf_keras's Optimizer\. .*agt\.apply"):
        checked_optimizer(package().optimizers.Optimizer())


def test_a_script_that_asks_for_it_too_late_is_refused(package, monkeypatch):
    keras2.check_environment()
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    with pytest.raises(UserError, match="without TF_USE_LEGACY_KERAS"):
        keras2.check_environment()
    package()
    keras2.check_environment()
