import dataclasses

import pytest

from aggregathor.arguments import parse_arguments
from aggregathor.errors import UserError
from experiments.config import OPTIMIZERS, Config
from tests.experiments.folders import RUN

ATTACKED = {"byzantine": 2, "attack": "little", "gar": "median"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experiment": "minst"}, "no experiment is called 'minst': did you mean 'mnist'"),
        ({"experiment": "?"}, "known: cifar10, digits, mnist"),
        ({"gar": "bulyon"}, "did you mean 'bulyan'"),
        ({"attack": "litle", "byzantine": 1}, "did you mean 'little'"),
        ({"optimizer": "adan"}, "no optimizer is called 'adan': did you mean 'adam'"),
        ({"partition": "shard"}, "no partition is called 'shard': did you mean 'shards'"),
        ({"protocol": "synk"}, "no protocol is called 'synk': did you mean 'sync'"),
        ({"protocol_args": {"buffers": 3}}, "the protocol sync has no parameter 'buffers'"),
        ({"fill": "previos"}, "no fill is called 'previos'.*did you mean 'previous'"),
        ({"gar": "krum", "f": 5}, "krum needs n >= 2f [+] 3 gradients; f=5 needs 13, got 11"),
        ({"gar": "bulyan", **ATTACKED, "byzantine": 3} | {"gar": "bulyan"}, "declare f=2"),
        ({"gar": "krum", "f": -1}, "f must be a whole number >= 0, got -1"),
        ({"byzantine": 12, "attack": "nan"}, "12 Byzantine workers of 11"),
        ({"byzantine": 11, "attack": "nan"}, "no honest gradient is left"),
        ({"byzantine": 1}, "no attack is named"),
        ({"attack": "nan"}, "nan needs Byzantine workers"),
        (ATTACKED | {"attack_args": {"z": "much"}}, "a finite number as 'z'; got 'much'"),
        (ATTACKED | {"attack_args": {"y": 1.0}}, "little has no parameter 'y'.*known: z"),
        ({"attack_args": {"z": 1.0}}, "no attack is named"),
        ({"gar": "multi-krum", "gar_args": {"m": 1e3}}, "got m=1000.0"),
        ({"gar": "multi-krum", "gar_args": {"m": -1}}, "got m=-1"),
        ({"gar": "multi-krum", "gar_args": {"m": "two"}}, "got m='two'"),
        ({"workers": 0}, "--workers must be at least 1, got 0"),
        ({"batch_size": 0}, "--batch_size must be at least 1"),
        ({"batch_size": 10**30}, "--batch_size must be below 2.31, got 1000"),
        ({"workers": 2**31}, "--workers must be below 2.31"),
        ({"gar_args": {"f": 1}}, "f is no parameter of average.*--f"),
        ({"eval_every": 0}, "--eval_every must be at least 1"),
        ({"checkpoint_every": -1}, "--checkpoint_every must be at least 1"),
        ({"steps": -1}, "--steps must not be negative"),
        ({"byzantine": -1}, "--byzantine must not be negative"),
        ({"seed": -1}, "--seed must be in 0..2.32-1, got -1"),
        ({"seed": 2**32}, "--seed must be in 0..2.32-1"),
        ({"l1": -0.1}, "--l1 must not be negative"),
        ({"l2": float("nan")}, "l2 penalty must be >= 0, got nan"),
        ({"learning_rate": 0.0}, "--learning_rate must be positive"),
        ({"learning_rate": float("inf")}, "--learning_rate must be positive, got inf"),
        ({"learning_rate": float("nan")}, "--learning_rate must be positive, got nan"),
        ({"alpha": 0.0}, "--alpha must be positive"),
        ({"alpha": float("inf")}, "--alpha must be positive, got inf"),
        ({"loss": 1.5}, "in 0..1, got 1.5"),
        ({"transport": "upd"}, "no transport is called 'upd': did you mean 'udp'"),
        ({"transport": "mpi", "loss": 0.1}, "nothing is lost, and --loss is 0.1.*--transport=udp"),
        ({"validation_share": 1.0}, r"0 <= share < 1, got 1\.0"),
        ({"validation_share": -0.1}, r"0 <= share < 1, got -0\.1"),
        ({"gar": "zeno"}, r"zeno judges gradients by .* with --validation_share=0\.1"),
        ({"gar": "bucketing+zeno"}, "hold out a part of the training set"),
        ({"gar": "zeno", "validation_share": 0.1, "f": 11}, r"zeno needs n >= f \+ 1 .* got 11"),
        ({"momentum": 1.0}, r"--momentum must be in \[0, 1\), got 1.0"),
        ({"momentum": float("nan")}, "--momentum must be in"),
        ({"momentum": 2.0, "momentum_at": "worker"}, "--momentum must be in"),
        ({"momentum_at": "servr"}, "--momentum_at is worker or server, got 'servr'"),
        ({"momentum": 0.9, "optimizer": "adam"}, "is for --optimizer=sgd, not adam"),
    ],
)
def test_what_cannot_work_is_an_error(changes, message):
    with pytest.raises(UserError, match=message):
        Config(**changes).check()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        ATTACKED,
        {"workers": 1},
        {"gar": "krum", "f": 0},
        {"gar": "krum", "f": 0, **ATTACKED},  # more Byzantine workers than the rule was told
        {"steps": 0, "seed": 2**32 - 1},
        {"loss": 1.0, "gar": "median"},
        {"transport": "udp", "loss": 0.1},
        {"momentum": 0.9, "momentum_at": "worker", "optimizer": "adam"},
        {"gar": "krum", "f": 8, "gar_args": {"unsafe": True}},
        {"gar": "zeno", "f": 10, "validation_share": 0.1},
        {"validation_share": 0.1},  # to compare with rules that need it
    ],
)
def test_what_is_odd_but_works_is_none(changes):
    Config(**changes).check()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_gets_its_learning_rate(name):
    optimizer = Config(optimizer=name, learning_rate=0.25).make_optimizer()
    assert float(optimizer.learning_rate.numpy()) == 0.25
    assert type(optimizer).__name__.lower() == name


