"""Keeps what only the server writes from being written by workers."""

from aggregathor.lock.guard import Guard, LockError

__all__ = ["Guard", "LockError"]
