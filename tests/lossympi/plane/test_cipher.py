import ctypes
import secrets
import sys

import pytest

from lossympi.connection import bound_key
from lossympi.plane.cipher import Sealer, key_pair, session_keys, tag_bytes


@pytest.fixture(scope="module")
def sodium():
    try:
        library = ctypes.CDLL("libsodium.so.23")
    except OSError as error:
        pytest.skip(f"libsodium is not installed: {error}")
    assert library.sodium_init() >= 0
    return library


def sodium_tag(library, cipher, key, counter, data):
    name = {"aes256gcm": "aes256gcm", "chacha20poly1305": "chacha20poly1305_ietf"}[cipher]
    out, length = ctypes.create_string_buffer(16), ctypes.c_ulonglong()
    nonce = bytes(4) + counter.to_bytes(8, "little")
    size = ctypes.c_ulonglong(len(data))
    no_message = (b"", ctypes.c_ulonglong(0))
    encrypt = getattr(library, f"crypto_aead_{name}_encrypt")
    encrypt(out, ctypes.byref(length), *no_message, data, size, None, nonce, key)
    assert length.value == 16
    return out.raw


@pytest.mark.parametrize("cipher", ["aes256gcm", "chacha20poly1305"])
@pytest.mark.parametrize("num_bytes", [32, 1440])
def test_tags_are_libsodiums(sodium, cipher, num_bytes):
    if cipher == "aes256gcm" and not sodium.crypto_aead_aes256gcm_is_available():
        pytest.skip("libsodium has AES-256-GCM only with the processor's help")
    key, data = secrets.token_bytes(32), secrets.token_bytes(num_bytes)
    for counter in (1, 2**32 + 1, 2**64 - 1):
        tag = sodium_tag(sodium, cipher, key, counter, data)
        assert Sealer(cipher, key).tag(counter, data) == tag
        assert Sealer(cipher, key).fits(counter, data, tag)


@pytest.mark.parametrize("server", [False, True])
def test_session_keys_are_libsodiums(sodium, server):
    public, secret = (ctypes.create_string_buffer(32) for _ in range(2))
    assert sodium.crypto_kx_keypair(public, secret) == 0
    peer_public, peer_secret = key_pair()
    receive, send = (ctypes.create_string_buffer(32) for _ in range(2))
    side = "server" if server else "client"
    derive = getattr(sodium, f"crypto_kx_{side}_session_keys")
    assert derive(receive, send, public, secret, peer_public) == 0
    theirs = (receive.raw, send.raw)
    assert session_keys(secret.raw, public.raw, peer_public, server) == theirs
    assert session_keys(peer_secret, peer_public, public.raw, not server) == theirs[::-1]


def test_bound_keys_are_libsodiums_generic_hash(sodium):
    """And those of the vectors in test_connection.py."""
    key, out = bytes(range(32)), ctypes.create_string_buffer(32)
    what = b"lossympi1" + bytes.fromhex("78563412 0200")
    assert (
        sodium.crypto_generichash(
            out, ctypes.c_size_t(32), what, ctypes.c_ulonglong(len(what)), key, ctypes.c_size_t(32)
        )
        == 0
    )
    assert bound_key(key, 0x12345678, 2) == out.raw


def test_a_tag_is_these_bytes():
    data = bytes.fromhex("01 06 0100 78563412 0100000000000000 01000000 03000000 0100000000000000")
    key = bytes(range(32))
    assert Sealer("chacha20poly1305", key).tag(1, data).hex() == "14edaa14ed25973f40ca8b0f7655348a"
    assert Sealer("aes256gcm", key).tag(1, data).hex() == "5475857ff987990484430713a3010453"


@pytest.mark.parametrize("cipher", ["aes256gcm", "chacha20poly1305"])
def test_any_change_is_noticed(cipher):
    sealer, data = Sealer(cipher, bytes(32)), bytes(range(40))
    tag = sealer.tag(7, data)
    assert len(tag) == tag_bytes(cipher) == 16
    assert not sealer.fits(8, data, tag)
    assert not Sealer(cipher, b"\1" + bytes(31)).fits(7, data, tag)
    for at in range(40):
        assert not sealer.fits(7, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], tag)
    for at in range(16):
        assert not sealer.fits(7, data, tag[:at] + bytes([tag[at] ^ 128]) + tag[at + 1 :])


def test_without_a_cipher_tags_are_empty():
    sealer = Sealer("none", b"")
    assert sealer.tag(1, b"data") == b""
    assert sealer.fits(1, b"data", b"")
    assert tag_bytes("none") == 0


@pytest.mark.parametrize(
    ("cipher", "key", "found"),
    [("aes256gcm", bytes(16), "got 16"), ("none", bytes(32), "got 32"), ("rot13", b"", "rot13")],
)
def test_wrong_keys_are_refused(cipher, key, found):
    with pytest.raises(ValueError, match=found):
        Sealer(cipher, key)


@pytest.mark.parametrize("peer_public", [bytes(32), bytes(31)])
def test_a_public_key_without_a_secret_is_refused(peer_public):
    public, secret = key_pair()
    with pytest.raises(ValueError, match="peer's public key"):
        session_keys(secret, public, peer_public, server=True)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers", None)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(ImportError, match="pip install cryptography"):
        Sealer("aes256gcm", bytes(32))
    with pytest.raises(ImportError, match="pip install cryptography"):
        key_pair()
    Sealer("none", b"")
