"""How fast the workers may send: a rule without a clock."""

import numpy as np


class Rate:
    """The rate that the server grants, lowered where its own buffer runs over.

    What the network loses says nothing of how fast the server can receive, and does not slow it
    down. What its kernel had no room for does, and is counted apart. It lowers the rate by three
    tenths: that of the workers who sent more than they were granted in such a round, if there are
    any; else everybody's. It lowers nobody's where more than a tenth of what came, beyond what was
    granted, may be anybody's: no rate that is granted stops a flood. Each of many rounds without
    raises it by a hundredth.

    Attributes:
      bps: bit/s of UDP payload in all, for the next round.
      share_n: float64 [n], in 0..1, what each worker is granted of what it would be else.
    """

    _CALM_ROUNDS = 10  # before it is raised again
    _LEAST = 0.02  # of the most
    _STRAY = 0.1  # of what came

    def __init__(self, most_bps: float, num_workers: int) -> None:
        """Starts at the most."""
        self.bps = most_bps
        self.share_n = np.ones(num_workers)
        self._most_bps = most_bps
        self._calm_rounds = 0

    def observe(
        self,
        overflow: int,
        fresh_n: np.ndarray,
        repeated_n: np.ndarray,
        granted_n: np.ndarray,
        strays: int,
    ) -> None:
        """Learns how many datagrams came in a round.

        Args:
          overflow: of those that found the buffer full.
          fresh_n: [n], of those that only this worker can have sent, and never before.
          repeated_n: [n], of those that this worker has sent, and anybody may have sent again.
          granted_n: [n], of those that each may have sent, at the most.
          strays: of those that anybody may have sent.
        """
        if overflow == 0:
            self._calm_rounds += 1
            if self._calm_rounds > self._CALM_ROUNDS:
                self.bps = min(1.01 * self.bps, self._most_bps)
                self.share_n = np.minimum(1.01 * self.share_n, 1.0)
            return
        self._calm_rounds = 0
        beyond_n = fresh_n > granted_n
        came_n = fresh_n + repeated_n
        strays += int(np.maximum(came_n - granted_n, 0).sum())
        if beyond_n.any():
            lowered_n = np.maximum(0.7 * self.share_n, self._LEAST)
            self.share_n = np.where(beyond_n, lowered_n, self.share_n)
        elif strays <= self._STRAY * came_n.sum():
            self.bps = max(0.7 * self.bps, self._LEAST * self._most_bps)
