"""What a server reports of a round."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lossympi import RoundStats


@dataclass(frozen=True, eq=False)
class RoundReport:
    """What the server saw in a round.

    Attributes:
      stack_nd: [n, d], what the rule received, of complex numbers the real parts. It is the link's
        own buffer, and holds this until the model of the round is published; a script, which reads
        it after that, may find parts of the next round in it.
      grad_d: [d], the aggregate that was applied.
      usage_n: float64 [n], how much of each row the rule used, 0..1.
      delivered_n: float64 [n], share of each worker's coordinates that arrived, 0..1.
      stats: what the link saw: the number of the round, how it was closed, and of each worker what
        came, what came late and what was rejected, and why.
      suspected: in a job, the workers that the rule has left out in more rounds in a row than
        chance explains: see ``aggregathor.monitor.suspicion``.
      unverified: where workers send encodings, the share of the coordinates, 0..1, of which nothing
        says that the decoded mean is right. Where it cannot be decoded, the aggregate is 0.
    """

    stack_nd: np.ndarray = field(repr=False)
    grad_d: np.ndarray = field(repr=False)
    usage_n: np.ndarray
    delivered_n: np.ndarray
    stats: RoundStats | None = None
    suspected: tuple[int, ...] = ()
    unverified: float = 0.0
