"""What happens where the native library is missing, or is not the one that was asked for."""

import functools
import hashlib
import json

import numpy as np
import pytest
import tensorflow as tf

from aggregathor import gars, ops
from aggregathor.errors import UserError
from aggregathor.ops import loader, native, stand_in
from aggregathor.version import VersionError, read_build_facts
from tests.gars.kernel_sets import instruction_sets


@pytest.fixture
def fresh(monkeypatch):
    """The loader as it is before it has loaded anything."""
    ops.state()  # the library itself obeys the variable once, and not after it is gone
    monkeypatch.setattr(loader, "_load", functools.cache(loader._load.__wrapped__))
    monkeypatch.delenv(ops.KERNELS_VARIABLE, raising=False)
    return monkeypatch


def test_native_library_is_used(fresh):
    assert ops.kernels() is native
    state = ops.state()
    assert state.in_use in ops.INSTRUCTION_SETS
    assert state.reason == ""
    assert state.build["tensorflow"] == tf.__version__


def test_missing_library_warns_once_and_the_stand_in_works(fresh, tmp_path):
    fresh.setattr(loader, "LIBRARY", tmp_path / "libaggregathor_ops.so")
    with pytest.warns(RuntimeWarning, match=r"libaggregathor_ops\.so was not built; rebuild it"):
        grad_d = gars.krum([[0.0], [1.0], [2.0], [9.0], [9e9]], f=1)
    np.testing.assert_array_equal(grad_d, [1.0])
    gars.krum([[0.0], [1.0], [2.0], [9.0], [9e9]], f=1)  # a second warning would be an error
    assert ops.kernels() is stand_in
    assert ops.state().in_use == "tensorflow"
    assert "was not built" in ops.state().reason


@pytest.mark.parametrize(
    "call",
    [
        lambda stack: gars.krum(stack, f=1),
        lambda stack: gars.GARS["median"].aggregate(stack, f=1),
        lambda stack: tf.function(lambda stack: gars.krum(stack, f=1))(stack),
        lambda stack: tf.function(gars.krum)(stack, f=1),
        lambda _: ops.state(),
    ],
    ids=["rule", "aggregate", "tf.function around it", "tf.function of it", "state"],
)
def test_warning_points_at_who_uses_the_package(call, fresh, tmp_path):
    fresh.setattr(loader, "LIBRARY", tmp_path / "libaggregathor_ops.so")
    with pytest.warns(RuntimeWarning, match="was not built") as caught:
        call([[0.0], [1.0], [2.0], [9.0], [9e9]])
    assert [warning.filename for warning in caught] == [__file__]


def library_of(folder, content, **facts):
    library = folder / "libaggregathor_ops.so"
    library.write_bytes(content)
    build = {"tensorflow": tf.__version__, "instruction_sets": ["baseline"], **facts}
    (folder / "build.json").write_text(json.dumps(build))
    return library, folder / "build.json"


def test_broken_library_warns(fresh, tmp_path):
    library, facts = library_of(tmp_path, b"no library")
    fresh.setattr(loader, "LIBRARY", library)
    fresh.setattr(loader, "BUILD_FACTS", facts)
    with pytest.warns(RuntimeWarning, match=r"could not be loaded \(.*; rebuild it"):
        assert ops.kernels() is stand_in


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda whole: whole[: len(whole) // 2], r"damaged: \d+ bytes, and \d+ were built"),
        (lambda whole: b"", r"damaged: 0 bytes, and \d+ were built"),
        (lambda whole: whole[:-1] + bytes([whole[-1] ^ 1]), "damaged: not the bytes that were"),
    ],
    ids=["cut", "empty", "a bit"],
)
def test_damaged_library_is_not_opened(damage, found, fresh, tmp_path):
    whole = loader.LIBRARY.read_bytes()
    library, facts = library_of(
        tmp_path,
        damage(whole),
        library_bytes=len(whole),
        library_sha256=hashlib.sha256(whole).hexdigest(),
    )
    fresh.setattr(loader, "LIBRARY", library)
    fresh.setattr(loader, "BUILD_FACTS", facts)
    fresh.setattr(native, "load", lambda library: pytest.fail("opening it may kill the process"))
    with pytest.warns(RuntimeWarning, match=rf"could not be loaded \({found}.*; rebuild it"):
        assert ops.kernels() is stand_in
    assert "damaged" in ops.state().reason


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "3", '{"tensorflow": 3}', "\xff"])
def test_what_is_no_build_fact_is_unknown(text, tmp_path):
    path = tmp_path / "build.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    assert read_build_facts(path) == {}


