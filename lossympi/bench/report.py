"""What was measured, as plain text of 80 columns."""

from __future__ import annotations

import os
import platform
import textwrap
from collections import Counter
from pathlib import Path

import numpy as np


def describe_machine() -> str:
    """Returns the processor, the number of cores that may be used, and the kernel."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores, {platform.system()} {platform.release().split('-')[0]}"


def p99(seconds: list[float]) -> float:
    """Returns the 99th percentile, as one that was measured: of few, the largest."""
    return float(np.quantile(seconds, 0.99, method="higher"))


def past_deadline_s(udp: dict) -> list[float]:
    """Returns by how much each round exceeded its t_B, where it did; else negative."""
    return [r - t for r, t in zip(udp["round_s"], udp["deadline_s"], strict=True)]


def as_text(result: dict) -> str:
    """Returns the tables of what ``python -m lossympi.bench`` has measured."""
    options = result["options"]
    n, floats = result["workers"], options["floats"]
    lines = [
        f"{n} worker{'s' * (n > 1)}, {floats} floats ({floats * 4 / 1e6:.1f} MB) each way, "
        f"{options['rounds']} rounds; times in ms",
        "",
        f"{'':10}{'round':>18}{'broadcast':>20}",
        f"{'':10}{'median':>9}{'p99':>9}{'median':>11}{'p99':>9}",
    ]
    notes = {
        "udp": f"{options['drop']:.0%} dropped on arrival, auth {options['auth']}",
        "tcp": "congestion control {how}; --drop spares it",
        "mpi": "{how}; --drop spares it",
    }
    for name, title in (("udp", "LossyMPI"), ("tcp", "TCP"), ("mpi", "MPI")):
        if name not in result:
            continue
        of = result[name]
        note = notes[name].format(how=of.get("how"))
        if of.get("too_late"):
            note = f"stopped after {options['limit']:g} s; {note}"
        numbers = ""
        if len(of["broadcast_s"]) > 0:
            for kind, width in (("round_s", 9), ("broadcast_s", 11)):
                numbers += f"{np.median(of[kind]) * 1e3:{width}.1f}{p99(of[kind]) * 1e3:9.1f}"
        lines += _wrapped(f"{title:10}{numbers:38}  ", note)
    if "udp" in result:
        lines += ["", *_details(result)]
    lines += [
        "",
        *_wrapped("", f"{result['machine']}; {result['date']}; LossyMPI on {_where(result)}"),
    ]
    lines += _wrapped("", result["command"])
    return "\n".join(lines) + "\n"


def _details(result: dict) -> list[str]:
    udp = result["udp"]
    cpu_ms = [np.median(each) * 1e3 if each else 0.0 for each in udp["cpu_s_by_rank"]]
    closed = Counter(udp["closed_by"])
    delivered_n = np.mean(udp["delivered_n"], axis=0)
    wrong = udp["wrong_floats"], udp["wrong_floats_of_models"]
    facts = {
        "delivered": f"{delivered_n.mean():.2%} (workers: {delivered_n.min():.2%} to "
        f"{delivered_n.max():.2%}; worst round {np.min(np.mean(udp['delivered_n'], axis=1)):.2%})",
        "misplaced": f"{wrong[0]} floats of gradients, {wrong[1]} of models; must be 0",
        "closed": ", ".join(f"{reason} {count}" for reason, count in closed.items()),
        "t_B": f"{udp['deadline_s'][-1] * 1e3:.1f} ms in the last round (it is learnt); a "
        f"round ended {max(past_deadline_s(udp)) * 1e3:+.1f} ms past its own at most",
        "CPU": f"{cpu_ms[0]:.1f} ms a round on the server, {min(cpu_ms[1:]):.1f} to "
        f"{max(cpu_ms[1:]):.1f} on the workers (median)",
        "datagrams": ", ".join(f"{reason} {count}" for reason, count in udp["datagrams"].items()),
    }
    return [line for name, fact in facts.items() for line in _wrapped(f"{name:10}", fact)]


def _where(result: dict) -> str:
    hosts = sorted(set(result["hosts"]))
    return f"{len(hosts)} hosts" if len(hosts) > 1 else "one host"


def _wrapped(first: str, text: str) -> list[str]:
    indent = " " * min(len(first), 20)
    return textwrap.wrap(
        text, 80, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False
    )
