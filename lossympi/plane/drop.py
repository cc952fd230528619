"""The seeded drop hook of ``WIRE.md``, for tests."""

_MASK = 2**64 - 1


class Drops:
    """Says, datagram by datagram, which are lost.

    Args:
      probability: of a loss, 0..1.
      seed: of the losses; equal seeds lose the same ones.
      rank: whose losses; no two ranks share them.
    """

    def __init__(self, probability: float, seed: int, rank: int) -> None:
        """Starts the stream of losses."""
        if not 0 <= probability <= 1:
            raise ValueError(f"drop must be in 0..1, got {probability}. Pass a probability.")
        self._below = probability * 2**53
        self._state = (seed * 2**32 + rank) & _MASK

    def next(self) -> bool:
        """Returns whether the next datagram is lost."""
        return splitmix64(self._advance()) >> 11 < self._below

    def _advance(self) -> int:
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        return self._state


def splitmix64(state: int) -> int:
    """Returns the number that SplitMix64 makes of a state that it has just stepped to."""
    z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
