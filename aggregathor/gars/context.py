"""What a round lends to the rules that ask for it, and what a rule keeps from round to round."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

# Arrays by name. A rule never writes to those it is given: it gives new ones.
State: TypeAlias = Mapping[str, np.ndarray]


def fixed_generator(purpose: str) -> np.random.Generator:
    """Returns the same generator for a purpose each time: of a rule that is used by itself."""
    return np.random.default_rng(zlib.crc32(purpose.encode()))


@dataclass(frozen=True, eq=False)
class Context:
    """What is known in a round beside its gradients. What costs to find out is a function.

    Attributes:
      round: its number, from 0 on.
      params: gives the parameters that the gradients are of, [d]; None where nobody lends
        them.
      learning_rate: gives that of the server's optimizer in this step; None where nobody knows it.
      losses: ``losses(stack_nd, rows, gamma, n_r) -> float64 [k + 1]``, for rules that judge
        gradients by data that only the server has: the loss on n_r of them, drawn anew each round,
        at the parameters x, and at x - gamma u for each of the k rows u of an array [n, d] that
        ``rows`` names. Missing coordinates count as 0; neither the array nor anything of the model
        is changed. None where there are no such data.
      rng: ``rng(purpose)`` gives the round's generator for a purpose, the same one each time. Its
        seed is the server's alone: attackers that knew it would know what a random rule does.
    """

    round: int = 0
    params: Callable[[], np.ndarray] | None = None
    learning_rate: Callable[[], float] | None = None
    losses: Callable[..., np.ndarray] | None = None
    rng: Callable[[str], np.random.Generator] = fixed_generator
