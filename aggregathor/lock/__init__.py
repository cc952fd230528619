"""Keeps what only the server writes from being written by workers."""

from aggregathor.lock.guard import Guard, LockError
from aggregathor.lock.kernels import KernelLock, NoKernelLock

__all__ = ["Guard", "KernelLock", "LockError", "NoKernelLock"]
