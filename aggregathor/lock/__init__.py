"""Keeps what only the server writes from being written by workers.

The package can be called, as ``agt.lock(model)``: see ``aggregathor.dropin.lock``.
"""

import importlib
import sys
import types
from typing import Any

from aggregathor.lock.digest import Digest
from aggregathor.lock.guard import Guard, LockError, name_of, variable_of
from aggregathor.lock.kernels import KernelLock, NoKernelLock

__all__ = [
    "Digest",
    "Guard",
    "KernelLock",
    "LockError",
    "NoKernelLock",
    "name_of",
    "variable_of",
]


class _Callable(types.ModuleType):
    """Once the package is loaded its name is the package's, not the function's."""

    def __call__(self, model_or_variables: Any, *, on_violation: str | None = None) -> None:
        """Keeps the graphs that a worker traces from now on from writing variables."""
        dropin = importlib.import_module("aggregathor.dropin")  # which is above this package
        dropin.lock(model_or_variables, on_violation=on_violation)


sys.modules[__name__].__class__ = _Callable
