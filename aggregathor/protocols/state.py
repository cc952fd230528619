"""What is kept from round to round: arrays by name, in one flat mapping.

Rules, fills, attacks and drivers each give theirs under a name of their own, and a checkpoint holds
them all. An array in a state is never written to: the next state has new ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def prefixed(prefix: str, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a state with the names "prefix/..."."""
    return {f"{prefix}/{name}": array for name, array in state.items()}


def under(prefix: str, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the part of a state that ``prefixed`` gave these names, without the prefix."""
    begin = f"{prefix}/"
    return {name[len(begin) :]: array for name, array in state.items() if name.startswith(begin)}
