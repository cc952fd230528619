"""Tries a gradient aggregation rule against the contract that every rule keeps.

>>> import numpy as np
>>> check_gar(lambda stack_nd, f: np.median(stack_nd, axis=0), "n >= 2f + 1")
Traceback (most recent call last):
aggregathor.testing.check.ContractError: the rule breaks 7 of the 19 clauses of the contract ...

``check_gar`` tries every clause of ``CLAUSES`` and reports all that fail. To see one clause at a
time, as a parametrised test does: ``CLAUSES["row order"](Subject.of(rule, "n >= 2f + 1"))`` lists
what is wrong, which should be nothing.

TensorFlow's number of threads cannot change in a process, so "any number of threads" runs the rule
in two more, where they can import it: a rule of ``GARS`` or a function of a module, not a lambda.
The report lists what was ``skipped``.
"""

from aggregathor.testing.check import ContractError, Report, check_gar
from aggregathor.testing.clauses import CLAUSES
from aggregathor.testing.stacks import NEAR, ROUNDING
from aggregathor.testing.subject import Subject

__all__ = ["CLAUSES", "NEAR", "ROUNDING", "ContractError", "Report", "Subject", "check_gar"]
