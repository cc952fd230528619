"""What setup.py compiles with: all cores, only what has changed, and words about how far it is."""

import functools
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from setuptools.errors import CompileError

# Objects stay in the checkout, whoever builds: what has not changed is not compiled again.
OBJECTS = Path("build/objects")
HEARTBEAT_S = 15.0  # the longest silence of a build
IN_PLACE_S = 1.0  # on a terminal


class Job(NamedTuple):
    """A source to compile.

    Attributes:
      source: the file.
      flags: of the compiler.
      variant: a part of the object's name, where one source has several objects.
      headers: None for what needs no TensorFlow; else folders of its headers beside the usual one.
      nvcc: the CUDA compiler, for what it compiles.
    """

    source: Path
    flags: list[str]
    variant: str = ""
    headers: tuple[str, ...] | None = None
    nvcc: str = ""

    def name(self) -> str:
        """What progress calls it."""
        return f"{self.source} ({self.variant})" if self.variant else str(self.source)

    def target(self) -> Path:
        """Where its object is kept."""
        return OBJECTS / ".".join(filter(None, (*self.source.parts, self.variant, "o")))


class Pool:
    """Compiles on all cores, what needs TensorFlow last, and says how far it is."""

    def __init__(self, jobs: list[Job], tensorflow_flags: Callable[[], dict]) -> None:
        """Begins at once.

        Args:
          jobs: what is to be compiled.
          tensorflow_flags: returns TensorFlow's "version", "compile", "link" and "include"; may
            take its time.
        """
        OBJECTS.mkdir(parents=True, exist_ok=True)
        self._progress = Progress(len(jobs))
        self._flags = ThreadPoolExecutor(1)
        self._tensorflow = self._flags.submit(tensorflow_flags)
        self._compilers = ThreadPoolExecutor(os.cpu_count())
        in_order = sorted(jobs, key=lambda job: job.headers is not None)
        self._objects: dict[Path, Future[Path]] = {
            job.target(): self._compilers.submit(self._compile, job) for job in in_order
        }

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._flags, self._compilers):
            each.shutdown(cancel_futures=True)
        self._progress.close()

    def objects(self, jobs: list[Job], hint: str = "") -> list[Path]:
        """Waits for the objects; raises CompileError, with a hint, for the first that fails."""
        try:
            return [self._objects[job.target()].result() for job in jobs]
        except CompileError as error:
            raise CompileError(f"{error}. {hint}" if hint else str(error)) from error

    def tensorflow(self) -> dict:
        """Waits for what the installed TensorFlow says about building against it."""
        return self._tensorflow.result()

    def _compile(self, job: Job) -> Path:
        flags = [*job.flags]
        if job.headers is not None:
            flags += [*self.tensorflow()["compile"], *self._headers(job.headers)]
        # nvcc is no C++ compiler, and takes other flags.
        flags += [] if job.nvcc else shlex.split(os.environ.get("CXXFLAGS", ""))
        compiler = [job.nvcc] if job.nvcc else [*ccache(), cxx()]
        target = job.target()
        command = [*compiler, "-c", job.source, "-I.", *flags, "-o", target]
        version = self.tensorflow()["version"] if job.headers is not None else ""
        made_by = "\n".join(map(str, [*command, version_of(cxx()), version]))
        if is_current(target, made_by):
            self._progress.skip()
            return target
        with self._progress.doing(job.name()):
            target.unlink(missing_ok=True)
            run([*command, "-MMD", "-MF", target.with_suffix(".d")])
            target.with_suffix(".command").write_text(made_by)
        return target

    def _headers(self, folders: tuple[str, ...]) -> list[str]:
        found = [Path(self.tensorflow()["include"]) / folder for folder in folders]
        missing = [str(each) for each in found if not each.is_dir()]
        if missing:
            version = self.tensorflow()["version"]
            raise CompileError(f"TensorFlow {version} comes without {', '.join(missing)}")
        return [f"-isystem{folder}" for folder in found]


class Progress:
    """Tells how far a build is: in place on a terminal, else in a line now and then."""

    def __init__(self, total: int) -> None:
        """Begins to tell of `total` files."""
        self._total, self._done, self._skipped = total, 0, 0
        self._begun: dict[str, float] = {}
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._in_place = sys.stdout.isatty()
        self._thread = threading.Thread(target=self._tell, daemon=True)
        self._thread.start()

    @contextmanager
    def doing(self, name: str) -> Iterator[None]:
        """Marks a file as being compiled."""
        with self._lock:
            self._begun[name] = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                seconds = time.monotonic() - self._begun.pop(name)
                self._done += 1
                if not self._in_place:
                    print(f"[{self._done}/{self._total}] {name}, {seconds:.0f} s", flush=True)

    def skip(self) -> None:
        """Marks a file as compiled before."""
        with self._lock:
            self._done += 1
            self._skipped += 1

    def close(self) -> None:
        """Says what was done."""
        self._closed.set()
        self._thread.join()
        if self._in_place:
            print("\r\x1b[K", end="")
        seconds = time.monotonic() - self._started
        if self._done > self._skipped:
            unchanged = f", {self._skipped} had not changed" if self._skipped else ""
            print(f"compiled {self._done - self._skipped} files{unchanged}; {seconds:.0f} s")

    def _tell(self) -> None:
        while not self._closed.wait(IN_PLACE_S if self._in_place else HEARTBEAT_S):
            with self._lock:
                now = time.monotonic()
                files = [f"{Path(name).name} {now - t:.0f} s" for name, t in self._begun.items()]
                line = f"[{self._done}/{self._total}] compiling {', '.join(files)}"
            if not files:  # nothing is left, or all waits for TensorFlow
                continue
            if self._in_place:
                width = shutil.get_terminal_size().columns
                print(f"\r\x1b[K{line[: width - 1]}", end="", flush=True)
            else:
                print(line, flush=True)


def is_current(target: Path, made_by: str) -> bool:
    """Whether an object is there, made so, and newer than all that it was made of."""
    try:
        if target.with_suffix(".command").read_text() != made_by:
            return False
        _, _, sources = target.with_suffix(".d").read_text().partition(":")
        made = target.stat().st_mtime_ns
        return all(Path(s).stat().st_mtime_ns < made for s in sources.replace("\\\n", " ").split())
    except OSError:
        return False


def cxx() -> str:
    """The C++ compiler."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise CompileError(
            f"no C++ compiler: {compiler!r} was not found. On Debian or Ubuntu: "
            "apt-get install g++. Or name one in CXX."
        )
    return compiler


@functools.cache
def version_of(compiler: str) -> str:
    """The first line of what a compiler says about itself."""
    return output([compiler, "--version"]).splitlines()[0]


def ccache() -> list[str]:
    """What keeps objects of other checkouts, where it is installed."""
    found = shutil.which("ccache")
    return [found] if found else []


def link(library: Path, arguments: list) -> None:
    """Links a shared library."""
    run([cxx(), "-shared", "-o", library, *arguments])


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
