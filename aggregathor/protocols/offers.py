"""What arrival rules have in common: a gradient is offered, and a verdict says what it does.

An arrival rule is a state machine without link, clock or TensorFlow. Whoever drives it says who
sent the gradient, of which model it is and when it came.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

NOT_FINITE = "not finite"


class Offer(NamedTuple):
    """One gradient as it arrives.

    Attributes:
      row: of its worker, 0..n-1.
      version: of the model that the server had handed to that worker: how many updates it had.
      staleness: how many updates have been made since.
      model_d: that model, [d]; never written to.
      params_d: the model as it is now, [d]; never written to.
      grad_d: [d], float32 or float64. A rule may write its step here, where it can be written to;
        once that was applied the next gradient comes here.
      now_s: seconds since the first model was handed out.
    """

    row: int
    version: int
    staleness: int
    model_d: np.ndarray
    params_d: np.ndarray
    grad_d: np.ndarray
    now_s: float


class Verdict(NamedTuple):
    """What becomes of it.

    Attributes:
      step_d: what the optimizer applies now, [d] of the gradient's dtype; None for nothing. It may
        be the gradient's own memory.
      why: why the gradient is rejected; "" if it is used, now or as part of a later step.
    """

    step_d: np.ndarray | None
    why: str = ""


class ArrivalRule(Protocol):
    """Decides on gradients one by one."""

    def offer(self, offer: Offer) -> Verdict:
        """Takes in one gradient; a worker sends its next one after this one was answered."""

    def state(self) -> dict[str, np.ndarray]:
        """Returns what the next verdicts depend on, as arrays for a checkpoint."""

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from what ``state`` gave."""
