"""The call that tries everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from aggregathor.errors import UserError
from aggregathor.gars import Condition
from aggregathor.testing.clauses import CLAUSES
from aggregathor.testing.stacks import DTYPES
from aggregathor.testing.subject import Subject


class ContractError(AssertionError):
    """A rule breaks the contract.

    Attributes:
      failures: what is wrong, by the name of the clause.
    """

    def __init__(self, name: str, failures: dict[str, list[str]], num_clauses: int) -> None:
        """Builds the message from all failures."""
        self.failures = failures
        lines = [
            f"{name} breaks {len(failures)} of the {num_clauses} clauses of the contract of a rule:"
        ]
        for clause, found in failures.items():
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            lines.append(f"- {clause}: {found[0]}{more}")
        super().__init__("\n".join(lines))


class Report(NamedTuple):
    """What was tried on a rule that keeps the contract.

    Attributes:
      name: of the rule.
      stacks: how many stacks each clause gave to the rule.
      skipped: why a clause was not tried on this rule, or not to its end, by the clause's name.
    """

    name: str
    stacks: dict[str, int]
    skipped: dict[str, str]


def check_gar(
    gar: Callable[..., Any],
    condition: str | Condition | None = None,
    *,
    robust: bool | None = None,
    tolerates_missing: bool | None = None,
    dtypes: Sequence[str] = DTYPES,
    largest_n: int = 100,
    seed: int = 0,
    equivariant: bool = True,
    ties: bool = True,
    threads: bool = True,
    **parameters: Any,
) -> Report:
    """Tries ``gar`` against every clause of the contract.

    Args:
      gar: called as ``gar(stack_nd, f=f, **parameters)`` with a tensor or an array [n, d], gives a
        tensor or an array [d]. A rule of ``GARS``, a function of ``aggregathor.gars`` or your own.
      condition: when the rule keeps its promise. By default the rule's own, or "n >= 2f + 3".
      robust: False for a rule that promises nothing under attack. By default the rule's own.
      tolerates_missing: False for a rule that propagates NaN. By default true but for ``average``.
      dtypes: names of those that the rule takes.
      largest_n: the most rows to try; fewer for a rule of high cost.
      seed: of all random data.
      equivariant: False for a rule whose result does not scale and move with the rows, such as one
        that clips. Ours do.
      ties: False for a rule that lets rows leave one by one, where the lower of two equal rows may
        be the first to go.
      threads: whether to try the rule on one thread and on four, in two processes that run at once
        and import TensorFlow: seconds. Skipped where they cannot import the rule.
      **parameters: given to the rule.

    Returns:
      What was tried.

    Raises:
      ContractError: the rule breaks a clause; the message lists all that it breaks.
      UserError: the rule judges gradients by validation data, and here are none.
    """
    subject = Subject.of(
        gar,
        condition,
        robust=robust,
        tolerates_missing=tolerates_missing,
        dtypes=tuple(dtypes),
        largest_n=largest_n,
        seed=seed,
        equivariant=equivariant,
        ties=ties,
        threads=threads,
        parameters=parameters,
    )
    if subject.needs_validation:
        raise UserError(
            f"{subject.name} judges gradients by the loss on validation data, and the stacks here "
            "have none: give a function that applies it with a gars.Context of its own"
        )
    failures, stacks = {}, {}
    for name, clause in CLAUSES.items():
        before = subject.num_stacks
        found = clause(subject)
        stacks[name] = subject.num_stacks - before
        if found:
            failures[name] = found
    if failures:
        raise ContractError(subject.name, failures, len(CLAUSES))
    return Report(subject.name, stacks, subject.skipped)
