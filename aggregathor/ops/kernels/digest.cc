#include "aggregathor/ops/kernels/digest.h"

#include <cstring>
#include <random>
#include <vector>

namespace aggregathor {
namespace {

constexpr uint64_t kPrime = (uint64_t{1} << 61) - 1;
constexpr int64_t kBlock = DigestKey::kWords * sizeof(uint32_t);
constexpr int64_t kBlocksOfPart = 64;  // of what a thread takes at once, and adds up

uint64_t Add(uint64_t a, uint64_t b) {
  const uint64_t sum = a + b;
  return sum >= kPrime ? sum - kPrime : sum;
}

uint64_t Multiply(uint64_t a, uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return Add(static_cast<uint64_t>(product & kPrime), static_cast<uint64_t>(product >> 61));
}

uint64_t Power(uint64_t base, int64_t exponent) {
  uint64_t power = 1;
  for (; exponent > 0; exponent >>= 1, base = Multiply(base, base)) {
    if (exponent & 1) power = Multiply(power, base);
  }
  return power;
}

uint64_t Nh(const uint32_t* key, const uint8_t* block) {
  constexpr int64_t kHalf = DigestKey::kWords / 2;
  uint32_t words[DigestKey::kWords];
  std::memcpy(words, block, sizeof words);  // wherever it begins
  uint64_t sum = 0;
  for (int64_t i = 0; i < kHalf; ++i) {
    // The two words are half a block apart, so that neighbours are multiplied side by side.
    sum += static_cast<uint64_t>(words[i] + key[i]) * (words[i + kHalf] + key[i + kHalf]);
  }
  return sum;
}

// Two coefficients below the prime for each block, the last of which ends with zeros: sum_j c_j
// point^(count - j), by Horner's scheme.
uint64_t OfPart(const DigestKey& key, const uint8_t* bytes, int64_t size) {
  uint64_t value = 0;
  const auto add = [&](const uint8_t* block) {
    const uint64_t sum = Nh(key.words, block);
    value = Multiply(Add(value, sum >> 32), key.point);
    value = Multiply(Add(value, sum & 0xffffffff), key.point);
  };
  for (; size >= kBlock; bytes += kBlock, size -= kBlock) add(bytes);
  if (size > 0) {
    uint8_t last[kBlock] = {};
    std::memcpy(last, bytes, static_cast<size_t>(size));
    add(last);
  }
  return value;
}

}  // namespace

DigestKey RandomDigestKey() {
  std::random_device random;  // /dev/urandom, or the processor's
  DigestKey key;
  for (uint32_t& word : key.words) word = random();
  do {
    key.point = (static_cast<uint64_t>(random()) << 32 | random()) & kPrime;
  } while (key.point == 0 || key.point == kPrime);
  return key;
}

uint64_t Digest(const DigestKey& key, const void* bytes, int64_t size, Parallel parallel) {
  constexpr int64_t kPart = kBlocksOfPart * kBlock, kCyclesPerPart = kPart / 8;
  const auto* first = static_cast<const uint8_t*>(bytes);
  const int64_t parts = (size + kPart - 1) / kPart;
  std::vector<uint64_t> values(static_cast<size_t>(parts));
  For(parallel, parts, kCyclesPerPart, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t offset = p * kPart;
      values[p] = OfPart(key, first + offset, size - offset < kPart ? size - offset : kPart);
    }
  });
  // As if all were one part, but for the last, whose zeros are left out: its length is no secret.
  const uint64_t shift = Power(key.point, 2 * kBlocksOfPart);
  uint64_t value = static_cast<uint64_t>(size) % kPrime;
  for (const uint64_t of_part : values) value = Add(Multiply(value, shift), of_part);
  return value;
}

}  // namespace aggregathor
