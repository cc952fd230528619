#include "lossympi/io/cipher.h"

#include <sodium.h>

#include <cstring>
#include <stdexcept>

namespace lossympi {
namespace {

static_assert(crypto_aead_aes256gcm_ABYTES == kTagBytes);
static_assert(crypto_aead_chacha20poly1305_ietf_ABYTES == kTagBytes);
constexpr size_t kNonceBytes = 12;
static_assert(crypto_aead_aes256gcm_NPUBBYTES == kNonceBytes);
static_assert(crypto_aead_chacha20poly1305_ietf_NPUBBYTES == kNonceBytes);

struct Nonce {
  uint8_t bytes[kNonceBytes] = {};
  explicit Nonce(uint64_t counter) {
    for (int i = 0; i < 8; ++i) bytes[4 + i] = static_cast<uint8_t>(counter >> 8 * i);
  }
};

void Initialize() {
  if (sodium_init() < 0) throw std::runtime_error("libsodium could not be initialised");
}

const uint8_t* Bytes(const std::string& s) { return reinterpret_cast<const uint8_t*>(s.data()); }
uint8_t* Bytes(std::string& s) { return reinterpret_cast<uint8_t*>(s.data()); }

}  // namespace

// Aligned as libsodium wants its precomputed AES key.
struct alignas(16) Key::Secret {
  union {
    crypto_aead_aes256gcm_state aes;
    uint8_t chacha[crypto_aead_chacha20poly1305_ietf_KEYBYTES];
  };
};

bool HasAes256Gcm() {
  Initialize();
  return crypto_aead_aes256gcm_is_available() != 0;
}

Suite SuiteOf(const std::string& name) {
  if (name == "none") return Suite::kNone;
  if (name == "aes256gcm") return Suite::kAes256Gcm;
  if (name == "chacha20poly1305") return Suite::kChaCha20Poly1305;
  throw std::invalid_argument("cipher must be one of aes256gcm, chacha20poly1305, none, got '" +
                              name + "'. Pass one.");
}

KeyPair NewKeyPair() {
  Initialize();
  KeyPair pair{std::string(crypto_kx_PUBLICKEYBYTES, 0), std::string(crypto_kx_SECRETKEYBYTES, 0)};
  crypto_kx_keypair(Bytes(pair.public_key), Bytes(pair.secret_key));
  return pair;
}

SessionKeys AgreeOnKeys(const KeyPair& own, const std::string& peer_public_key, bool server) {
  if (own.public_key.size() != crypto_kx_PUBLICKEYBYTES ||
      own.secret_key.size() != crypto_kx_SECRETKEYBYTES ||
      peer_public_key.size() != crypto_kx_PUBLICKEYBYTES) {
    throw std::invalid_argument(
        "public and secret keys must have 32 bytes. Pass what key_pair returned.");
  }
  SessionKeys keys{std::string(crypto_kx_SESSIONKEYBYTES, 0),
                   std::string(crypto_kx_SESSIONKEYBYTES, 0)};
  const auto agree = server ? crypto_kx_server_session_keys : crypto_kx_client_session_keys;
  if (agree(Bytes(keys.receive_key), Bytes(keys.send_key), Bytes(own.public_key),
            Bytes(own.secret_key), Bytes(peer_public_key)) != 0) {
    throw std::invalid_argument(
        "the peer's public key must be a point of Curve25519 of large order. Pass what the peer's "
        "key_pair returned.");
  }
  return keys;
}

Key::Key(Suite suite, const std::string& bytes)
    : suite_(suite), secret_(std::make_unique<Secret>()) {
  Initialize();
  const size_t needed = suite == Suite::kNone ? 0 : 32;
  if (bytes.size() != needed) {
    throw std::invalid_argument("the cipher needs a key of " + std::to_string(needed) +
                                " bytes, got " + std::to_string(bytes.size()) +
                                ". Pass what session_keys returned, or b'' without a cipher.");
  }
  const uint8_t* raw = Bytes(bytes);
  if (suite == Suite::kAes256Gcm) {
    if (!HasAes256Gcm()) throw std::invalid_argument("this processor has no AES instructions");
    crypto_aead_aes256gcm_beforenm(&secret_->aes, raw);
  } else if (suite == Suite::kChaCha20Poly1305) {
    std::memcpy(secret_->chacha, raw, needed);
  }
}

Key::~Key() { sodium_memzero(secret_.get(), sizeof(Secret)); }

// The message is empty: all that is authenticated is associated data, and nothing is encrypted.
void Key::Tag(const uint8_t* bytes, size_t size, uint64_t counter, uint8_t* tag) const {
  const Nonce nonce(counter);
  unsigned long long tag_size;
  if (suite_ == Suite::kAes256Gcm) {
    crypto_aead_aes256gcm_encrypt_detached_afternm(tag, tag, &tag_size, nullptr, 0, bytes, size,
                                                   nullptr, nonce.bytes, &secret_->aes);
  } else if (suite_ == Suite::kChaCha20Poly1305) {
    crypto_aead_chacha20poly1305_ietf_encrypt_detached(tag, tag, &tag_size, nullptr, 0, bytes, size,
                                                       nullptr, nonce.bytes, secret_->chacha);
  }
}

bool Key::Fits(const uint8_t* bytes, size_t size, uint64_t counter, const uint8_t* tag) const {
  const Nonce nonce(counter);
  uint8_t nothing[1] = {};
  if (suite_ == Suite::kAes256Gcm) {
    return crypto_aead_aes256gcm_decrypt_detached_afternm(nothing, nullptr, nothing, 0, tag, bytes,
                                                          size, nonce.bytes, &secret_->aes) == 0;
  }
  if (suite_ == Suite::kChaCha20Poly1305) {
    return crypto_aead_chacha20poly1305_ietf_decrypt_detached(
               nothing, nullptr, nothing, 0, tag, bytes, size, nonce.bytes, secret_->chacha) == 0;
  }
  return true;
}

}  // namespace lossympi
