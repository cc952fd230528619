"""Writes what was measured: Markdown and a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.bench.growth import RULES
from experiments.bench.table import goal_of

# One row more may cost this much more a value; a method that is worse than the one it follows
# would cost more.
MOST_AT_CLIFF = 1.5
ALLOWED_SHARE, ALLOWED_MIB = 0.1, 64


def as_markdown(facts: dict[str, Any], result: dict[str, Any]) -> str:
    """The tables, with machine, date and command above them."""
    title = (
        f"# Time of the rules, n = {result['n']}, f = {result['f']}, d = {result['d']:,} float32"
    )
    lines = [title, "", *(f"- {key}: {value}" for key, value in facts.items())]
    for part in (_table, _memory, _growth, _cliffs):
        lines += ["", *part(result)]
    return "\n".join(lines) + "\n"


def verdict(name: str, ratio: float, kernels: str) -> str:
    """ "missed", "met", "met, stretch too", or nothing where no goal is."""
    goal = goal_of(name, kernels)
    if goal is None:
        return ""
    if ratio > goal.must:
        return "missed"
    return "met" if ratio > goal.stretch else "met, stretch too"


def _table(result: dict[str, Any]) -> Iterator[str]:
    yield (
        f"Ratios to `tf.reduce_mean(stack, 0)` in the same process, in turn, medians of up to "
        f"{result['repeats']} pairs. The goals are for 2 threads."
    )
    yield ""
    yield "| what | ms | ratio | must | stretch | goal | pairs |"
    yield "| --- | ---: | ---: | ---: | ---: | --- | ---: |"
    for row in result["table"]:
        goal = goal_of(row["name"], result["kernels"])
        goals = f"{goal.must:.1f} | {goal.stretch:.1f}" if goal else " | "
        found = verdict(row["name"], row["ratio"], result["kernels"])
        measured = f"{row['ms']:.2f} | {row['ratio']:.2f}"
        yield f"| {row['name']} | {measured} | {goals} | {found} | {row['pairs']} |"


def _memory(result: dict[str, Any]) -> Iterator[str]:
    input_mib = 4 * result["n"] * result["d"] / 2**20
    allowed_mib = max(ALLOWED_SHARE * input_mib, ALLOWED_MIB)
    yield (
        f"Peak memory beyond the input of {input_mib:.1f} MiB, the result included; the most that "
        f"is allowed is {allowed_mib:.0f} MiB."
    )
    yield ""
    yield "| rule | MiB | share of the input | |"
    yield "| --- | ---: | ---: | --- |"
    for name, mib in result["peak_mib"].items():
        if mib is None:
            yield f"| {name} | | | unknown to this operating system |"
        else:
            within = "within" if mib <= allowed_mib else "too much"
            yield f"| {name} | {mib:.1f} | {mib / input_mib:.0%} | {within} |"


def _growth(result: dict[str, Any]) -> Iterator[str]:
    yield "Growth over n and d, f = (n - 3) // 4; geometric-median with two iterations."
    tables: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
        ("Milliseconds", lambda row: f"{row['ms']:.3g}"),
        (
            "Nanoseconds per value (n * d of them): even for a cost of O(nd), rising with log² n "
            "where columns are sorted, with n for O(n²d)",
            lambda row: f"{row['ns_per_value']:.3f}",
        ),
        ("Ratio to `tf.reduce_mean`", lambda row: f"{row['ratio']:.2f}"),
    )
    for title, cell in tables:
        yield from ("", f"{title}:", "")
        yield f"| rule, d | {' | '.join(f'n={n}' for n in result['growth_ns'])} |"
        yield "| --- |" + " ---: |" * len(result["growth_ns"])
        for name in RULES:
            for d in result["growth_ds"]:
                of_n = {r["n"]: r for r in result["growth"] if (r["name"], r["d"]) == (name, d)}
                cells = [cell(of_n[n]) if n in of_n else "" for n in result["growth_ns"]]
                yield f"| {name}, {d:,} | {' | '.join(cells)} |"
    if result["left_out"]:
        yield from ("", "Left out:", "")
        yield from (f"- {reason}" for reason in result["left_out"])


def _cliffs(result: dict[str, Any]) -> Iterator[str]:
    yield (
        f"Cliff check: cost per value at n = 33, where sorting changes its method, over that at "
        f"n = 32, timed in turn, as medians of pairs; a cliff is more than {MOST_AT_CLIFF}."
    )
    yield ""
    yield "| rule | d | factor | | pairs |"
    yield "| --- | ---: | ---: | --- | ---: |"
    for row in result["cliffs"]:
        found = "cliff" if row["factor"] > MOST_AT_CLIFF else "none"
        yield f"| {row['name']} | {row['d']:,} | {row['factor']:.2f} | {found} | {row['pairs']} |"


def plot_growth(result: dict[str, Any], path: Path) -> None:
    """Draws time against n at the d of the table or the largest, and against d at its n."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    ds = result["growth_ds"]
    shown_d = result["d"] if result["d"] in ds else max(ds)
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained", sharey=True)
    for panel, over, fixed, value in zip(panels, "nd", "dn", (shown_d, result["n"]), strict=True):
        rows = [row for row in result["growth"] if row[fixed] == value]
        for (name, power), marker in zip(RULES.items(), "osv^D*XP", strict=True):
            points = sorted((row[over], row["ms"]) for row in rows if row["name"] == name)
            style = "--" if power == 2 else "-"
            panel.loglog(*zip(*points, strict=True), style, marker=marker, ms=5, label=name)
        panel.set_title(f"{fixed} = {value:,}", fontsize="medium")
        panel.grid(alpha=0.3, which="both")
    n_panel, d_panel = panels
    n_panel.set_xlabel("n, gradients")
    # 33 would be written over 32.
    shown_ns = [n for n in result["growth_ns"] if n - 1 not in result["growth_ns"]]
    n_panel.set_xticks(shown_ns, [str(n) for n in shown_ns])
    n_panel.set_ylabel("time, ms")
    d_panel.set_xlabel("d, coordinates")
    handles, labels = n_panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.suptitle(f"{result['machine']}; {result['kernels']}, {result['threads']} threads")
    figure.savefig(path, dpi=150)
    plt.close(figure)
