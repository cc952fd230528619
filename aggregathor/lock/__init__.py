"""Keeps what only the server writes from being written by workers."""

from aggregathor.lock.digest import Digest
from aggregathor.lock.guard import Guard, LockError, name_of, variable_of

__all__ = ["Digest", "Guard", "LockError", "name_of", "variable_of"]