def test_momentum_is_kept_on_one_side_only():
    at_server = Config(momentum=0.9)
    assert at_server.make_optimizer().momentum == 0.9
    assert at_server.setting().worker_momentum == 0
    at_worker = Config(momentum=0.9, momentum_at="worker")
    assert at_worker.make_optimizer().momentum == 0
    assert at_worker.setting().worker_momentum == 0.9


def test_the_rule_is_told_of_all_byzantine_workers_unless_f_is_given():
    assert Config(**ATTACKED).setting().f == 2
    assert Config(**ATTACKED, f=0).setting().f == 0


def test_a_name_of_a_run_from_before_a_setting_was_there_stays():
    assert Config().digest() == "2425a2ad"
    assert Config(**ATTACKED, attack_args={"z": 1.5}).digest() == "a650f7e1"


def test_a_configuration_survives_its_file(tmp_path):
    config = Config(**ATTACKED, attack_args={"z": 1.5}, gar_args={"compat": None}, alpha=0.1)
    path = tmp_path / "config.json"
    path.write_text(config.to_json())
    assert Config.read(path) == config


def test_differences_are_what_a_run_cannot_be_continued_with():
    longer = {"steps": 99, "eval_every": 9, "checkpoint_every": 9, "data_dir": "elsewhere"}
    assert dataclasses.replace(RUN, **longer).differences(RUN) == []
    other = dataclasses.replace(RUN, gar="median", gar_args={"compat": "torch"})
    assert other.differences(RUN) == [
        "gar was 'average' and is 'median'",
        "gar_args was {} and is {'compat': 'torch'}",
    ]


def test_runs_are_compared_by_what_they_do_not_by_how_it_was_said():
    said = Config(**ATTACKED, f=2, model="digits-mlp", steps=7, data_dir="elsewhere")
    assert said.differences(Config(**ATTACKED)) == []
    assert said.digest() == Config(**ATTACKED).digest()
    assert dataclasses.replace(said, f=1).differences(said) == ["f was 2 and is 1"]


@pytest.mark.parametrize(
    "change",
    [
        {"workers": 12},
        {"loss": 0.1},
        {"attack_args": {"z": 1.5}},
        {"f": 1},
        {"model": "phocas-mlp"},
    ],
)
def test_runs_that_differ_have_different_digests(change):
    assert Config(**ATTACKED | change).digest() != Config(**ATTACKED).digest()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-1", -1),
        ("1e3", 1000.0),
        ("1.5", 1.5),
        ("None", None),
        ("True", True),
        ("row", "row"),
        ("'2'", "2"),
        ("a=b", "a=b"),
        ("", ""),
        ("min-max", "min-max"),
        ("1/0", "1/0"),
        ("open('x')", "open('x')"),
        ("[1", "[1"),
    ],
)
def test_arguments_are_literals_or_else_strings(text, value):
    got = parse_arguments("--gar_args", [f"x={text}"])["x"]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("pair", ["x", "=1", ""])
def test_an_argument_without_name_or_value_is_an_error(pair):
    with pytest.raises(UserError, match="--gar_args takes name=value, got"):
        parse_arguments("--gar_args", [pair])


def test_a_run_without_a_rule_is_named_by_its_protocol_and_code():
    config = Config(protocol="draco", byzantine=1, attack="nan", protocol_args={"redundancy": 5})
    config.check()
    assert (config.label(), config.rule_slug()) == ("draco cyclic, nan", "draco-cyclic")
    moving = dataclasses.replace(config, byzantine_moves=True)
    assert moving.digest() != config.digest()
