"""When bytes may leave so that a rate is kept. Knows no clock."""

import math


class Pacer:
    """A token bucket: idle time earns at most `burst_s` of sending at once.

    Args:
      bytes_per_s: the rate, above 0.
      burst_s: seconds; as much as was overslept can be made up for.
    """

    BURST_S = 0.0005

    def __init__(self, bytes_per_s: float, burst_s: float = BURST_S) -> None:
        """Starts with a whole burst earned."""
        if not bytes_per_s > 0:
            raise ValueError(
                f"a rate must be above 0 bytes/s, got {bytes_per_s}. Pass a higher one."
            )
        self._bytes_per_s = bytes_per_s
        self._burst_s = burst_s
        self._next = -math.inf

    def when(self, now: float, num_bytes: int) -> float:
        """Returns when these bytes may leave, perhaps a time gone by, and counts them as sent."""
        at = max(self._next, now - self._burst_s)
        self._next = at + num_bytes / self._bytes_per_s
        return at
