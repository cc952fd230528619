"""Measures LossyMPI between hosts against its goals and TensorFlow's gRPC; rewrites BENCHMARKS.md.

The hosts are network namespaces (``scripts/lossympi-hosts``) with packets of 1500 bytes. Losses are
nftables' and hit LossyMPI and gRPC alike, on arrival.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.goals import HEADER, Goal
from experiments.machine import describe_machine
from lossympi.bench.report import p99, past_deadline_s

HOSTS = "scripts/lossympi-hosts"
BENCH = ("-m", "lossympi.bench", "--only=udp")
GRPC = ("-m", "experiments.baselines.grpc_transport")
NOTES = "\n## Notes\n"
_TURNS = 3  # of the cases that are compared, a repeat: short ones, and the machine is not alone


@dataclass(frozen=True)
class Case:
    """A job: how the hosts are made, and what runs on them."""

    hosts: tuple[str, ...]
    python: tuple[str, ...]

    @property
    def is_compared(self) -> bool:
        """Whether a goal divides its time by another's."""
        return "--cores" in self.hosts and "--gil" not in self.python

    @property
    def command(self) -> str:
        """As one would type it."""
        return " ".join((HOSTS, *self.hosts, "python", *self.python))


def cases(rounds: int, incast_bps: float) -> dict[str, Case]:
    """Returns what is measured, in an order that puts side by side what is compared.

    Two hosts that are compared with two others have a core each. Else the scheduler at times puts
    sender and receiver on the same one for a while, and a round takes 18 ms in place of 13.
    """
    some, more = f"--rounds={rounds}", f"--rounds={3 * rounds}"  # t_B is learnt in 20 rounds
    incast = f"--rate-bps={incast_bps:g}"
    found = {
        "no loss": Case(("--cores",), (*BENCH, some)),
        "10%": Case(("--cores", "--drop=100"), (*BENCH, some)),
        "no tags": Case(("--cores",), (*BENCH, some, "--auth=none")),
        "pure Python": Case(("--cores",), (*BENCH, some, "--gil")),
        "50%": Case(("--drop=500",), (*BENCH, more)),
        "silent": Case(("--hosts=3", "--drop=100"), (*BENCH, more, "--silent", "--timeout=1")),
        "ENDs lost": Case(("--drop=100", "--lose-kind=6"), (*BENCH, more)),
        "4 workers": Case(("--hosts=5",), (*BENCH, some, incast)),
        "19 workers": Case(("--hosts=20",), (*BENCH, some, incast)),
    }
    for congestion in ("cubic", "bbr"):
        for drop in (0, 100):
            found[f"gRPC, {congestion}, {drop // 10}%"] = Case(
                ("--cores", "--plain", f"--congestion={congestion}"),
                (*GRPC, some, f"--drop={drop}", "--limit=60", "--cores"),
            )
    return found


