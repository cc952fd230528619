"""Builds the native code; BUILD_NOTES.md says why each flag is there, and what takes how long."""

import hashlib
import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
from compiling import OBJECTS, Job, Pool, cxx, link, output, version_of

OPS = Path("aggregathor/ops")
LOCK = Path("aggregathor/locking")
LOSSYMPI = Path("lossympi")

FACTS = dict(re.findall(r'^(\w+) = "(.*)"$', Path("aggregathor/version.py").read_text(), re.M))
VERSION, SERIES = FACTS["__version__"], FACTS["TENSORFLOW_SERIES"]

# Which kernels: "all" (default), "native" for the best that this processor has, or "avx2,baseline".
SETS_VARIABLE = "AGGREGATHOR_INSTRUCTION_SETS"
# "1": CUDA kernels, or an error; "0": none. Otherwise: where there is a GPU, and if nvcc works.
CUDA_VARIABLE = "AGGREGATHOR_CUDA"
# "later": Python alone. scripts/install sets it for pip, and builds the native code meanwhile.
NATIVE_VARIABLE = "AGGREGATHOR_NATIVE"

INSTALL_TENSORFLOW = f"pip install 'tensorflow~={SERIES}.0'"

# Compiled once per instruction set; these files include neither TensorFlow nor standard templates.
KERNEL_SOURCES = tuple(
    f"kernels/{name}.cc"
    # The slowest first.
    for name in (
        "bulyan",
        "columns",
        "distances",
        "means",
        "weiszfeld",
        "codes",
        "vectors",
        "table",
    )
)
# Of some: sums that must be the same bits for each instruction set fuse nothing by themselves.
FLAGS_OF_KERNELS = {"kernels/vectors.cc": ["-ffp-contract=off"]}
KERNEL_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall"]
# g++ 12 takes the undefined operand of its own AVX-512 intrinsics for a mistake of ours.
KERNEL_FLAGS += ["-Wno-uninitialized"]


class InstructionSet(NamedTuple):
    """The compiler's flags, and what /proc/cpuinfo calls what a processor needs (dispatch.cc)."""

    flags: list[str]
    needs: set[str]


BASELINE = InstructionSet([], set())
X86_INSTRUCTION_SETS = {  # from the plainest to the best
    "baseline": BASELINE,
    "avx2": InstructionSet(["-mavx2", "-mfma"], {"avx2", "fma"}),
    "avx512": InstructionSet(
        [
            *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"),
            "-mprefer-vector-width=512",
        ],
        {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    ),
}

# Compiled once, for the plainest processor.
PLAIN_SOURCES = tuple(f"kernels/{name}.cc" for name in ("arrays", "digest", "pool", "selection"))
DISPATCH = "kernels/dispatch.cc"
# What includes TensorFlow's headers: its own flags, and no instruction set (see BUILD_NOTES.md).
OP_SOURCE = "tf/all_ops.cc"
# With CUDA: the kernels, and their registrations in plain C++.
CUDA_SOURCES = tuple(f"cuda/{name}.cu" for name in ("bulyan", "columns", "distances", "means"))
GPU_OP_SOURCE = "tf/gpu_ops.cc"
CUDA_ARCHITECTURES = (70, 80, 90)
OP_FLAGS = ["-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-sign-compare"]
# The wheel has the headers of what TensorFlow is made of, and no flags for them.
GRPC_HEADERS = ("external/com_github_grpc_grpc/include", "external/farmhash_archive/src")

LOSSYMPI_FLAGS = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]


