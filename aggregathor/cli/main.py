"""The command ``aggregathor``: starts training, lists rules and attacks, checks this machine."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.table import Table

from aggregathor import log
from aggregathor.cli import doctor
from aggregathor.cli.tf_log import quiet_tensorflow
from aggregathor.errors import UserError
from aggregathor.protocols.registry import PROTOCOLS, Protocol
from aggregathor.version import __version__

if TYPE_CHECKING:
    from types import ModuleType

    from aggregathor.attacks import Attack
    from aggregathor.gars import Gar, Rule

PIPED_COLUMNS = 10_000  # more than any row: one line each
GAP_COLUMNS = 2  # between the columns of a table
SHORT_COLUMNS = 14  # cells up to this, such as "n >= 2f + 3", stay on one line
FORMS = {  # of attacks: who sees what
    "omniscient": "sees the honest gradients",
    "local": "sees its own gradient alone",
    "coordinates": "hits coordinates of any gradient",
    "labels": "computes its gradients on other labels",
}
SPARE_COLUMNS = 6  # a table whose words leave less to spare is stacked instead


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    0: all is well; 1: the doctor found something; 2: a mistake of the user's; 130: Ctrl-C.
    """
    log.install()
    try:
        try:
            args = _parser().parse_args(argv)
            return args.command(args)
        finally:
            sys.stdout.flush()
    except UserError as error:
        sys.stderr.write(f"aggregathor: error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aggregathor",
        description="Distributed training that tolerates up to f of n workers that send anything.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"aggregathor {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    about = "start a script on a server and its workers"
    # It parses the words that follow itself, options too: none begins with NUL.
    run = commands.add_parser("run", help=about, prefix_chars="\0", add_help=False)
    run.add_argument("words", nargs=argparse.REMAINDER)
    run.set_defaults(command=_run)

    about = "list the rules and pre-aggregations: condition, cost, source, parameters"
    gars = commands.add_parser("gars", help=about, description=about, allow_abbrev=False)
    gars.set_defaults(command=_gars)

    about = "list the attacks: who sees what, parameters and source"
    attacks = commands.add_parser("attacks", help=about, description=about, allow_abbrev=False)
    attacks.set_defaults(command=_attacks)

    about = "list the protocols: condition, verbs of the link, source, parameters"
    protocols = commands.add_parser("protocols", help=about, description=about, allow_abbrev=False)
    protocols.set_defaults(command=_protocols)

    about = "show how many of n workers may be Byzantine, for each rule"
    advise = commands.add_parser("advise", help=about, description=about, allow_abbrev=False)
    advise.add_argument("--n", type=int, required=True, help="how many workers there are")
    advise.add_argument("--f", type=int, help="how many of them may be Byzantine")
    advise.add_argument(
        "--gar",
        action="append",
        metavar="RULE",
        help='only this rule, or this composition: "bucketing(s=2)+multi-krum"; may be repeated',
    )
    advise.set_defaults(command=_advise)

    about = "draw what the server saw of each worker, and accuracies, to a PNG"
    plot = commands.add_parser("plot", help=about, description=about, allow_abbrev=False)
    plot.add_argument(
        "folders",
        nargs="+",
        metavar="FOLDER",
        help="of --monitor, or of `python -m experiments`; several are compared",
    )
    plot.add_argument("--output", default="workers.png", metavar="FILE", help="(workers.png)")
    plot.set_defaults(command=_plot)

    about = "show what is installed, what is wrong with it and how to fix it"
    check = commands.add_parser(
        "doctor",
        help=about,
        description=f"{about}; exit status 1 if something is wrong",
        allow_abbrev=False,
    )
    check.set_defaults(command=_doctor)
    return parser


def _run(args: argparse.Namespace) -> int:
    from aggregathor.cli import launch

    return launch.main(args.words)


def _plot(args: argparse.Namespace) -> int:
    from aggregathor.cli import plot

    sys.stdout.write(f"{plot.plot(args.folders, args.output)}\n")
    return 0


def _gars(args: argparse.Namespace) -> int:
    gars = _rules()
    console = _console()
    rules = [
        [rule.name, str(rule.condition), rule.cost, rule.source, _parameters(rule.parameters)]
        for rule in gars.GARS.values()
    ]
    _show(console, ["rule", "needs", "cost", "source", "parameters"], rules)
    console.print()
    mixings = [
        [
            *(pre.name, str(pre.condition), pre.rows_text_of("n")),
            *(pre.cost, pre.source, _parameters(pre.parameters)),
        ]
        for pre in gars.PRE_AGGREGATIONS.values()
    ]
    headers = ["pre-aggregation", "needs", "rows", "cost", "source", "parameters"]
    _show(console, headers, mixings)
    console.print()
    _print(console, 'Join them with "+", the rule last: "bucketing(s=3)+multi-krum(m=5)".')
    _print_notes(console, gars.GARS.values())
    return 0


def _print_notes(console: Console, rules: Iterable[Gar]) -> None:
    """Prints what tables do not tell of rules."""
    for note in dict.fromkeys(rule.note for rule in rules if rule.note):
        console.print()
        _print(console, note)


def _attacks(args: argparse.Namespace) -> int:
    rows = [
        [a.name, f"{a.form}: {FORMS[a.form]}", a.source, _parameters(a.parameters)]
        for a in _known_attacks().values()
    ]
    _show(_console(), ["attack", "form", "source", "parameters"], rows)
    return 0


def _protocols(args: argparse.Namespace) -> int:
    rows = [
        [
            *(each.name, each.about, _needs(each)),
            *(", ".join(each.link), each.source, _parameters(each.parameters)),
        ]
        for each in PROTOCOLS.values()
    ]
    headers = ["protocol", "what it does", "needs", "link", "source", "parameters"]
    _show(_console(), headers, rows)
    return 0


def _needs(protocol: Protocol) -> str:
    needs = [protocol.condition] if protocol.condition else []
    if protocol.has_rule:
        of = "" if protocol.rule_n == "n" else f" with n = {protocol.rule_n}"
        needs.append(f"what its rule needs{of}")
    return " and ".join(needs)


def _parameters(defaults: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in defaults.items()) or "none"


def _advise(args: argparse.Namespace) -> int:
    n, f = args.n, args.f
    if n < 1:
        raise UserError(f"--n is a number of workers, n >= 1, got {n}")
    if f is not None and not 0 <= f < n:
        raise UserError(f"--f is how many of n={n} workers may be Byzantine, 0 <= f < n, got {f}")

    gars = _rules()
    rules = [gars.compose(text) for text in args.gar or gars.GARS]
    headers = ["rule", "needs", f"largest f for n={n}"]
    rows = [[rule.name, rule.condition, _largest_f(rule, n)] for rule in rules]
    if f is not None:
        headers.append(f"with f={f}")
        for row, rule in zip(rows, rules, strict=True):
            row.append(_verdict(rule, n, f))
    console = _console()
    _show(console, headers, rows)
    _print_notes(console, [rule.gar for rule in rules])
    own = [each for each in PROTOCOLS.values() if each.condition]
    if own and not args.gar:
        console.print()
        _show(console, ["protocol", *headers[1:]], [_protocol_row(each, n, f) for each in own])
    return 0


def _protocol_row(protocol: Protocol, n: int, f: int | None) -> list[str]:
    largest = protocol.largest_f(n)
    row = [protocol.name, _needs(protocol)]
    row.append(f"none: {protocol.refusal(n, 0)}" if largest is None else str(largest))
    return row if f is None else [*row, protocol.refusal(n, f) or "sound"]


def _largest_f(rule: Rule, n: int) -> str:
    largest = rule.largest_f(n)
    if largest is None:
        return f"none: {_refusal(rule, n, 0)}"
    return str(largest) if rule.robust else "0, no protection"


def _verdict(rule: Rule, n: int, f: int) -> str:
    refusal = _refusal(rule, n, f)
    if refusal:
        return refusal
    if f > 0 and not rule.robust:
        return f"{rule.name} gives no protection: one Byzantine worker decides the result."
    return "sound"


def _refusal(rule: Rule, n: int, f: int) -> str:
    try:
        rule.check(n=n, f=f)
    except UserError as error:
        return str(error)
    return ""


def _doctor(args: argparse.Namespace) -> int:
    facts = doctor.inspect_machine()
    console = _console()
    _show(console, ["part", "found"], doctor.table(facts))
    wrong = doctor.findings(facts)
    console.print()
    if wrong:
        _list(console, "What is wrong:", wrong)
    else:
        console.print("Nothing is wrong.")
    later = doctor.not_needed_yet(facts)
    if later:
        console.print()
        _list(console, "Not needed yet:", later)
    return 1 if wrong else 0


def _list(console: Console, title: str, findings: Sequence[str]) -> None:
    console.print(title, style="bold")
    listing = Table.grid(padding=(0, 1, 0, 0))
    listing.add_column(justify="right")
    listing.add_column(overflow="fold")
    for number, finding in enumerate(findings, start=1):
        listing.add_row(f"{number}.", finding)
    _print(console, listing)


def _rules() -> ModuleType:
    """Returns ``aggregathor.gars``, which needs TensorFlow."""
    try:
        with quiet_tensorflow():
            from aggregathor import gars
    except ImportError as error:
        raise UserError(
            f"the rules need TensorFlow, and it does not import: {error}\n"
            "`aggregathor doctor` says what to do."
        ) from error
    return gars


def _known_attacks() -> Mapping[str, Attack]:
    try:
        from aggregathor.attacks import ATTACKS
    except ImportError as error:
        raise UserError(f"the attacks need NumPy, and it does not import: {error}") from error
    return ATTACKS


def _console() -> Console:
    """Returns a console as wide as the terminal or ``COLUMNS``; in a pipe each row is a line."""
    width = shutil.get_terminal_size(fallback=(PIPED_COLUMNS, 24)).columns
    return Console(width=width, markup=False, emoji=False, highlight=False)


def _show(console: Console, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a whole table: cells fold, and are stacked if the console is too narrow for that."""
    widths = _widths(headers, rows, console.width)
    if widths is None and len(headers) > 2:
        names = headers[1:]
        headers = [headers[0], ""]
        rows = [
            [first, "\n".join(f"{name}: {cell}" for name, cell in zip(names, rest, strict=True))]
            for first, *rest in rows
        ]
        widths = _widths(headers, rows, console.width)
    table = Table(*headers, box=None, padding=(0, GAP_COLUMNS, 0, 0), pad_edge=False)
    for i, column in enumerate(table.columns):
        column.overflow = "fold"
        column.width = widths[i] if widths else None
    for row in rows:
        table.add_row(*row)
    _print(console, table)


def _print(console: Console, shown: RenderableType) -> None:
    """Prints without the spaces that a line would end in."""
    with console.capture() as captured:
        console.print(shown)
    sys.stdout.write(re.sub(r" +$", "", captured.get(), flags=re.MULTILINE))


def _widths(headers: Sequence[str], rows: Sequence[Sequence[str]], total: int) -> list[int] | None:
    """Divides the total so that no word is broken; returns None if it is too little."""
    columns = list(zip(headers, *rows, strict=True))
    wanted = [max(len(line) for cell in cells for line in cell.splitlines()) for cells in columns]
    least = [max(map(_least_width, cells)) for cells in columns]
    spare = total - sum(least) - GAP_COLUMNS * (len(columns) - 1)
    if spare < SPARE_COLUMNS:
        return None
    missing = [most - few for few, most in zip(least, wanted, strict=True)]
    share = min(1.0, spare / max(1, sum(missing)))
    return [few + int(share * more) for few, more in zip(least, missing, strict=True)]


def _least_width(cell: str) -> int:
    return len(cell) if len(cell) <= SHORT_COLUMNS else max(map(len, cell.split()))
