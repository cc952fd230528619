"""Each setting is declared once: from there it comes to every place that has it."""

import dataclasses
import inspect
from collections.abc import Mapping

import pytest

from aggregathor import settings
from aggregathor.cli.flags import help_text, to_environment
from aggregathor.cluster.config import Config as Job
from aggregathor.errors import UserError
from aggregathor.protocols.setting import Setting
from aggregathor.settings import Simulation, Training, setting
from experiments.config import Config as Experiment

OTHER = {str: "other", int: 7, float: 0.25, dict: {"a": 1}}


def other_than_default(kind):
    """A value for each setting that is none's default."""
    return {name: OTHER[field.metadata["kind"]] for name, field in settings.fields(kind).items()}


def test_a_training_has_what_an_experiment_says():
    given = other_than_default(Simulation)
    made = Experiment(**given).setting()
    assert {name: getattr(made, name) for name in given} == given


def test_a_job_has_what_flags_and_environment_say():
    given = other_than_default(Training) | {"f": 5}  # else it is said by `byzantine`
    told = Job(**given).to_environment()
    assert len(told) == len(given)
    words = [(name, told[f"AGGREGATHOR_{name.upper()}"]) for name in given]
    assert to_environment(words) == told
    made = Setting(num_workers=3, **settings.shared(Job(**given)))
    assert {name: getattr(made, name) for name in given} == given


@pytest.mark.parametrize("kind", [Job, Setting, Experiment])
def test_every_setting_has_help_which_is_its_documentation(kind):
    documentation = " ".join(inspect.getdoc(kind).split())
    for name, field in settings.fields(kind).items():
        assert f"{name}: {field.metadata['help']}" in documentation
        assert field.metadata["help"].endswith(".")
        assert field.metadata["kind"] in OTHER


def test_help_has_the_text_of_every_setting(monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")
    for name, field in settings.fields(Job).items():
        assert field.metadata["help"] in help_text(), name


def test_a_new_setting_is_one_declaration():
    @settings.documented
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class More(Training):
        """More."""

        mood: str = setting("calm", "how it feels.", choices=("calm", "wild"))
        words: Mapping[str, str] = setting({}, "what it says.")

    assert settings.defaults(More)["mood"] == "calm"
    assert settings.defaults(More)["words"] == {}
    assert "  mood: how it feels." in More.__doc__
    assert settings.shared(More(mood="wild"), More)["mood"] == "wild"
    settings.check_choices(More(mood="wild"))
    with pytest.raises(UserError, match="no mood is called 'wald': did you mean 'wild'"):
        settings.check_choices(More(mood="wald"))
