"""The configuration of a job, from a script and from the environment."""

import pytest

from aggregathor.cluster.config import Config
from aggregathor.errors import UserError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gra": "krum"}, "agt.init has no parameter 'gra': did you mean 'gar'"),
        (
            {"gar": "median"},
            r"agt.init\(gar='median'\) in the script contradicts the command line, "
            "which says gar='krum'. Leave",
        ),
        ({"transport": "pigeon"}, "no transport is called 'pigeon'"),
        ({"protocol": "synk"}, "no protocol is called 'synk': did you mean 'sync'"),
        ({"protocol_args": {"buffers": 3}}, "the protocol sync has no parameter 'buffers': it has"),
        ({"fill": "previos"}, "no fill is called 'previos': did you mean 'previous'"),
        ({"log": "loud"}, "no log is called 'loud': known: debug, error, info, warning."),
        ({"f": 1.5}, "f must be a whole number, got 1.5"),
        ({"link_args": "timeout_s=1"}, "link_args must be a dict of parameters"),
        ({"link_args": {"timeout": 1}}, "link_args: no option is called timeout. Did you mean "),
        ({"link_args": {"timeout_s": -1}}, "link_args: timeout_s is a time above 0 s, got -1"),
        ({"link_args": {"rate_bps": 1e9}}, "link_args: without UDP nothing is lost, and there is"),
        ({"lock": "tight"}, "no lock is called 'tight'"),
        ({"lock": "scan,digets"}, "no lock is called 'digets': did you mean 'digest'"),
        ({"lock": "scan,off"}, "lock='scan,off': off goes with no other"),
        ({"digest_every": 0}, "digest_every must be at least 1 round"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1 round"),
        ({"start_s": float("nan")}, "start_s must be a time above 0 s"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        Config.of(given, {"AGGREGATHOR_GAR": "krum", "AGGREGATHOR_KERNELS": "auto"})


@pytest.mark.parametrize(
    ("lock", "layers"),
    [("off", set()), ("kernel", {"kernel"}), ("scan,kernel", {"scan", "kernel"})],
)
def test_the_lock_has_layers(lock, layers):
    assert Config.of({"lock": lock}, {}).locks == layers


@pytest.mark.parametrize(
    "name", ["KERNELS", "SERVER_THREADS", "CUDA", "INSTRUCTION_SETS", "NATIVE"]
)
def test_variables_of_kernels_launcher_and_builds_are_no_configuration(name):
    assert Config.of({}, {f"AGGREGATHOR_{name}": "1"}) == Config()


def test_an_unknown_variable_is_told():
    with pytest.raises(UserError, match="AGGREGATHOR_GRA, which is unknown: did you mean 'AGG"):
        Config.of({}, {"AGGREGATHOR_GRA": "krum"})


def test_a_script_takes_the_code_whose_workers_compute_one_gradient():
    told = {"AGGREGATHOR_PROTOCOL": "draco", "AGGREGATHOR_F": "1"}
    for code in ("", "code=cyclic", "code=cyclic-paper redundancy=5"):
        with pytest.raises(UserError, match=r"script's step gives one: take .*=code=repetition"):
            Config.of({}, {**told, "AGGREGATHOR_PROTOCOL_ARGS": code})
    config = Config.of({}, {**told, "AGGREGATHOR_PROTOCOL_ARGS": "code=repetition"})
    assert config.protocol_args == {"code": "repetition"}


@pytest.mark.parametrize(("text", "truth"), [("true", True), ("True", True), ("0", False)])
def test_truths_are_words_or_digits(text, truth):
    assert Config.of({}, {"AGGREGATHOR_BYZANTINE_MOVES": text}).byzantine_moves is truth
    with pytest.raises(UserError, match="AGGREGATHOR_BYZANTINE_MOVES must be True or False, got"):
        Config.of({}, {"AGGREGATHOR_BYZANTINE_MOVES": f"{text}?"})
    with pytest.raises(UserError, match="byzantine_moves must be True or False, got 1"):
        Config.of({"byzantine_moves": 1}, {})


def test_f_is_byzantine_where_nobody_says():
    assert Config.of({"byzantine": 2}, {}).f == 2
    assert Config.of({}, {"AGGREGATHOR_BYZANTINE": "2"}).f == 2
    assert Config.of({"f": 0}, {"AGGREGATHOR_BYZANTINE": "2"}).f == 0
    config = Config.of({"f": 0, "byzantine": 1}, {})
    assert Config.of({}, config.to_environment()).f == 0
