"""What a rank sends in a round: known to all ranks without a message, and free to make."""

from __future__ import annotations

import numpy as np

_SHIFT = 97  # floats; no multiple of a datagram's, so that no datagram repeats one of another round


class Values:
    """The vectors of one rank: windows, one a round, of random values drawn from its number."""

    def __init__(self, rank: int, dim: int, rounds: int, wire: str) -> None:
        """Draws them; with a narrow wire only integers that it carries exactly."""
        rng = np.random.default_rng(rank)
        self._values = rng.standard_normal(dim + rounds * _SHIFT, dtype=np.float32)
        if wire != "float32":
            self._values = np.rint(self._values * 32)  # within 256: bfloat16 has 8 bits of them
        self._dim = dim

    def of_round(self, round: int) -> np.ndarray:
        """Returns a view, float32 [d]."""
        return self._values[round * _SHIFT : round * _SHIFT + self._dim]

    def count_wrong(self, round: int, got_d: np.ndarray, arrived_c: np.ndarray, floats: int) -> int:
        """Returns how many of the floats that arrived have other bits than those of the round."""
        wrong_d = got_d.view(np.uint32) != self.of_round(round).view(np.uint32)
        if not wrong_d.any():
            return 0
        return int(wrong_d[np.repeat(arrived_c, floats)[: self._dim]].sum())
