"""Starts a script on a server and its workers: ``aggregathor run``.

It runs the mpirun that belongs to mpi4py's MPI, with the options that this machine needs. The
processes that mpirun starts run ``aggregathor.run``, which takes the job's flags.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aggregathor import compositions
from aggregathor.cli import flags, hosts, program, supervise
from aggregathor.cluster.config import Config
from aggregathor.errors import UserError
from aggregathor.protocols.checks import check_training
from lossympi import machine, mpi

MODULE = "aggregathor.run"  # what each process runs
OPTIONS = (
    *("-n", "--host", "--hostfile", "--mpirun-args", "--help", "--dry-run"),
    *("--check", "--check_gar"),
)
CHECKED_ROUNDS = 3
# TensorFlow uses a thread per core in each process. With more processes than cores, one thread each
# keeps all cores busy, and an exchange takes none of them.
FEW_THREADS = {
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
}
SERVER_THREADS = "AGGREGATHOR_SERVER_THREADS"  # of one operation on rank 0
# Sets of texts have the same order in all processes: scripts iterate over them.
HASH_SEED = "PYTHONHASHSEED"
OUR_VARIABLES = ("AGGREGATHOR_", "LOSSYMPI_")
NAMES_HOSTS = ("--host", "-host", "-H", "--hostfile", "-hostfile", "--machinefile", "-machinefile")

Option = tuple[str, ...]  # of mpirun, with its values


def main(words: Sequence[str]) -> int:
    """Runs mpirun, or prints its command line.

    Args:
      words: what follows ``aggregathor run``.
    Returns:
      mpirun's exit status; 130 after Ctrl-C, 143 after SIGTERM.
    Raises:
      UserError: an argument is wrong, or there is no mpirun that fits.
    """
    args, unknown = _parse(words)
    ranks = _ranks(args.n)
    if args.check:
        args.job = [*args.job, ("check_rounds", str(CHECKED_ROUNDS))]
    told = flags.to_environment(args.job, unknown)
    named = _program(args.words, args.job)
    # What every process would refuse after TensorFlow's start is refused at once, and once.
    named.set_path()
    config = Config.of({}, {**os.environ, **told})
    _check_training(config, ranks - 1)
    if args.hostfile is not None and not Path(args.hostfile).is_file():
        raise UserError(
            f"--hostfile names a file with a host a line; there is none: {args.hostfile!r}"
        )
    is_one_host = _is_one_host(args.host, args.hostfile)
    if is_one_host:
        for name in ("monitor", "checkpoint"):
            _check_folder(name, getattr(config, name))
    extra = _extra(args.mpirun_args)
    _check_alone()

    mpirun, version = _find_mpirun()
    options = _options(version, ranks, args.host, args.hostfile)
    replaced = {word.partition("=")[0] for word in extra}
    passed = [f"--{name}={text}" for name, text in args.job]
    command = [
        mpirun,
        *(word for option in options if _subject(option) not in replaced for word in option),
        *extra,
        *("-n", str(ranks), sys.executable, *named.python, "-m", MODULE, *passed),
        *named.words(),
    ]
    if args.dry_run:
        sys.stdout.write(shlex.join(command) + "\n")
        return 0
    if args.check_gar:
        _try_rule(config)
    _warn_of_hosts(hosts.names(args.host, args.hostfile))
    sys.stdout.flush()
    return supervise.run(
        command,
        {HASH_SEED: str(secrets.randbelow(2**32)), **os.environ},
        can_ask=mpi.family_of(version) == mpi.OPEN_MPI,
        is_one_host=is_one_host,
    )


class _Meant(argparse.Action):
    """Refuses an option of mpirun that has another name here."""

    def __call__(self, parser: Any, found: Any, value: Any, option: str | None = None) -> None:
        raise UserError(f"there is no option {option}: did you mean {self.const}?")


def _parser() -> flags.Parser:
    parser = flags.Parser(
        prog="aggregathor run",
        usage="aggregathor run -n N [OPTION ...] SCRIPT|-m MODULE|-c CODE [ARG ...]",
        description="Start a script, a module or a line of code, as python takes them, on a server "
        "and N - 1 workers, with the mpirun beside this "
        "Python or on PATH that belongs to the MPI that mpi4py loads. With Open MPI 5 the training "
        "goes on when a worker dies.",
        epilog="All other options, such as --gar=multi-krum --f=2 --transport=udp --monitor=DIR "
        f"--checkpoint=DIR, are the job's: `python -m {MODULE} --help` lists them. If N exceeds "
        "the cores of this machine, TensorFlow is given few threads, by "
        f"{', '.join(f'{name}={value}' for name, value in FEW_THREADS.items())}, and the server "
        f"all cores for one operation, by {SERVER_THREADS}; variables that are set stay as they "
        "are. Processes on other hosts get these variables, AGGREGATHOR_* and LOSSYMPI_* of this "
        "environment; pass others with --mpirun-args='-x NAME'.",
    )
    parser.add_argument(
        "-n", metavar="N", help="how many processes: -n 9 is 1 server and 8 workers"
    )
    parser.add_argument("-np", "-N", action=_Meant, const="-n", help=argparse.SUPPRESS)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--host", metavar="A:1,B:4", help="hosts, and how many processes on each")
    where.add_argument("--hostfile", metavar="FILE", help="the same in a file, as mpirun reads it")
    parser.add_argument(
        "--mpirun-args",
        metavar="WORDS",
        default="",
        help="more options for mpirun; each replaces a chosen one on the same subject",
    )
    parser.add_argument(
        *("--check_gar", "--check-gar"),
        action="store_true",
        help="try the rule against the contract of a rule first; a minute or more",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"make {CHECKED_ROUNDS} rounds only, and say what of the script is shared, private, "
        "seeded, written, locked and compiled, and what to look at",
    )
    parser.add_argument("--dry-run", action="store_true", help="only print the command line")
    parser.add_job_flags(shown=False)
    return parser


def _parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the parsed options, and the unknown ones.

    Raises:
      UserError: an option lacks its value, or is nearly one of the launcher's.
    """
    try:
        args, unknown = _parser().read(words)
    except UserError:
        if "--mpirun-args" not in words[:-1]:
            raise
        at = words.index("--mpirun-args")  # argparse takes no value that begins with a dash
        joined = "=".join(words[at : at + 2])
        args, unknown = _parser().read([*words[:at], joined, *words[at + 2 :]])
    for word in unknown:
        _check_not_ours(word.partition("=")[0])
    return args, unknown


