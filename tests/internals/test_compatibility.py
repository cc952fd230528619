"""A Keras or TensorFlow other than those tested is named in one sentence, before any patch."""

import re
import sys
from pathlib import Path

import keras
import pytest
import tensorflow as tf
from keras.src.backend.tensorflow.trainer import TensorFlowTrainer
from keras.src.layers.layer import Layer
from keras.src.optimizers.base_optimizer import BaseOptimizer
from keras.src.random import seed_generator
from tensorflow.python.eager.polymorphic_function import transform

from aggregathor import version
from aggregathor.errors import UserError
from aggregathor.internals.compatibility import (
    KERAS_NAMES,
    TENSORFLOW_NAMES,
    PrivateName,
    check,
    untested,
)

ROOT = Path(__file__).parents[2]


def test_the_installed_ones_have_all_that_is_needed():
    assert [name.fault() for name in (*KERAS_NAMES, *TENSORFLOW_NAMES) if name.fault()] == []
    check()
    assert untested() == ""


def refused():
    with pytest.raises(version.VersionError) as caught:
        check()
    message = str(caught.value)
    assert isinstance(caught.value, UserError)
    assert "\n" not in message
    assert message.endswith(
        f"which aggregathor needs; aggregathor {version.__version__} was tested with Keras 3.12 to "
        "3.15 and TensorFlow 2.21: pip install 'keras>=3.12,<3.16' 'tensorflow~=2.21.0'"
    )
    return message.partition(", which aggregathor needs")[0]


def test_a_method_that_is_gone_is_named(monkeypatch):
    monkeypatch.setattr(keras, "__version__", "3.99.1")
    monkeypatch.delattr(Layer, "_flatten_layers")
    assert refused() == "Keras 3.99.1 has no keras.src.layers.layer.Layer._flatten_layers"


def test_a_module_that_is_gone_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras.src.layers.layer", None)
    assert refused().endswith("has no keras.src.layers.layer.Layer._flatten_layers")


def test_several_are_counted(monkeypatch):
    monkeypatch.delattr(TensorFlowTrainer, "_maybe_symbolic_build")
    monkeypatch.delattr(seed_generator, "make_default_seed")
    assert refused().endswith("TensorFlowTrainer._maybe_symbolic_build (and 1 more of this kind)")


@pytest.mark.parametrize(
    "other",
    [lambda self: None, lambda self, force, eager: None, lambda self, forced=False: None],
)
def test_other_parameters_are_shown(other, monkeypatch):
    monkeypatch.setattr(TensorFlowTrainer, "make_train_function", other)
    assert re.search(
        r"has keras\S+\.make_train_function\(self.*\), not \(self, force\)$", refused()
    )


def test_parameters_of_no_interest_may_come_if_they_have_defaults(monkeypatch):
    def fit(
        self, x, epochs, verbose, callbacks, steps_per_epoch, initial_epoch, news=1, **more
    ): ...

    monkeypatch.setattr(TensorFlowTrainer, "fit", fit)
    check()

    def demanding(self, x, epochs, verbose, callbacks, steps_per_epoch, initial_epoch, news): ...

    monkeypatch.setattr(TensorFlowTrainer, "fit", demanding)
    assert "TensorFlowTrainer.fit(self, x, epochs, verbose," in refused()


def test_what_cannot_be_called_any_more(monkeypatch):
    monkeypatch.setattr(seed_generator, "make_default_seed", 7)
    assert refused().endswith("has a keras.src.random.seed_generator.make_default_seed that "
                              "cannot be called")  # fmt: skip


def test_an_attribute_that_no_constructor_sets_is_named(monkeypatch):
    def init(self, learning_rate):
        self.loss_scale_factor = None
        self._iterations = None

    monkeypatch.setattr(BaseOptimizer, "__init__", init)
    assert refused().endswith(
        "has no attribute _trainable_variables set by "
        "keras.src.optimizers.base_optimizer.BaseOptimizer.__init__"
    )


def test_names_of_tensorflow_are_checked_too(monkeypatch):
    monkeypatch.delattr(transform, "FUNC_GRAPH_TRANSFORMS")
    assert refused() == (
        f"TensorFlow {tf.__version__} has no tensorflow.python.eager.polymorphic_function."
        "transform.FUNC_GRAPH_TRANSFORMS"
    )


@pytest.mark.parametrize(
    ("found", "is_tested"),
    [
        *(("3.11.3", False), ("3.12.0", True), ("3.13.2", True), ("3.15.99", True)),
        *(("3.16.0", False), ("3.2.0", False), ("4.0.0", False), ("unknown", False)),
    ],
)
def test_an_untested_keras_is_a_warning(found, is_tested, monkeypatch):
    monkeypatch.setattr(keras, "__version__", found)
    check()
    told = "" if is_tested else f"Keras {found} is untested; aggregathor "
    assert untested().startswith(told)
    assert bool(untested()) != is_tested
    if told:
        assert "was tested with Keras 3.12 to 3.15" in untested()
        assert untested().endswith("pip install 'keras>=3.12,<3.16' 'tensorflow~=2.21.0'")


def test_another_series_of_tensorflow_is_refused(monkeypatch):
    monkeypatch.setattr(tf, "__version__", "2.22.0")
    with pytest.raises(version.VersionError, match=r"needs TensorFlow 2\.21 and 2\.22\.0 is"):
        check()


def test_keras_must_run_on_tensorflow(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(UserError, match="Keras runs on jax and must run on TensorFlow"):
        check()


def test_pip_installs_what_was_tested():
    project = (ROOT / "pyproject.toml").read_text()
    assert f'"{version.KERAS_REQUIREMENT}"' in project
    first, last = version.KERAS
    major, minor = last.split(".")
    assert f"keras>={first},<{major}.{int(minor) + 1}" == version.KERAS_REQUIREMENT


def test_a_private_name_is_looked_up_where_it_is_used():
    """Whoever adds an import to the folder adds a line to the table."""
    listed = {f"{name.module}.{name.path}" for name in (*KERAS_NAMES, *TENSORFLOW_NAMES)}
    for module in ("keras", "tensorflow"):
        source = (ROOT / "aggregathor" / "internals" / f"{module}.py").read_text()
        for home, names in re.findall(
            r"^from ((?:keras\.src|tensorflow\.(?:python|core))\S*) import ([\w, ]+)$",
            source,
            re.MULTILINE,
        ):
            for name in names.split(","):
                word = name.split(" as ")[0].strip()
                assert any(each.startswith(f"{home}.{word}") for each in listed), (home, word)


def test_a_name_is_found_by_its_path():
    assert PrivateName("tests.nowhere", "x").fault() == "has no tests.nowhere.x"
    assert PrivateName("keras", "layers.Dense.build", "self input_shape").fault() == ""
