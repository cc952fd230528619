"""Builds the native code; BUILD_NOTES.md tells why each flag is there."""

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

OPS = Path("aggregathor/ops")
FACTS = dict(re.findall(r'^(\w+) = "(.*)"$', Path("aggregathor/version.py").read_text(), re.M))
VERSION, SERIES = FACTS["__version__"], FACTS["TENSORFLOW_SERIES"]

# Compiled once per instruction set; these files include neither TensorFlow nor standard templates.
KERNEL_SOURCES = tuple(
    f"kernels/{name}.cc"
    for name in ("bulyan", "columns", "distances", "means", "weiszfeld", "table")
)
KERNEL_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall"]
# g++ 12 takes the undefined operand of its own AVX-512 intrinsics for a mistake of ours.
KERNEL_FLAGS += ["-Wno-uninitialized"]
X86_INSTRUCTION_SETS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": [
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"),
        "-mprefer-vector-width=512",
    ],
}
INSTRUCTION_SETS = X86_INSTRUCTION_SETS if platform.machine() == "x86_64" else {"baseline": []}

# Compiled once, for the plainest processor.
PLAIN_SOURCES = tuple(
    f"kernels/{name}.cc" for name in ("arrays", "digest", "dispatch", "pool", "selection")
)
# These include TensorFlow's headers: its own flags, and no instruction set (see BUILD_NOTES.md).
OP_SOURCES = (
    *("tf/coordinate_op.cc", "tf/digest_op.cc", "tf/distance_op.cc", "exchange/exchange_op.cc"),
    *("tf/geometric_median_op.cc", "tf/kernel_lock_op.cc"),
)
# Compiled where nvcc is: the kernels, and their registrations in plain C++.
CUDA_SOURCES = tuple(f"cuda/{name}.cu" for name in ("bulyan", "columns", "distances", "means"))
GPU_OP_SOURCES = ("tf/gpu_ops.cc",)
CUDA_ARCHITECTURES = (70, 80, 90)
OP_FLAGS = ["-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-sign-compare"]

LOCK = Path("aggregathor/locking")

LOSSYMPI = Path("lossympi")
LOSSYMPI_FLAGS = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]