def _check_not_ours(name: str) -> None:
    """Refuses a misspelt option of the launcher."""
    meant = {option.lstrip("-"): option for option in OPTIONS}
    close = difflib.get_close_matches(name.lstrip("-"), meant, n=1, cutoff=0.8)
    if close:
        raise UserError(f"there is no option {name}: did you mean {meant[close[0]]}?")


def _ranks(said: str | None) -> int:
    ranks = int(said) if said is not None and re.fullmatch(r"\d+", said) else 0
    if ranks < 2:
        found = "it is missing" if said is None else f"got {said!r}"
        raise UserError(
            "-n is how many processes to start, a server and at least one worker, so 2 or more; "
            f"{found}. -n 9 starts 1 server and 8 workers."
        )
    return ranks


def _program(words: Sequence[str], job: flags.Flags) -> program.Program:
    """Returns the program to start, whose syntax is checked."""
    named = program.read(words)
    if named is None:
        hint = flags.hint(job)
        raise UserError(f"which script to start is missing: aggregathor run -n 9 train.py{hint}")
    named.check()
    return named


def _check_training(config: Config, n: int) -> None:
    """Raises ``UserError`` for names, parameters, n and f that no rank would accept."""
    check_training(
        config, n, lambda n, f: compositions.check_workers(config.gar, config.gar_args, n, f)
    )


def _try_rule(config: Config) -> None:
    """Raises ``UserError`` where the rule breaks the contract, which another process tries."""
    given = [f"{name}={value!r}" for name, value in config.gar_args.items()]
    command = [sys.executable, "-m", "aggregathor.cli.try_rule", config.gar, *given]
    path = os.pathsep.join([sys.path[0], *filter(None, [os.environ.get("PYTHONPATH")])])
    if subprocess.run(command, env={**os.environ, "PYTHONPATH": path}).returncode:
        raise UserError(f"{config.gar} was tried by --check_gar, and nothing is started: see above")


def _check_folder(name: str, path: str) -> None:
    """Raises ``UserError`` for a folder that cannot be made or written to."""
    if not path:
        return
    there = Path(path).expanduser().absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise UserError(f"--{name}={path} cannot be a folder: {there} is none")
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise UserError(
            f"--{name}={path} cannot be written to: {error.strerror} in {there}"
        ) from None


def _warn_of_hosts(names: Sequence[str]) -> None:
    """Says which hosts do not answer: mpirun takes twenty lines for it, and not that name."""
    for name, why in hosts.silent(names):
        sys.stderr.write(
            f"aggregathor: the host {name!r} of --host or --hostfile {why}. mpirun starts "
            f"processes by ssh, so `ssh {name} true` must work without a password.\n"
        )


def _extra(said: str) -> list[str]:
    """Returns the user's words for mpirun."""
    try:
        words = shlex.split(said)
    except ValueError as error:
        raise UserError(
            f"--mpirun-args are words as a shell reads them, got {said!r}: {error}"
        ) from error
    for word in words:
        if word.partition("=")[0] in NAMES_HOSTS:
            raise UserError(
                f"{word} is within --mpirun-args; give --host or --hostfile to `aggregathor run` "
                "itself, which chooses the network by it"
            )
    return words


