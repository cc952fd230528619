// Tags of datagrams and the keys for them, by libsodium.
#ifndef LOSSYMPI_IO_CIPHER_H_
#define LOSSYMPI_IO_CIPHER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "lossympi/core/packet.h"

namespace lossympi {

enum class Suite { kNone, kAes256Gcm, kChaCha20Poly1305 };

bool HasAes256Gcm();                     // in hardware
Suite SuiteOf(const std::string& name);  // throws std::invalid_argument

struct KeyPair {
  std::string public_key, secret_key;
};
KeyPair NewKeyPair();  // X25519
struct SessionKeys {
  std::string receive_key, send_key;
};
// libsodium's crypto_kx. Throws std::invalid_argument where the peer's key is not acceptable.
SessionKeys AgreeOnKeys(const KeyPair& own, const std::string& peer_public_key, bool server);

// The key of one direction between two ranks. Used by one thread or many: it has no state.
class Key {
 public:
  // `bytes` are 32, or none for Suite::kNone.
  Key(Suite suite, const std::string& bytes);
  ~Key();
  Key(const Key&) = delete;
  Key& operator=(const Key&) = delete;

  // The tag over `size` bytes; `counter`, one of them, makes the nonce.
  void Tag(const uint8_t* bytes, size_t size, uint64_t counter, uint8_t* tag) const;
  bool Fits(const uint8_t* bytes, size_t size, uint64_t counter, const uint8_t* tag) const;
  size_t tag_bytes() const { return suite_ == Suite::kNone ? 0 : kTagBytes; }

 private:
  struct Secret;
  const Suite suite_;
  std::unique_ptr<Secret> secret_;
};

}  // namespace lossympi

#endif  // LOSSYMPI_IO_CIPHER_H_