class Build(build_ext):
    """Compiles the libraries."""

    def build_extension(self, ext: Extension) -> None:
        if ext.name == "lossympi._core":
            self.build_lossympi(ext)
        elif ext.name == "aggregathor.locking.libaggregathor_grpc":
            self.build_grpc(ext)
        else:
            self.build_ops(ext)

    def build_lossympi(self, ext: Extension) -> None:
        """Compiles `lossympi/core`, `io` and the bindings into a Python module."""
        compiler = cxx()
        try:
            import pybind11
        except ImportError as error:
            raise CompileError("pybind11 is needed for it: pip install pybind11") from error
        folder = Path(self.build_temp) / "lossympi"
        folder.mkdir(parents=True, exist_ok=True)
        includes = [
            f"-isystem{folder}"
            for folder in (pybind11.get_include(), sysconfig.get_path("include"))
        ]
        sources = [*LOSSYMPI.glob("core/*.cc"), *LOSSYMPI.glob("io/*.cc"), *LOSSYMPI.glob("*.cc")]
        jobs = [Job(source, [*LOSSYMPI_FLAGS, *includes]) for source in sorted(sources)]
        try:
            objects = compile_all(compiler, jobs, folder)
        except CompileError as error:
            raise CompileError(
                f"{error}. If sodium.h is what it lacks: apt-get install libsodium-dev"
            ) from error
        module = Path(self.get_ext_fullpath(ext.name))
        module.parent.mkdir(parents=True, exist_ok=True)
        run([compiler, "-shared", "-o", module, *objects, "-lsodium", "-lpthread"])

    def build_grpc(self, ext: Extension) -> None:
        """Compiles the server protocol "grpc+lock" into a library that TensorFlow's servers use."""
        tensorflow = tensorflow_flags()
        compiler = cxx()
        folder = Path(self.build_temp) / "lock"
        folder.mkdir(parents=True, exist_ok=True)
        # The wheel has the headers of what TensorFlow is made of, and no flags for them.
        external = Path(tensorflow["include"]) / "external"
        needed = [
            external / "com_github_grpc_grpc" / "include",
            external / "farmhash_archive" / "src",
        ]
        missing = [str(each) for each in needed if not each.is_dir()]
        if missing:
            raise CompileError(
                f"TensorFlow {tensorflow['version']} comes without {', '.join(missing)}; without "
                'the library there is no server protocol "grpc+lock", and all else works'
            )
        flags = [*OP_FLAGS, *tensorflow["compile"], *(f"-isystem{each}" for each in needed)]
        objects = compile_all(compiler, [Job(LOCK / "grpc_server.cc", flags)], folder)
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        link = [*tensorflow["link"], "-l:libtensorflow_cc.so.2", "-Wl,-z,defs"]
        run([compiler, "-shared", "-o", library, *objects, *link])
        write_facts(library, compiler, tensorflow["version"])

    def build_ops(self, ext: Extension) -> None:
        """Compiles `aggregathor/ops` into a library that TensorFlow loads, and says how."""
        tensorflow = tensorflow_flags()
        compiler = cxx()
        folder = Path(self.build_temp) / "ops"
        folder.mkdir(parents=True, exist_ok=True)

        for_each = "".join(f" X({name})" for name in INSTRUCTION_SETS)
        jobs = [  # the slowest first
            *(Job(OPS / source, [*OP_FLAGS, *tensorflow["compile"]]) for source in OP_SOURCES),
            *(
                Job(OPS / source, [*KERNEL_FLAGS, f"-DAGGREGATHOR_ISA={name}", *flags], name)
                for name, flags in INSTRUCTION_SETS.items()
                for source in KERNEL_SOURCES
            ),
            *(
                Job(OPS / source, [*KERNEL_FLAGS, f"-DAGGREGATHOR_FOR_EACH_ISA(X)={for_each}"])
                for source in PLAIN_SOURCES
            ),
        ]
        objects = compile_all(compiler, jobs, folder)
        try:
            cuda_objects, cuda_link, cuda = compile_cuda(compiler, tensorflow["compile"], folder)
        except CompileError as error:
            print(f"warning: building without CUDA, because {error}", flush=True)
            cuda_objects, cuda_link, cuda = [], [], ""

        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        link = [*tensorflow["link"], *cuda_link]
        run([compiler, "-shared", "-o", library, *objects, *cuda_objects, *link])
        write_facts(
            library,
            compiler,
            tensorflow["version"],
            instruction_sets=list(INSTRUCTION_SETS),
            cuda=cuda,
        )

    def copy_extensions_to_source(self) -> None:  # for `build_ext --inplace` and editable installs
        super().copy_extensions_to_source()
        built = Path(self.get_finalized_command("build_ext").build_lib)
        for folder in (OPS, LOCK):
            if (built / folder / "build.json").exists():  # the lock's is optional
                shutil.copy(built / folder / "build.json", folder / "build.json")

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.split(".")[-1] == "_core":  # setuptools asks by either name
            return super().get_ext_filename(fullname)
        return fullname.replace(".", "/") + ".so"  # TensorFlow loads it, not Python: no ABI tag


class Job(NamedTuple):
    """A source to compile; `variant` tells its objects apart."""

    source: Path
    flags: list[str]
    variant: str = ""


def compile_all(compiler: str, jobs: list[Job], folder: Path) -> list[Path]:
    """Compiles on all cores; returns the objects."""
    # nvcc is no C++ compiler, and takes other flags.
    own = shlex.split(os.environ.get("CXXFLAGS", "")) if compiler == cxx() else []

    def compile_one(job: Job) -> Path:
        target = folder / ".".join(filter(None, (job.source.name, job.variant, "o")))
        run([compiler, "-c", job.source, "-I.", *job.flags, *own, "-o", target])
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, jobs))