class Build(build_ext):
    """Compiles what all libraries are made of on all cores, then links one after the other."""

    user_options: ClassVar = [
        *build_ext.user_options,
        ("wait-for=", None, "a file that appears once TensorFlow is there; the rest comes first"),
    ]

    def initialize_options(self) -> None:
        super().initialize_options()
        self.wait_for = None

    def build_extensions(self) -> None:
        libraries = {
            "aggregathor.ops.libaggregathor_ops": (ops_jobs, link_ops),
            "lossympi._core": (lossympi_jobs, link_lossympi),
            "aggregathor.locking.libaggregathor_grpc": (grpc_jobs, link_grpc),
        }
        planned = []
        for ext in self.extensions:
            make_jobs, link_library = libraries[ext.name]
            with self.reporting(ext):
                planned.append((ext, make_jobs(), link_library))
        jobs = [job for _, its_jobs, _ in planned for job in its_jobs]
        with Pool(jobs, lambda: tensorflow_flags(self.wait_for)) as pool:
            for ext, its_jobs, link_library in planned:
                with self.reporting(ext):
                    library = self.library(ext)
                    library.parent.mkdir(parents=True, exist_ok=True)
                    link_library(library, its_jobs, pool)

    @contextmanager
    def reporting(self, ext: Extension) -> Iterator[None]:
        """Goes on without an optional library that cannot be built, and says why."""
        try:
            yield
        except CompileError as error:
            self.library(ext).unlink(missing_ok=True)  # it may be there from before
            if not ext.optional:
                raise
            print(f"warning: building without {ext.name}, because {error}", flush=True)

    def library(self, ext: Extension) -> Path:
        return Path(self.get_ext_fullpath(ext.name))

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


def ops_jobs() -> list[Job]:
    """`aggregathor/ops`: the kernels of each instruction set, CUDA's, and what registers them."""
    sets = instruction_sets()
    for_each = "".join(f" X({name})" for name in sets)
    return [
        *(
            Job(
                OPS / source,
                [
                    *KERNEL_FLAGS,
                    f"-DAGGREGATHOR_ISA={name}",
                    *each.flags,
                    *FLAGS_OF_KERNELS.get(source, ()),
                ],
                name,
            )
            for source in KERNEL_SOURCES
            for name, each in sets.items()
        ),
        *(Job(OPS / source, KERNEL_FLAGS) for source in PLAIN_SOURCES),
        Job(OPS / DISPATCH, [*KERNEL_FLAGS, f"-DAGGREGATHOR_FOR_EACH_ISA(X)={for_each}"]),
        Job(OPS / OP_SOURCE, OP_FLAGS, headers=()),
        *cuda_jobs(),
    ]


def link_ops(library: Path, jobs: list[Job], pool: Pool) -> None:
    """Links a library that TensorFlow loads, with the CUDA kernels unless they do not compile."""
    of_cuda = [job for job in jobs if job.nvcc or job.source == OPS / GPU_OP_SOURCE]
    objects = pool.objects([job for job in jobs if job not in of_cuda])
    cuda_link, cuda = [], ""
    if of_cuda:
        try:
            cuda_objects = pool.objects(of_cuda)
            cuda_link, cuda = cuda_runtime(of_cuda[0].nvcc, cuda_objects)
            objects += cuda_objects
        except CompileError as error:
            without_cuda(error)
    tensorflow = pool.tensorflow()
    link(library, [*objects, *tensorflow["link"], *cuda_link])
    facts = {"instruction_sets": list(instruction_sets()), "cuda": cuda}
    write_facts(library, tensorflow["version"], **facts)


def lossympi_jobs() -> list[Job]:
    """`lossympi/core`, `io` and the bindings."""
    try:
        import pybind11
    except ImportError as error:
        raise CompileError("pybind11 is needed for it: pip install pybind11") from error
    includes = [
        f"-isystem{folder}" for folder in (pybind11.get_include(), sysconfig.get_path("include"))
    ]
    sources = sorted(
        each for under in ("", "io/", "core/") for each in LOSSYMPI.glob(f"{under}*.cc")
    )
    return [Job(source, [*LOSSYMPI_FLAGS, *includes]) for source in sources]


def link_lossympi(library: Path, jobs: list[Job], pool: Pool) -> None:
    """Links a Python module."""
    hint = "If sodium.h is what it lacks: apt-get install libsodium-dev"
    objects = pool.objects(jobs, hint)
    link(library, [*objects, "-lsodium", "-lpthread"])