def _check_alone() -> None:
    launch = mpi.launch_of(os.environ)
    if launch is not None and launch.size > 1:
        raise UserError(
            f"`aggregathor run` starts the processes itself, and {launch.by} has started it "
            f"{launch.size} times. Leave that out, or let it start `python -m {MODULE} ...`."
        )


def _find_mpirun() -> tuple[str, str]:
    """Returns path and version of the first mpirun, beside this Python or on PATH, that fits."""
    library, error = machine.try_library()
    if error:
        raise UserError(error)
    beside = sysconfig.get_path("scripts")
    paths = [path for path in (shutil.which("mpirun", path=beside), shutil.which("mpirun")) if path]
    if not paths:
        raise UserError(
            f"mpirun starts the processes, and there is none in {beside} or on PATH. "
            f"{mpi.HOW_TO_INSTALL}"
        )
    versions = []
    for path in paths:
        said, error = machine.run([path, "--version"])
        versions.append(mpi.short_version(said) or error or "of an unknown version")
        if mpi.fits(versions[-1], library):
            return path, versions[-1]
    raise UserError(
        f"{paths[0]} is {versions[0]}, and mpi4py loads {library}: each process would take itself "
        "for the only one. Put that library's mpirun first on PATH, or name the library that "
        "belongs to this mpirun in MPI4PY_LIBMPI, with its path."
    )


def _options(version: str, ranks: int, host: str | None, hostfile: str | None) -> list[Option]:
    """Returns the options that this mpirun needs here; none for an unknown family."""
    is_one_host = _is_one_host(host, hostfile)
    family = mpi.family_of(version)
    if family == mpi.OPEN_MPI:
        return _open_mpi_options(version, ranks, host, hostfile, is_one_host)
    if family != mpi.MPICH:
        return []
    # MPICH binds no process, accepts root and few cores, passes on the whole environment, and ends
    # the other processes when one dies, even with -disable-auto-cleanup.
    options: list[Option] = []
    if host:
        options.append(("-hosts", host))
    if hostfile:
        options.append(("-f", hostfile))
    if is_one_host:
        options += [("-genv", name, value) for name, value in _threads(ranks).items()]
    return options


def _open_mpi_options(
    version: str, ranks: int, host: str | None, hostfile: str | None, is_one_host: bool
) -> list[Option]:
    options: list[Option] = []
    parameters = {"pml": "ob1", "btl": "self,tcp"}  # starts sooner than if MPI looks for networks
    variables: list[str] = []
    is_old = mpi.major(version) in ("1", "2", "3", "4")
    if os.geteuid() == 0:
        options.append(("--allow-run-as-root",))
    options.append(("--bind-to", "none"))  # each process has several threads
    if not is_old:
        # The others go on when a worker dies, and MPI fails at once for messages that will never
        # come. --enable-recovery and --continuous leave those pending, or abort.
        options.append(("--with-ft", "ulfm"))
    if host:
        options.append(("--host", host))
    if hostfile:
        options.append(("--hostfile", hostfile))
    if is_one_host:
        parameters["btl"] = "self,vader" if is_old else "self,sm"
        # Open MPI counts cores, not what they run at a time, and a scheduler may have granted less.
        options.append(("--oversubscribe",))
        if ranks > _cpus():
            parameters["mpi_yield_when_idle"] = "1"
        variables += [f"{name}={value}" for name, value in _threads(ranks).items()]
    else:
        variables += [
            name
            for name in sorted(os.environ)
            if name in FEW_THREADS or name.startswith(OUR_VARIABLES)
        ]
        variables.append(HASH_SEED)
    options += [
        ("--mca", name, value)
        for name, value in parameters.items()
        if f"OMPI_MCA_{name}" not in os.environ  # which mpirun reads
    ]
    return options + [("-x", variable) for variable in variables]


def _subject(option: Option) -> str:
    """Returns the subject of an option, by which the user's own replaces it."""
    return option[1 if option[0] in ("--mca", "-x", "-genv") else 0].partition("=")[0]


def _threads(ranks: int) -> dict[str, str]:
    """Returns the variables to set for that many processes on this host."""
    if ranks <= _cpus():
        return {}
    threads = {name: value for name, value in FEW_THREADS.items() if name not in os.environ}
    if "TF_NUM_INTRAOP_THREADS" in threads and SERVER_THREADS not in os.environ:
        threads[SERVER_THREADS] = str(_cpus())  # as the workers wait for its steps
    return threads


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def _is_one_host(host: str | None, hostfile: str | None) -> bool:
    return not (host or hostfile or _allocated_hosts() > 1)


def _allocated_hosts() -> int:
    """Returns how many hosts mpirun takes from Slurm if none are named."""
    said = os.environ.get("SLURM_JOB_NUM_NODES", "")
    return int(said) if said.isdigit() else 1
