"""Keeps workers from writing variables that only the server writes: ``agt.lock`` and ``--lock``."""

from aggregathor.locking.digest import Digest
from aggregathor.locking.guard import (
    Guard,
    LockError,
    name_of,
    parts_of,
    place_of,
    variable_of,
)
from aggregathor.locking.kernels import KernelLock, NoKernelLock

__all__ = [
    "Digest",
    "Guard",
    "KernelLock",
    "LockError",
    "NoKernelLock",
    "name_of",
    "parts_of",
    "place_of",
    "variable_of",
]