def grpc_jobs() -> list[Job]:
    """The server protocol "grpc+lock"."""
    return [Job(LOCK / "grpc_server.cc", OP_FLAGS, headers=GRPC_HEADERS)]


def link_grpc(library: Path, jobs: list[Job], pool: Pool) -> None:
    """Links a library that registers a protocol for TensorFlow's servers."""
    hint = 'Without it there is no server protocol "grpc+lock", and all else works'
    objects = pool.objects(jobs, hint)
    tensorflow = pool.tensorflow()
    # The default linker takes four times as long, as libtensorflow_cc has so many names.
    faster = ["-fuse-ld=gold"] if shutil.which("ld.gold") else []
    libraries = [*tensorflow["link"], "-l:libtensorflow_cc.so.2"]
    link(library, [*objects, *faster, *libraries, "-Wl,-z,defs"])
    write_facts(library, tensorflow["version"])


def instruction_sets() -> dict[str, InstructionSet]:
    """What the kernels are compiled for, from the plainest to the best."""
    known = X86_INSTRUCTION_SETS if platform.machine() == "x86_64" else {"baseline": BASELINE}
    asked = os.environ.get(SETS_VARIABLE) or "all"
    if asked == "all":
        return known
    if asked == "native":
        try:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
        except OSError:
            return known
        has = {flag for line in lines if line.startswith("flags") for flag in line.split()}
        best = [name for name, each in known.items() if each.needs <= has][-1]
        return {best: known[best]}
    names = asked.split(",")
    if not set(names) <= set(known):
        raise CompileError(
            f"{SETS_VARIABLE}={asked!r}: it is all, native, or some of {','.join(known)}"
        )
    return {name: each for name, each in known.items() if name in names}


def cuda_jobs() -> list[Job]:
    """The CUDA kernels, where they are asked for or of use."""
    asked = os.environ.get(CUDA_VARIABLE) or "auto"
    if asked not in ("auto", "0", "1"):
        raise CompileError(f"{CUDA_VARIABLE}={asked!r}: it is 1, 0, or not set")
    nvcc = os.environ.get("NVCC") or shutil.which("nvcc")
    if asked == "0" or (asked == "auto" and not (nvcc and has_gpu())):
        return []
    try:
        if not nvcc:
            raise CompileError(f"{CUDA_VARIABLE}=1, and nvcc was not found: name it in NVCC")
        flags = cuda_flags(nvcc)
    except CompileError as error:
        without_cuda(error)
        return []
    jobs = [Job(OPS / source, flags, nvcc=nvcc) for source in CUDA_SOURCES]
    return [*jobs, Job(OPS / GPU_OP_SOURCE, OP_FLAGS, headers=())]


def without_cuda(error: CompileError) -> None:
    """Says why there will be no CUDA kernels; raises where they were asked for."""
    if os.environ.get(CUDA_VARIABLE) == "1":
        raise error
    print(f"warning: building without CUDA, because {error}", flush=True)


def has_gpu() -> bool:
    """Whether NVIDIA's driver finds a GPU."""
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0
    except OSError:
        return False


def cuda_flags(nvcc: str) -> list[str]:
    """Flags of nvcc: machine code for those of our architectures that it knows, and PTX."""
    known = set(re.findall(r"compute_(\d+)", output([nvcc, "--list-gpu-arch"])))
    chosen = [arch for arch in CUDA_ARCHITECTURES if str(arch) in known]
    if not chosen:
        raise CompileError(f"{nvcc} compiles for none of {CUDA_ARCHITECTURES}")
    machine_code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in chosen]
    # For newer cards, which the driver compiles for.
    ptx = f"-gencode=arch=compute_{chosen[-1]},code=compute_{chosen[-1]}"
    host = ["-ccbin", cxx(), "-Xcompiler", "-fPIC,-fvisibility=hidden"]
    # Relaxed: kernels call what the compiler could compute too (network.h).
    flags = ["-std=c++17", "-O3", "--fmad=false", "--expt-relaxed-constexpr"]
    return [*flags, *host, *machine_code, ptx]


