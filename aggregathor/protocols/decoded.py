"""What a code's decoder returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Decoded:
    """The mean over all batches, as far as it could be decoded.

    Attributes:
      mean_d: [d], 0 (no update) in each coordinate that cannot be decoded.
      usage_n: float64 [n], share of the coordinates for which each row was used, 0..1.
      unverified: share of the coordinates, 0..1, whose mean could not be decoded, or of which
        nothing says that it is right.
      divided: of a repetition code, the groups in which no majority of the copies agrees.
    """

    mean_d: np.ndarray
    usage_n: np.ndarray
    unverified: float
    divided: tuple[int, ...] = ()
