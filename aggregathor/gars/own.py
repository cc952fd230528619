"""A rule of the user's own by name: a function ``(stack_nd, *, f, **parameters)`` of a module."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from aggregathor import own
from aggregathor.compositions import declare_as
from aggregathor.errors import UserError
from aggregathor.gars.base import Aggregated, gar, registered

_CONDITION = "n >= 2f + 1"  # less than which no rule tolerates


def load(name: str) -> None:
    """Registers "module:function" under this name, unless it is.

    A function that ``gars.gar`` or ``gars.pre_aggregation`` decorates has what it was given there.
    Any other gives the aggregate [d], or an ``Aggregated``. Its condition is "n >= 2f + 1".

    Raises:
      UserError: there is no such function, or it is no rule.
    """
    if name in registered:
        return
    found = own.load(name, "rule")
    for each in [*registered.values()]:
        if found in (each, each.function):
            registered[name] = each
            declare_as(name, each.name)
            return
    _check_signature(name, found)
    gar(name, condition=_CONDITION, cost="unknown", source=name)(_aggregating(found))


def _aggregating(function: Callable[..., Any]) -> Callable[..., Aggregated]:
    @functools.wraps(function)
    def aggregate(stack_nd: Any, **given: Any) -> Aggregated:
        made = function(stack_nd, **given)
        if isinstance(made, Aggregated):
            return made
        # What it used of whom is not known, so nobody is suspected.
        return Aggregated(made, np.ones(int(stack_nd.shape[0])))

    return aggregate


def _check_signature(name: str, function: Callable[..., Any]) -> None:
    try:
        parameters = [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):
        parameters = []
    names = [each.name for each in parameters]
    if names[:1] != ["stack_nd"] or "f" not in names:
        raise UserError(
            f"{name} is no rule: a rule is a function (stack_nd, *, f) that returns the aggregate, "
            f"and this one takes ({', '.join(names)})"
        )
