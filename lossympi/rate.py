"""How fast the workers may send: a rule without a clock."""


class Rate:
    """The rate that the server grants in all, lowered where its own buffer runs over.

    What the network loses says nothing of how fast the server can receive, and does not slow it
    down. What its kernel had no room for does, and is counted apart: a round in which that happened
    lowers the rate by three tenths, and each of many without raises it by a hundredth.

    Attributes:
      bps: bit/s of UDP payload, for the next round.
    """

    _CALM_ROUNDS = 10  # before it is raised again
    _LEAST = 0.02  # of the most

    def __init__(self, most_bps: float) -> None:
        """Starts at the most."""
        self.bps = most_bps
        self._most_bps = most_bps
        self._calm_rounds = 0

    def observe(self, overflow: int) -> None:
        """Learns how many datagrams found the buffer full in a round."""
        if overflow > 0:
            self._calm_rounds = 0
            self.bps = max(0.7 * self.bps, self._LEAST * self._most_bps)
            return
        self._calm_rounds += 1
        if self._calm_rounds > self._CALM_ROUNDS:
            self.bps = min(1.01 * self.bps, self._most_bps)
