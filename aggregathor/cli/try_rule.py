"""``python -m aggregathor.cli.try_rule RULE``: tries a rule against the contract of a rule.

Exit status 0 if it keeps all clauses, 1 if it breaks one, 2 for a mistake of the user's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from aggregathor import log
from aggregathor.arguments import parse_arguments
from aggregathor.cli.tf_log import quiet_tensorflow
from aggregathor.errors import UserError


def main(words: Sequence[str]) -> int:
    """Tries the last rule of a composition; what follows its text are parameters."""
    log.install()
    try:
        text, *pairs = words
        with quiet_tensorflow():
            from aggregathor import gars
            from aggregathor.testing import ContractError, check_gar
        rule = gars.compose(text, parse_arguments("RULE", pairs))
        try:
            report = check_gar(rule.gar, threads=False, **rule.parameters)
        except ContractError as error:
            log.tell_error(str(error))
            return 1
    except UserError as error:
        log.tell_error(str(error))
        return 2
    said = f"{rule.gar.name} keeps the {len(report.stacks)} clauses that were tried"
    for clause, why in report.skipped.items():
        said += f"\n- not tried: {clause}, {why}"
    sys.stdout.write(said + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
