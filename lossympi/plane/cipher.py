"""Tags and keys, as libsodium makes them, from the `cryptography` package."""

import hashlib
import re
from pathlib import Path
from types import ModuleType

from lossympi.plane.packet import TAG_BYTES

CIPHERS = ("aes256gcm", "chacha20poly1305", "none")
KEY_BYTES = 32


class Sealer:
    """Makes and checks the tags of one direction, all of them with one key.

    Args:
      cipher: one of `CIPHERS`.
      key: 32 bytes; empty with "none", whose tags are empty and always fit.
    Raises:
      ValueError: an unknown cipher or a key of another length.
      ImportError: the cipher needs the `cryptography` package, which is not there.
    """

    def __init__(self, cipher: str, key: bytes) -> None:
        """Loads the cipher, so that a missing package is reported before the first round."""
        length = KEY_BYTES if tag_bytes(cipher) else 0
        if len(key) != length:
            raise ValueError(
                f"{cipher} needs a key of {length} bytes, got {len(key)}. Pass what session_keys "
                "returned, or b'' without a cipher."
            )
        self._aead = None
        if cipher == "aes256gcm":
            self._aead = _ciphers().AESGCM(key)
        elif cipher == "chacha20poly1305":
            self._aead = _ciphers().ChaCha20Poly1305(key)

    def tag(self, counter: int, data: bytes) -> bytes:
        """Returns the tag of `data`; a counter must never be used twice."""
        if self._aead is None:
            return b""
        return self._aead.encrypt(_nonce(counter), b"", data)

    def fits(self, counter: int, data: bytes, tag: bytes) -> bool:
        """Returns whether `tag` is that of `data`."""
        if self._aead is None:
            return not tag
        from cryptography.exceptions import InvalidTag

        try:
            self._aead.decrypt(_nonce(counter), tag, data)
        except InvalidTag:
            return False
        return True


def tag_bytes(cipher: str) -> int:
    """Returns how long the cipher's tags are.

    Raises:
      ValueError: an unknown cipher.
    """
    if cipher not in CIPHERS:
        raise ValueError(f"cipher must be one of {', '.join(CIPHERS)}, got {cipher!r}. Pass one.")
    return 0 if cipher == "none" else TAG_BYTES


def has_aes256gcm() -> bool:
    """Whether this processor has the instructions that make AES-256-GCM cheap."""
    flags = Path("/proc/cpuinfo").read_text()
    return re.search(r"^(flags|Features)\s*:.*\baes\b", flags, re.MULTILINE) is not None


def key_pair() -> tuple[bytes, bytes]:
    """Returns a new X25519 key pair: public, secret."""
    secret = _x25519().X25519PrivateKey.generate()
    return secret.public_key().public_bytes_raw(), secret.private_bytes_raw()


def session_keys(
    secret: bytes, own_public: bytes, peer_public: bytes, server: bool
) -> tuple[bytes, bytes]:
    """Returns what `crypto_kx_server_session_keys` or `crypto_kx_client_session_keys` return.

    Args:
      secret: this side's.
      own_public: this side's.
      peer_public: the other side's.
      server: whether this side is the server; a worker is the client.
    Returns:
      The key to receive with, the key to send with.
    Raises:
      ValueError: no public key, or one that leaves no secret.
    """
    x25519 = _x25519()
    try:
        shared = x25519.X25519PrivateKey.from_private_bytes(secret).exchange(
            x25519.X25519PublicKey.from_public_bytes(peer_public)
        )
    except ValueError as error:
        raise ValueError(
            f"the peer's public key must be a point of Curve25519 of large order, 32 bytes; got "
            f"{peer_public.hex()!r}. Pass what the peer's key_pair returned."
        ) from error
    client, host = (peer_public, own_public) if server else (own_public, peer_public)
    keys = hashlib.blake2b(shared + client + host, digest_size=2 * KEY_BYTES).digest()
    to_client, to_server = keys[:KEY_BYTES], keys[KEY_BYTES:]
    return (to_server, to_client) if server else (to_client, to_server)


def _nonce(counter: int) -> bytes:
    return bytes(4) + counter.to_bytes(8, "little")


def _ciphers() -> ModuleType:
    try:
        from cryptography.hazmat.primitives.ciphers import aead
    except ImportError as error:
        raise _absent() from error
    return aead


def _x25519() -> ModuleType:
    try:
        from cryptography.hazmat.primitives.asymmetric import x25519
    except ImportError as error:
        raise _absent() from error
    return x25519


def _absent() -> ImportError:
    return ImportError(
        "tags and keys need the package cryptography, which is not installed. Run "
        "`pip install cryptography`, or choose auth='none' on a network you trust."
    )