def main(argv: list[str] | None = None) -> int:
    """Measures, prints the table and writes it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.transport", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="of a case (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of all cases (%(default)s)")
    parser.add_argument("--incast-bps", type=float, default=8e9, help="the server's rate then")
    parser.add_argument("--only", help="cases whose name has this in it; nothing is written then")
    parser.add_argument("--output", type=Path, default=Path("lossympi/BENCHMARKS.md"))
    parser.add_argument("--json", type=Path, help="write all samples there")
    arguments = parser.parse_args(argv)
    if not Path(HOSTS).exists():
        parser.error("run it in the root of the repository")
    can = subprocess.run([HOSTS, "--check"], capture_output=True, text=True)
    if can.returncode != 0:
        parser.error(can.stderr.strip())

    chosen = cases(arguments.rounds, arguments.incast_bps)
    if arguments.only:
        chosen = {name: case for name, case in chosen.items() if arguments.only in name}
    runs: dict[str, list[dict]] = {name: [] for name in chosen}
    loads = []
    for repeat in range(arguments.repeats):
        for turn in range(_TURNS):
            for name, case in chosen.items():
                if turn > 0 and not case.is_compared:
                    continue
                if name == "gRPC, cubic, 10%" and repeat + turn > 0:
                    continue  # half a minute a step
                sys.stderr.write(f"{repeat + 1}/{arguments.repeats} {case.command}\n")
                loads.append(os.getloadavg()[0])
                runs[name].append(_run(case))
    if arguments.json:
        arguments.json.write_text(json.dumps(runs) + "\n")
    if arguments.only:
        for name, of in runs.items():
            sys.stdout.write(f"{name}: {_summary(of)}\n")
        return 0
    text = _as_markdown(chosen, runs, loads, arguments)
    sys.stdout.write(text)
    if arguments.output.exists():  # what a person has written there stays
        _, heading, rest = arguments.output.read_text().partition(NOTES)
        text += heading + rest
    arguments.output.write_text(text)
    return 0


def _run(case: Case) -> dict:
    command = [HOSTS, *case.hosts, sys.executable, *case.python]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "samples.json"
        if case.python[: len(BENCH)] == BENCH:
            command.append(f"--json={file}")
        done = subprocess.run(
            command,
            env={**os.environ, "PATH": path, "PYTHONPATH": os.getcwd()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )
        if done.returncode != 0:
            raise SystemExit(f"{case.command} failed:\n{done.stdout}\n{done.stderr}")
        if file.exists():
            return json.loads(file.read_text())["udp"]
        return json.loads(done.stdout.splitlines()[-1])


# ---- What the samples say


def _pooled(runs: Iterable[dict], name: str) -> np.ndarray:
    return np.concatenate([np.asarray(run[name], float) for run in runs])


def _median_ms(runs: list[dict], name: str) -> float:
    return float(np.median(_pooled(runs, name))) * 1e3


def _cpu_ms(runs: list[dict], rank: int) -> float:
    return float(np.median(np.concatenate([run["cpu_s_by_rank"][rank] for run in runs]))) * 1e3


def _delivered(runs: list[dict]) -> float:
    return float(np.mean([np.mean(run["delivered_n"]) for run in runs]))


def _past_ms(runs: list[dict]) -> float:
    """Returns the 99th percentile of what rounds took beyond their t_B, where they reached it."""
    return p99([past for run in runs for past in past_deadline_s(run)]) * 1e3


def _summary(runs: list[dict]) -> str:
    if "seconds" in runs[0]:
        ms = _pooled(runs, "seconds") * 1e3
        return f"median {np.median(ms):.1f} ms, {ms.min():.1f} to {ms.max():.1f}, {len(ms)} steps"
    ms = _pooled(runs, "round_s") * 1e3
    closed = [reason for run in runs for reason in run["closed_by"]]
    reasons = ", ".join(f"{closed.count(each)} {each}" for each in sorted(set(closed)))
    counts: dict[str, int] = {}
    for run in runs:
        for reason, count in run["datagrams"].items():
            counts[reason] = counts.get(reason, 0) + count
    counts.pop("accepted", None)
    rest = ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "nothing else"
    return (
        f"round {np.median(ms):.1f} ms, p99 {p99(ms.tolist()):.1f}, least {ms.min():.1f}; "
        f"broadcast {_median_ms(runs, 'broadcast_s'):.1f} ms; delivered {_delivered(runs):.2%}; "
        f"CPU {_cpu_ms(runs, 0):.1f} ms on the server, {_cpu_ms(runs, 1):.1f} on worker 0; "
        f"{reasons}; datagrams: {rest}; {len(ms)} rounds"
    )


def _ratio(runs: list[dict], base: list[dict], of: str, base_of: str | None = None) -> float:
    """Returns the median, over turns, of one case's median time over another's in the same turn."""
    if len(runs) != len(base):
        return _median_ms(runs, of) / _median_ms(base, base_of or of)
    pairs = zip(runs, base, strict=True)
    return float(np.median([np.median(a[of]) / np.median(b[base_of or of]) for a, b in pairs]))


def _goals(runs: dict[str, list[dict]]) -> list[Goal]:
    clear, lossy, bare = runs["no loss"], runs["10%"], runs["no tags"]
    # A rank both sends and receives 7 MB in a round, and tags what it sends or checks what it gets.
    tags = [
        float(
            np.median([_cpu_ms([a], r) - _cpu_ms([b], r) for a, b in zip(clear, bare, strict=True)])
        )
        / 2
        for r in (0, 1)
    ]
    spun = 100 * (_delivered(clear) - _delivered(runs["pure Python"]))
    goals = []
    for congestion, must, stretch in (("cubic", 100, 800), ("BBR", 3, 6)):
        grpc = runs[f"gRPC, {congestion.lower()}, 10%"]
        faster = 1 / _ratio(lossy, grpc, "round_s", "seconds")
        name = f"7 MB at 10% loss, times faster than gRPC, {congestion}"
        goals.append(Goal(name, must, stretch, faster, "x", True))
    goals.append(Goal("round at 10% loss over 0%", 1.1, 1.04, _ratio(lossy, clear, "round_s"), "x"))
    for congestion in ("cubic", "BBR"):
        grpc = runs[f"gRPC, {congestion.lower()}, 0%"]
        for case, tagged in ((clear, ""), (bare, ", neither with tags")):
            name = f"7 MB at 0% loss over gRPC, {congestion}{tagged}"
            goals.append(Goal(name, 1, 1, _ratio(case, grpc, "round_s", "seconds"), "x"))
    broadcasts = _ratio(lossy, clear, "broadcast_s")
    goals += [
        Goal("7 MB at 0% loss", 15, 9, _median_ms(clear, "round_s"), "ms"),
        Goal("broadcast at 10% loss over 0%", 1.6, 1.4, broadcasts, "x"),
    ]
    for name, must, stretch in (("4 workers", 60, 40), ("19 workers", 300, 185)):
        percent = 100 * _delivered(runs[name])
        # A round that loses most of it is soon over.
        ms = _median_ms(runs[name], "round_s") if percent >= 99.9 else float("inf")
        goals += [
            Goal(f"incast of {name}: delivered", 99.9, 99.9, percent, "%", True),
            Goal(f"incast of {name}, if delivered", must, stretch, ms, "ms"),
        ]
    for name in ("silent", "ENDs lost", "50%"):
        goals.append(Goal(f"p99 round beyond t_B, {name}", 2, 2, _past_ms(runs[name]), "ms"))
    goals += [
        Goal("authentication of 7 MB, server", 3, 1.5, tags[0], "ms CPU"),
        Goal("authentication of 7 MB, worker", 3, 1.5, tags[1], "ms CPU"),
        Goal("extra loss while pure Python runs", 5, 1, spun, "%"),
    ]
    return goals


def _as_markdown(
    chosen: dict[str, Case],
    runs: dict[str, list[dict]],
    loads: list[float],
    arguments: argparse.Namespace,
) -> str:
    wrong = sum(
        run["wrong_floats"] + run["wrong_floats_of_models"]
        for of in runs.values()
        for run in of
        if "wrong_floats" in run
    )
    lines = [
        "# LossyMPI between hosts: goals and figures",
        "",
        f"- Machine: {describe_machine()}. Hosts are network namespaces on it (`{HOSTS}`):",
        "  packets of 1500 bytes, no offloads, losses by nftables on arrival.",
        "  With `--cores` a host, LossyMPI's or gRPC's, has a core to itself and receives there.",
        f"- Date: {datetime.date.today().isoformat()}. Load average while measuring: "
        f"{min(loads):.1f} to {max(loads):.1f}.",
        f"- Command: `python -m experiments.transport --rounds={arguments.rounds} "
        f"--repeats={arguments.repeats} --incast-bps={arguments.incast_bps:g}`",
        "  (`make bench-lossympi`), which rewrites this file. Cases take turns.",
        "- A vector has 1750000 floats, 7.0 MB. A round is the server's `collect`; gRPC's is a",
        f"  step that moves the tensor from worker to server (TensorFlow {_tensorflow(runs)}).",
        f"- Of all floats delivered, {wrong} had other bits than were sent.",
        "",
        *HEADER,
        *(goal.row() for goal in _goals(runs)),
        "",
        "A ratio is the median of the ratios of the cases' medians in one turn; other figures are",
        "medians of all rounds, authentication the median difference of CPU time in one turn.",
        "",
        "## Cases",
        "",
    ]
    for name, case in chosen.items():
        lines += [f"- **{name}**: {_summary(runs[name])}.", f"  `{case.command}`"]
    return "\n".join(lines) + "\n"


def _tensorflow(runs: dict[str, list[dict]]) -> Any:
    return runs["gRPC, bbr, 0%"][0]["tensorflow"]


if __name__ == "__main__":
    sys.exit(main())
