"""How a rank waits for MPI, in which nobody can wait without spinning."""

from __future__ import annotations

import os
import time

from lossympi.doorbell import Doorbell


class Backoff:
    """Gives the processor away until it is time to look again.

    Where the others are on this host they ring: after they have sent something, and where they need
    help to receive something. Else it looks by itself, ever more rarely: a wait is at most some 10%
    longer than it had to be, or a timer's 0.1 ms, and a long one takes 1% of a core.

    While a message is under way it stays awake for a second: where MPI cannot read the other's
    memory (CMA), both ends have to call it again and again until a long message is through.
    """

    _YIELDS, _SHARE, _SHORTEST_S, _LONGEST_S, _AWAKE_S = 5, 0.1, 20e-6, 2e-3, 1.0
    _YIELDS_WITH_BELL, _BETWEEN_BELLS_S = 1, 5e-3

    def __init__(self, bell: Doorbell) -> None:
        """Begins to wait; the bell is the rank's own."""
        self._bell = bell
        self._is_rung = not bell.hears_all  # who cannot ring may need help without saying so
        self.begin()

    def begin(self) -> None:
        """Something has happened: more may soon."""
        self._yields = self._YIELDS_WITH_BELL if self._bell.hears_all else self._YIELDS
        self._begun = time.monotonic()

    def pause(self, at_most_s: float, receiving: bool, sending: bool) -> None:
        """Returns within a moment, at most `at_most_s`.

        Args:
          at_most_s: how long.
          receiving: whether a message is being received.
          sending: whether one is to leave, which it does once the other has begun to receive it.
        """
        if self._yields:
            self._yields -= 1
            os.sched_yield()
            return
        waited_s = time.monotonic() - self._begun
        if (receiving or (sending and self._is_rung)) and waited_s < self._AWAKE_S:
            time.sleep(min(self._SHORTEST_S, at_most_s))
            return
        pause_s = self._BETWEEN_BELLS_S
        if not self._bell.hears_all:
            pause_s = max(self._SHORTEST_S, min(waited_s * self._SHARE, self._LONGEST_S))
        pause_s = max(0.0, min(pause_s, at_most_s))
        if pause_s < 1e-3:  # which the bell's clock does not know
            time.sleep(pause_s)
        elif self._bell.wait(pause_s):
            self._is_rung = True
            self.begin()