def cuda_runtime(nvcc: str, objects: list[Path]) -> tuple[list[str], str]:
    """Linker flags for the static CUDA runtime, and nvcc's version."""
    # Where nvcc would look for it.
    plan = subprocess.run(
        [nvcc, "--dryrun", "-o", "unused", *objects], capture_output=True, text=True
    ).stderr
    folders = re.findall(r'-L"?([^"\s]+)"?', plan)
    flags = [*(f"-L{each}" for each in folders), "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    version = re.search(r"release ([\d.]+)", output([nvcc, "--version"]))
    return flags, version[1] if version else "unknown"


def tensorflow_flags(wait_for: str | None) -> dict:
    """What the installed TensorFlow says about building against it.

    That takes an import of TensorFlow, seconds; it is kept for as long as TensorFlow is the same.
    """
    while wait_for and not Path(wait_for).exists():
        time.sleep(0.2)
    importlib.invalidate_caches()
    spec = find_spec("tensorflow")
    if spec is None or spec.origin is None:
        raise CompileError(f"TensorFlow {SERIES} is needed to build the ops: {INSTALL_TENSORFLOW}")
    kept, installed = OBJECTS / "tensorflow.json", Path(spec.origin).stat()
    key = [spec.origin, installed.st_mtime_ns, installed.st_ino]
    try:
        found = json.loads(kept.read_text())
        if found["key"] != key:
            raise ValueError("another TensorFlow")
    except (OSError, ValueError, KeyError):
        found = {**ask_tensorflow(), "key": key}
        kept.write_text(json.dumps(found, indent=2))
    if not found["version"].startswith(SERIES + "."):
        raise CompileError(
            f"TensorFlow {found['version']} is installed and the ops are for {SERIES}: "
            + INSTALL_TENSORFLOW
        )
    # As system headers: what they warn about is not ours to mend.
    found["compile"] = [re.sub("^-I", "-isystem", flag) for flag in found["compile"]]
    return found


def ask_tensorflow() -> dict:
    """Imports TensorFlow, in a process of its own."""
    question = (
        "import json, tensorflow as tf; s = tf.sysconfig; print(json.dumps(dict("
        "version=tf.__version__, compile=s.get_compile_flags(), link=s.get_link_flags(), "
        "include=s.get_include())))"
    )
    done = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True)
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise CompileError(
            f"TensorFlow {SERIES} is needed to build the ops and could not be imported ({why}): "
            + INSTALL_TENSORFLOW
        )
    return json.loads(done.stdout.splitlines()[-1])


def write_facts(library: Path, tensorflow: str, **more: object) -> None:
    """Writes beside a library what it was built from and with."""
    facts = {
        "version": VERSION,
        "tensorflow": tensorflow,
        "compiler": version_of(cxx()),
        **more,
        # Compared before it is opened, as opening a damaged library may kill the process.
        "library_bytes": library.stat().st_size,
        "library_sha256": hashlib.sha256(library.read_bytes()).hexdigest(),
    }
    library.with_name("build.json").write_text(json.dumps(facts, indent=2) + "\n")


EXTENSIONS = [
    Extension("aggregathor.ops.libaggregathor_ops", sources=[]),
    # Without it LossyMPI runs its Python plane, and says so.
    Extension("lossympi._core", sources=[], optional=True),
    # Without it there is no server protocol "grpc+lock", and who asks for it is told.
    Extension("aggregathor.locking.libaggregathor_grpc", sources=[], optional=True),
]

if __name__ == "__main__":
    setup(
        version=VERSION,
        cmdclass={"build_ext": Build},
        ext_modules=[] if os.environ.get(NATIVE_VARIABLE) == "later" else EXTENSIONS,
    )
