"""The data plane of ``WIRE.md`` in Python: the oracle of the C++ one, and what runs without it."""

from lossympi.plane.cipher import has_aes256gcm, key_pair, session_keys
from lossympi.plane.endpoint import Endpoint

__all__ = ["Endpoint", "has_aes256gcm", "key_pair", "session_keys"]
