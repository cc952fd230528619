"""How long a round may take, and for whom it waits: rules without a clock (``WIRE.md``)."""

import math
from collections import deque

import numpy as np


class Deadline:
    """The time that a round may take, learnt from the rounds that did without it.

    Attributes:
      current: t_B of the next round, in seconds.
    """

    def __init__(
        self,
        cap_s: float,
        rounds: int = 20,
        quantile: float = 0.95,
        margin: float = 1.5,
        floor_s: float = 0.0,
    ) -> None:
        """Starts at the cap.

        Args:
          cap_s: what t_B never exceeds; an infinite cap stays, as it asks to wait for all.
          floor_s: what t_B never falls below, unless the cap does.
          rounds: how many rounds must have been closed otherwise than by the deadline before t_B is
            learnt, and from how many, the latest ones, it is.
          quantile: of their times, 0..1.
          margin: times it, at least 1.
        Raises:
          ValueError: an argument is out of range.
        """
        if not cap_s > 0:
            raise ValueError(f"a deadline is above 0 seconds, got {cap_s}. Pass inf for none.")
        if not (rounds >= 1 and 0 <= quantile <= 1 and margin >= 1):
            raise ValueError(
                "a deadline is learnt from rounds >= 1, a quantile in 0..1 and a margin >= 1; got "
                f"rounds={rounds}, quantile={quantile}, margin={margin}. Leave them as they are."
            )
        self.current = cap_s
        self._cap_s = cap_s
        self._floor_s = floor_s
        self._quantile = quantile
        self._margin = margin
        self._elapsed_s: deque[float] = deque(maxlen=rounds)

    def observe(self, elapsed_s: float, reason: str, unsettled: float = 0.0) -> None:
        """Learns from a round.

        Args:
          elapsed_s: from its opening to its close.
          reason: "complete", "early" or "deadline": what closed it.
          unsettled: share of the live rows that were not settled, 0..1. Byzantine workers are fewer
            than half, so they alone cannot drive the deadline up.
        """
        if math.isinf(self._cap_s):
            return
        if reason == "deadline":
            if unsettled >= 0.5:
                self.current = min(self._cap_s, 2 * self.current)
            return
        self._elapsed_s.append(elapsed_s)
        if len(self._elapsed_s) == self._elapsed_s.maxlen:
            usual_s = float(np.quantile(self._elapsed_s, self._quantile))
            self.current = min(self._cap_s, max(self._floor_s, self._margin * usual_s))


class Grace:
    """How long an early close waits for what was overtaken: not where nothing is.

    What comes late shows that it should have waited, and it does in the next 100 rounds. The wait,
    in which the processor falls asleep, would cost every round of a lossy network some 5%.

    Attributes:
      current: seconds, for the next round.
    """

    _FIRST, _AGAIN = 5, 100  # rounds

    def __init__(self, grace_s: float) -> None:
        """Starts with waiting."""
        self.current = grace_s
        self._grace_s = grace_s
        self._rounds = self._FIRST

    def observe(self, late: int) -> None:
        """Learns how many datagrams came after the close since the round before."""
        self._rounds = self._AGAIN if late else max(0, self._rounds - 1)
        self.current = self._grace_s if self._rounds else 0.0


class Liveness:
    """Which workers a round waits for: those heard in one of the last `patience` rounds.

    Attributes:
      live: for each worker whether the next round waits for it; all at the start.
    """

    def __init__(self, num_workers: int, patience: int = 3) -> None:
        """Starts with all alive.

        Raises:
          ValueError: patience is below 1.
        """
        if patience < 1:
            raise ValueError(
                f"a worker is dead after 1 silent round or more, got patience={patience}. "
                "Pass at least 1."
            )
        self.live = (True,) * num_workers
        self._patience = patience
        self._silent_rounds_n = np.zeros(num_workers, np.int64)
        self._gone: set[int] = set()  # since the last round

    def forget(self, row: int) -> None:
        """Learns that a worker is gone before its silence shows it."""
        self._gone.add(row)
        self._silent_rounds_n[row] = self._patience
        self.live = tuple((self._silent_rounds_n < self._patience).tolist())

    def observe(self, heard_n: np.ndarray) -> None:
        """Learns who was heard in a round, bool [n].

        Of who was forgotten meanwhile it was before that, as far as anybody knows.
        """
        heard_n = np.array(heard_n)
        while self._gone:
            heard_n[self._gone.pop()] = False
        self._silent_rounds_n = np.where(heard_n, 0, self._silent_rounds_n + 1)
        self.live = tuple((self._silent_rounds_n < self._patience).tolist())
