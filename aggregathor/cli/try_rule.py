"""``python -m aggregathor.cli.try_rule RULE``: tries a rule against the contract of a rule.

Exit status 0 if it keeps all clauses, 1 if it breaks one, 2 for a mistake of the user's.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from aggregathor import log
from aggregathor.arguments import parse_arguments
from aggregathor.cli.tf_log import quiet_tensorflow
from aggregathor.errors import UserError


def main(words: Sequence[str]) -> int:
    """Tries a rule; what follows its text are parameters."""
    log.install()
    text, *pairs = words
    try:
        sys.stdout.write(try_rule(text, parse_arguments("RULE", pairs)) + "\n")
    except BreaksContractError as error:
        log.tell_error(str(error))
        return 1
    except UserError as error:
        log.tell_error(str(error))
        return 2
    return 0


class BreaksContractError(UserError):
    """A rule breaks a clause of the contract of a rule."""


def try_rule(text: str, parameters: Mapping[str, Any]) -> str:
    """Tries the last rule of a composition, and returns what it keeps.

    Raises:
      BreaksContractError: it breaks a clause.
      UserError: there is no such rule.
    """
    with quiet_tensorflow():
        from aggregathor import gars
        from aggregathor.testing import ContractError, check_gar
    rule = gars.compose(text, parameters)
    try:
        report = check_gar(rule.gar, threads=False, **rule.parameters)
    except ContractError as error:
        raise BreaksContractError(str(error)) from None
    said = f"{rule.gar.name} keeps the {len(report.stacks)} clauses that were tried"
    for clause, why in report.skipped.items():
        said += f"\n- not tried: {clause}, {why}"
    return said


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
