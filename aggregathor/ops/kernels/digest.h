// A keyed digest of bytes, which shows whether they have changed. Maths only.
//
// Blocks of 1 KiB are hashed by NH (Black et al., UMAC, CRYPTO 1999; RFC 4418): with words m_i of
// 32 bits and as many secret words k_i,
//   NH(m) = sum_{i < L/2} ((m_i + k_i) mod 2^32) * ((m_{i + L/2} + k_{i + L/2}) mod 2^32)  mod
//   2^64.
// Two different blocks of the same length have the same sum for at most 2^-32 of the keys. The sums
// are then coefficients of a polynomial over GF(2^61 - 1), which is evaluated at a secret point.
// Whoever does not know the key changes n bytes unseen with a probability of at most
// 2^-32 + n 2^-69; digests must stay secret.
#ifndef AGGREGATHOR_OPS_KERNELS_DIGEST_H_
#define AGGREGATHOR_OPS_KERNELS_DIGEST_H_

#include <cstdint>

#include "aggregathor/ops/kernels/kernels.h"

namespace aggregathor {

struct DigestKey {
  static constexpr int64_t kWords = 256;  // of a block
  uint32_t words[kWords];
  uint64_t point;  // in [1, 2^61 - 1)
};

// A key from the system's random numbers.
DigestKey RandomDigestKey();

// The digest of `size` bytes, on the threads of `parallel`, which do not change it. One pass.
uint64_t Digest(const DigestKey& key, const void* bytes, int64_t size, Parallel parallel);

}  // namespace aggregathor

#endif  // AGGREGATHOR_OPS_KERNELS_DIGEST_H_
