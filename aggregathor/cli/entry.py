"""The command ``aggregathor`` where its packages may be missing: then the doctor alone works."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lossympi import packages

# What the command itself imports; the doctor looks for all else.
_NEEDED = {"absl": "absl-py", "numpy": "numpy", "rich": "rich"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    names = packages.missing(_NEEDED)
    if not names:
        from aggregathor.cli.main import main as run

        return run(argv)
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] != ["doctor"]:
        sys.stderr.write(f"aggregathor: error: {packages.lacks(names)}\n")
        return 2
    from aggregathor.cli import doctor

    facts = doctor.inspect_machine()
    for part, found in doctor.table(facts):
        sys.stdout.write(f"{part:16}{found}\n")
    wrong = [packages.lacks(names).replace("this", "This", 1), *doctor.findings(facts)]
    sys.stdout.write("\nWhat is wrong:\n")
    for number, text in enumerate([*wrong, *doctor.not_needed_yet(facts)], start=1):
        sys.stdout.write(f"{number}. {text}\n")
    return 1