def compile_cuda(
    compiler: str, tensorflow_compile: list[str], folder: Path
) -> tuple[list[Path], list[str], str]:
    """Returns objects, linker flags and nvcc's version; nothing where there is no nvcc."""
    nvcc = os.environ.get("NVCC") or shutil.which("nvcc")
    if not nvcc:
        return [], [], ""
    known = set(re.findall(r"compute_(\d+)", output([nvcc, "--list-gpu-arch"])))
    chosen = [arch for arch in CUDA_ARCHITECTURES if str(arch) in known]
    if not chosen:
        raise CompileError(f"{nvcc} compiles for none of {CUDA_ARCHITECTURES}")
    machine_code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in chosen]
    # For newer cards, which the driver compiles for.
    ptx = f"-gencode=arch=compute_{chosen[-1]},code=compute_{chosen[-1]}"
    host = ["-ccbin", compiler, "-Xcompiler", "-fPIC,-fvisibility=hidden"]
    # Relaxed: kernels call what the compiler could compute too (network.h).
    flags = ["-std=c++17", "-O3", "--fmad=false", "--expt-relaxed-constexpr"]
    flags += [*host, *machine_code, ptx]
    objects = compile_all(nvcc, [Job(OPS / source, flags) for source in CUDA_SOURCES], folder)
    op_flags = [*OP_FLAGS, *tensorflow_compile]
    jobs = [Job(OPS / source, op_flags) for source in GPU_OP_SOURCES]
    objects += compile_all(compiler, jobs, folder)

    # Where nvcc would look for the runtime that it links statically.
    plan = subprocess.run(
        [nvcc, "--dryrun", "-o", "unused", *objects], capture_output=True, text=True
    ).stderr
    folders = re.findall(r'-L"?([^"\s]+)"?', plan)
    link = [*(f"-L{each}" for each in folders), "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    version = re.search(r"release ([\d.]+)", output([nvcc, "--version"]))
    return objects, link, version[1] if version else "unknown"


def write_facts(library: Path, compiler: str, tensorflow: str, **more: object) -> None:
    """Writes beside a library what it was built from and with."""
    facts = {
        "version": VERSION,
        "tensorflow": tensorflow,
        "compiler": subprocess.getoutput(f"{compiler} --version").splitlines()[0],
        **more,
        # Compared before it is opened, as opening a damaged library may kill the process.
        "library_bytes": library.stat().st_size,
        "library_sha256": hashlib.sha256(library.read_bytes()).hexdigest(),
    }
    library.with_name("build.json").write_text(json.dumps(facts, indent=2) + "\n")


def cxx() -> str:
    """The C++ compiler."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise CompileError(
            f"no C++ compiler: {compiler!r} was not found. On Debian or Ubuntu: "
            "apt-get install g++. Or name one in CXX."
        )
    return compiler


def tensorflow_flags() -> dict:
    """What the installed TensorFlow says about building against it."""
    try:
        import tensorflow as tf
    except ImportError as error:
        raise CompileError(
            f"TensorFlow {SERIES} is needed to build the ops and could not be imported ({error}): "
            f"pip install 'tensorflow~={SERIES}.0'"
        ) from error
    if not tf.__version__.startswith(SERIES + "."):
        raise CompileError(
            f"TensorFlow {tf.__version__} is installed and the ops are for {SERIES}: "
            f"pip install 'tensorflow~={SERIES}.0'"
        )
    return {
        "version": tf.__version__,
        # As system headers: what they warn about is not ours to mend.
        "compile": [re.sub("^-I", "-isystem", f) for f in tf.sysconfig.get_compile_flags()],
        "link": tf.sysconfig.get_link_flags(),
        "include": tf.sysconfig.get_include(),
    }


def run(command: list) -> None:
    """Runs a compiler and shows its own words if it has any."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.stderr:
        print(done.stderr, flush=True)
    if done.returncode != 0:
        raise CompileError(f"failed: {' '.join(map(str, command))}")


def output(command: list[str]) -> str:
    """What a command prints on standard output."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise CompileError(f"{command[0]} does not work: {error}") from error


setup(
    version=VERSION,
    cmdclass={"build_ext": Build},
    ext_modules=[
        # Without it LossyMPI runs its Python plane, and says so.
        Extension("lossympi._core", sources=[], optional=True),
        Extension("aggregathor.ops.libaggregathor_ops", sources=[]),
        # Without it there is no server protocol "grpc+lock", and who asks for it is told.
        Extension("aggregathor.locking.libaggregathor_grpc", sources=[], optional=True),
    ],
)
