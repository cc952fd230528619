"""Which data plane a rank uses: the native one where it was built, or the Python one."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any, Protocol

from lossympi.endpoint import Endpoint, Setup

_core: Any
_WHY_NOT = ""
try:
    _core = import_module("lossympi._core")
except ImportError as error:  # not built: no compiler, or no libsodium
    _core = None
    _WHY_NOT = str(error)

_HOW_TO_BUILD = "Install g++ and libsodium-dev, then install this package again."


class Plane(Protocol):
    """What the modules ``_core`` and ``plane`` offer."""

    def Endpoint(self, setup: Setup) -> Endpoint:
        """See ``endpoint.Endpoint``."""

    def has_aes256gcm(self) -> bool:
        """Whether this processor has the instructions that make AES-256-GCM cheap."""

    def key_pair(self) -> tuple[bytes, bytes]:
        """Returns a new public and secret key, 32 bytes each."""

    def session_keys(
        self, secret_key: bytes, public_key: bytes, peer_public_key: bytes, server: bool
    ) -> tuple[bytes, bytes]:
        """Returns the keys to receive and to send with, 32 bytes each."""


def why_not_native() -> str:
    """Returns why there is no native plane and what to do, "" where there is one."""
    return f"it was not built ({_WHY_NOT}). {_HOW_TO_BUILD}" if _WHY_NOT else ""


def native() -> Any:
    """Returns the native module, which ``why_not_native`` has nothing against."""
    return _core


def choose_plane(name: str) -> Plane:
    """Returns the "native" plane, the "python" one, or, for "auto", the native one if there is one.

    Raises:
      ValueError: no plane has this name.
      ImportError: the native plane is asked for and was not built.
    """
    if name not in ("auto", "native", "python"):
        raise ValueError(f"a plane is auto, native or python; got {name!r}.")
    if name != "python" and _core is not None:
        return _core
    if name == "native":
        raise ImportError(f"the native plane is missing: {why_not_native()}")
    if name == "auto":
        warnings.warn(
            "LossyMPI runs its Python plane, many times slower, for want of the native one: "
            + why_not_native(),
            RuntimeWarning,
            stacklevel=2,
        )
    from lossympi import plane

    return plane