def test_only_build_facts_of_the_right_type_are_read(tmp_path):
    path = tmp_path / "build.json"
    right = {"version": "0.1.0", "cuda": "", "library_bytes": 5, "instruction_sets": ["avx2"]}
    wrong = {"tensorflow": 3, "compiler": None, "library_sha256": ["00"], "of_later": "?"}
    path.write_text(json.dumps(right | wrong))
    assert read_build_facts(path) == right
    path.write_text(json.dumps({"instruction_sets": ["avx2", 2]}))
    assert read_build_facts(path) == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"tensorflow": "2.20.0"}', r"for TensorFlow 2\.20\.0 and .* Install the one it was"),
        ('{"tensorflow": 3}', r"^build\.json is missing or damaged"),
        ('{"tensorflow": "2.21.0"', r"^build\.json is missing or damaged"),
        ("{}", r"^build\.json is missing or damaged"),
        (None, r"^build\.json is missing or damaged"),
    ],
)
def test_library_for_another_tensorflow_or_an_unknown_one(fresh, tmp_path, text, found):
    path = tmp_path / "build.json"
    if text is not None:
        path.write_text(text)
    fresh.setattr(loader, "BUILD_FACTS", path)
    with pytest.raises(VersionError, match=found) as caught:
        ops.kernels()
    for remedy in ("rebuild it with", "AGGREGATHOR_KERNELS=tensorflow"):
        assert remedy in str(caught.value)
    assert isinstance(caught.value, UserError)  # commands print the message alone


def test_other_tensorflow_installed(fresh):
    fresh.setattr(tf, "__version__", "2.99.1")
    with pytest.raises(VersionError, match=r"needs TensorFlow 2\.21 and 2\.99\.1 is installed"):
        ops.kernels()


def test_variable_asks_for_the_stand_in(fresh):
    fresh.setenv(ops.KERNELS_VARIABLE, "tensorflow")
    assert ops.kernels() is stand_in  # without a warning: that would be an error
    assert ops.state().reason == "AGGREGATHOR_KERNELS=tensorflow asks for it"


def test_empty_variable_asks_for_nothing(fresh):
    fresh.setenv(ops.KERNELS_VARIABLE, "")
    assert ops.kernels() is native


def test_variable_names_no_kernels(fresh):
    fresh.setenv(ops.KERNELS_VARIABLE, "avx521")
    with pytest.raises(UserError, match="AGGREGATHOR_KERNELS='avx521' names no kernels: did you m"):
        ops.kernels()


def test_variable_asks_for_what_this_processor_lacks(fresh):
    fresh.setattr(loader, "_instruction_set", lambda _: "baseline")
    best = instruction_sets()[-1]
    fresh.setenv(ops.KERNELS_VARIABLE, best)
    with pytest.raises(UserError, match=f"{best} was asked for and this processor has baseline at"):
        ops.kernels()


def library_built_for(fresh, folder, *sets):
    facts = json.loads(loader.BUILD_FACTS.read_text()) | {"instruction_sets": list(sets)}
    (folder / "build.json").write_text(json.dumps(facts))
    fresh.setattr(loader, "BUILD_FACTS", folder / "build.json")


def test_variable_asks_for_what_was_not_built(fresh, tmp_path):
    library_built_for(fresh, tmp_path, "avx512")
    fresh.setenv(ops.KERNELS_VARIABLE, "avx2")
    told = r"avx2 was asked for and .*\.so was built for avx512; `make native` in the checkout"
    with pytest.raises(UserError, match=told):
        ops.kernels()


def test_library_for_other_processors_warns_and_the_stand_in_works(fresh, tmp_path):
    library_built_for(fresh, tmp_path, "avx512")
    fresh.setattr(loader, "_instruction_set", lambda _: "")  # as it says then
    told = "was built for avx512, which this processor lacks; `make native` in the checkout"
    with pytest.warns(RuntimeWarning, match=told):
        grad_d = gars.krum([[0.0], [1.0], [2.0], [9.0], [9e9]], f=1)
    np.testing.assert_array_equal(grad_d, [1.0])
    assert ops.state().in_use == "tensorflow"
    assert ops.state().build["instruction_sets"] == ["avx512"]


@pytest.mark.parametrize("name", ["native", "tensorflow"])
def test_using_ends_with_its_block(name):
    before = ops.kernels()
    with ops.using(name):
        assert ops.kernels() is {"native": native, "tensorflow": stand_in}[name]
        with ops.using("native"):
            assert ops.kernels() is native
    assert ops.kernels() is before
