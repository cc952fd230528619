"""What setup.py compiles, and with what: only what has changed, and what was asked for."""

import importlib.machinery
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aggregathor import ops
from aggregathor.ops import loader
from tests.gars.kernel_sets import instruction_sets

ROOT = Path(__file__).parents[2]

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


def module_of(path):
    spec = importlib.util.spec_from_file_location(f"{path.stem}_of_test", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "path", [*sys.path])
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def compiling():
    return module_of(Path("scripts/compiling.py"))


@pytest.fixture(scope="module")
def setup():
    return module_of(Path("setup.py"))


@pytest.fixture
def unset(monkeypatch):
    for name in ("AGGREGATHOR_INSTRUCTION_SETS", "AGGREGATHOR_CUDA", "CXX", "CXXFLAGS", "NVCC"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def folder(tmp_path, unset):
    """A folder with a source, to compile in."""
    (tmp_path / "a.h").write_text("const int kValue = 1;\n")
    (tmp_path / "a.cc").write_text('#include "a.h"\nint value() { return kValue; }\n')
    unset.chdir(tmp_path)
    return tmp_path


def compile_in(compiling, capsys, flags=(), tensorflow=None, **job):
    """Compiles a.cc and returns the object and what was said."""
    job = compiling.Job(Path("a.cc"), ["-O1", *flags], **job)

    def flags_of_tensorflow():
        if tensorflow is None:
            raise compiling.CompileError("there is no TensorFlow")
        return tensorflow

    with compiling.Pool([job], flags_of_tensorflow) as pool:
        (made,) = pool.objects([job])
    return made, capsys.readouterr().out


@needs_compiler
def test_only_what_has_changed_is_compiled(compiling, folder, capsys):
    made, said = compile_in(compiling, capsys)
    assert "[1/1] a.cc" in said
    first = made.read_bytes()
    assert compile_in(compiling, capsys) == (made, "")
    (folder / "a.h").write_text("const int kValue = 2;\n")
    _, said = compile_in(compiling, capsys)
    assert "[1/1] a.cc" in said
    assert made.read_bytes() != first
    assert "[1/1] a.cc" in compile_in(compiling, capsys, ["-O2"])[1]
    assert "[1/1] a.cc" in compile_in(compiling, capsys, ["-O2"], variant="other")[1]


@needs_compiler
def test_a_file_that_failed_is_compiled_again(compiling, folder, capsys):
    (folder / "a.h").write_text("#error wrong\n")
    for _ in range(2):
        with pytest.raises(compiling.CompileError, match=r"^failed: .*g\+\+ -c a\.cc"):
            compile_in(compiling, capsys)
        assert "#error wrong" in capsys.readouterr().out


@needs_compiler
def test_what_includes_tensorflow_is_compiled_again_for_another(compiling, folder, capsys):
    (folder / "more").mkdir()
    for version in ("2.21.0", "2.21.1"):
        flags = {"version": version, "compile": ["-DA"], "link": [], "include": str(folder)}
        of = {"tensorflow": flags, "headers": ("more",)}
        assert "[1/1] a.cc" in compile_in(compiling, capsys, **of)[1]
        assert compile_in(compiling, capsys, **of)[1] == ""
    with pytest.raises(compiling.CompileError, match=r"2\.21\.1 comes without .*/less"):
        compile_in(compiling, capsys, tensorflow=flags, headers=("less",))
    with pytest.raises(compiling.CompileError, match="there is no TensorFlow"):
        compile_in(compiling, capsys, headers=())


@pytest.mark.parametrize("in_place", [False, True])
def test_a_build_says_what_it_does_now(compiling, in_place, monkeypatch, capsys):
    monkeypatch.setattr(compiling, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(compiling, "IN_PLACE_S", 0.02)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: in_place)
    progress, said = compiling.Progress(2), ""
    with progress.doing("folder/a.cc (avx2)"):
        while "a.cc" not in said:  # for ever, if it is silent
            said += capsys.readouterr().out
    progress.skip()
    progress.close()
    said += capsys.readouterr().out
    begin = "\r\x1b[K" if in_place else ""
    assert said.startswith(f"{begin}[0/2] compiling a.cc (avx2) 0 s")
    assert ("[1/2] folder/a.cc (avx2), 0 s\n" in said) == (not in_place)
    assert said.endswith("compiled 1 files, 1 had not changed; 0 s\n")


@pytest.fixture(scope="module")
def install():
    loader = importlib.machinery.SourceFileLoader("install_of_test", str(ROOT / "scripts/install"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def test_an_installation_says_what_it_does_now(install, monkeypatch, capsys):
    monkeypatch.setattr(install, "HEARTBEAT_S", 0.02)
    beside = install.Command("sh", "-c", "echo beside; exec sleep 60")
    install.wait_for(install.Command("sh", "-c", "echo before; echo now; sleep 1"), beside)
    beside.stop()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split(maxsplit=2)[2] == "now; beside"  # after "0 s;"
    assert len(lines) > 2


@pytest.mark.parametrize("failing", ["exec sleep 60", "exit 0"])
def test_a_failing_step_ends_the_installation_with_its_words(install, failing, capsys):
    bad = install.Command("sh", "-c", "echo what is wrong >&2; exit 3")
    other = install.Command("sh", "-c", failing)
    with pytest.raises(SystemExit, match=r"^install: failed: sh -c echo what is wrong"):
        install.wait_for(*((other, bad) if "sleep" in failing else (bad, other)))
    for command in (bad, other):
        command.stop()
    assert capsys.readouterr().out.endswith("what is wrong\n")


def test_instruction_sets_that_are_asked_for(setup, unset):
    everything = list(setup.instruction_sets())
    assert everything == [name for name in ops.INSTRUCTION_SETS if name in everything]
    assert "baseline" in everything
    unset.setenv(setup.SETS_VARIABLE, "native")
    assert list(setup.instruction_sets()) == instruction_sets()[-1:]
    unset.setenv(setup.SETS_VARIABLE, ",".join(reversed(everything)))
    assert list(setup.instruction_sets()) == everything
    unset.setenv(setup.SETS_VARIABLE, "baseline,avx521")
    with pytest.raises(setup.CompileError, match=r"='baseline,avx521': it is all, native, or some"):
        setup.instruction_sets()


def test_make_test_builds_every_instruction_set(setup, unset):
    built = json.loads(loader.BUILD_FACTS.read_text())["instruction_sets"]
    assert built == list(setup.instruction_sets()), "`make native` builds them"


@pytest.fixture
def nvcc(setup, tmp_path, unset):
    """Stands in for nvcc; whether there is a GPU depends on nothing of this machine."""
    path = tmp_path / "nvcc"
    path.write_text("#!/bin/sh\necho compute_75 compute_80 compute_90 compute_100\n")
    path.chmod(0o755)
    unset.setenv("NVCC", str(path))
    unset.setattr(setup, "has_gpu", lambda: False)
    return path


@needs_compiler
def test_cuda_kernels_are_built_where_a_gpu_is_seen_or_they_are_asked_for(setup, nvcc, unset):
    assert setup.cuda_jobs() == []
    unset.setenv(setup.CUDA_VARIABLE, "1")
    jobs = setup.cuda_jobs()
    assert [job.source.name for job in jobs][-1] == "gpu_ops.cc"
    assert "-gencode=arch=compute_80,code=sm_80" in jobs[0].flags
    unset.setenv(setup.CUDA_VARIABLE, "")
    unset.setattr(setup, "has_gpu", lambda: True)
    assert setup.cuda_jobs() == jobs
    unset.setenv(setup.CUDA_VARIABLE, "0")
    assert setup.cuda_jobs() == []
    unset.setenv(setup.CUDA_VARIABLE, "yes")
    with pytest.raises(setup.CompileError, match="AGGREGATHOR_CUDA='yes': it is 1, 0, or not set"):
        setup.cuda_jobs()


@needs_compiler
def test_a_cuda_compiler_that_does_not_work(setup, nvcc, unset, capsys):
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    unset.setattr(setup, "has_gpu", lambda: True)
    assert setup.cuda_jobs() == []  # the build goes on, and says so
    assert "warning: building without CUDA, because" in capsys.readouterr().out
    unset.setenv(setup.CUDA_VARIABLE, "1")
    with pytest.raises(setup.CompileError, match="nvcc does not work"):
        setup.cuda_jobs()


@needs_compiler
@pytest.mark.parametrize(
    ("has", "wanted", "chosen"),
    [
        ("1", "", "avx512"),
        ("1", "avx2", "avx2"),
        ("0", "", ""),
        ("0", "avx2", ""),
    ],
)
def test_a_library_says_which_kernels_this_processor_can_run(has, wanted, chosen, tmp_path):
    if "avx512" not in module_of(Path("setup.py")).X86_INSTRUCTION_SETS:
        pytest.skip("not x86-64")
    program = tmp_path / "program.cc"
    table = (
        "namespace aggregathor::%s { template <typename T> const Kernels<T>& Table() { throw 0; }"
        "template const Kernels<float>& Table(); template const Kernels<double>& Table(); }\n"
    )
    program.write_text(
        '#include "aggregathor/ops/kernels/kernels.h"\n#include <cstdio>\n'
        + "".join(table % name for name in ("avx2", "avx512"))
        + "int main() { std::puts(aggregathor::InstructionSet()); }\n"
    )
    built = "-DAGGREGATHOR_FOR_EACH_ISA(X)=X(avx2) X(avx512)"
    processor = f"-D__builtin_cpu_supports(name)={has}"
    dispatch = ROOT / "aggregathor/ops/kernels/dispatch.cc"
    subprocess.run(
        ["g++", "-std=c++17", f"-I{ROOT}", built, processor, dispatch, program, "-o", "program"],
        cwd=tmp_path,
        check=True,
    )
    said = subprocess.run(
        ["./program"],
        cwd=tmp_path,
        env=os.environ | {ops.KERNELS_VARIABLE: wanted},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == chosen + "\n"
