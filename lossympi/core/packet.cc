#include "lossympi/core/packet.h"

#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lossympi {
namespace {

// Little-endian, whatever the processor is.
template <typename T>
void Put(T value, uint8_t* to) {
  for (size_t i = 0; i < sizeof value; ++i) to[i] = static_cast<uint8_t>(value >> 8 * i);
}

template <typename T>
T Get(const uint8_t* from) {
  T value = 0;
  for (size_t i = 0; i < sizeof value; ++i) value |= static_cast<T>(from[i]) << 8 * i;
  return value;
}

uint32_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float FloatOf(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

uint16_t ToBfloat16(float value) {
  const uint32_t bits = BitsOf(value);
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;
  // The upper half, plus one if the lower half is above its middle, or at it and the upper is odd.
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>(nan ? bits >> 16 | 0x40
                                   : rounded);  // 0x40: still a NaN, a quiet one
}

float FromBfloat16(uint16_t half) { return FloatOf(static_cast<uint32_t>(half) << 16); }

// By hand, as not every compiler has a type for it.
uint16_t ToFloat16(float value) {
  const uint32_t sign = BitsOf(value) >> 16 & 0x8000, bits = BitsOf(value) & 0x7fffffff;
  uint32_t half;
  if (bits > 0x7f800000) {
    half = 0x7e00 | (bits >> 13 & 0x1ff);  // a quiet NaN
  } else if (bits >= 0x477ff000) {
    half = 0x7c00;  // from 65520 on the nearest is infinity
  } else if (bits < 0x38800000) {
    // Below 2^-14 halves are multiples of 2^-24, as are the floats from 1/2 to 1.
    half = BitsOf(FloatOf(bits) + 0.5f) - BitsOf(0.5f);
  } else {
    half = (bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13;
  }
  return static_cast<uint16_t>(sign | half);
}

float FromFloat16(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7fffu;
  if (rest > 0x7c00) return FloatOf(sign | 0x7fc00000 | rest << 13);
  if (rest == 0x7c00) return FloatOf(sign | 0x7f800000);
  const float size =
      rest < 0x400 ? static_cast<float>(rest) * 0x1p-24f : FloatOf((rest << 13) + 0x38000000);
  return FloatOf(sign | BitsOf(size));
}

#if defined(__x86_64__)
__attribute__((target("avx,f16c"))) size_t NarrowVectors(const float* from, size_t size,
                                                         uint8_t* to) {
  size_t i = 0;
  for (; i + 8 <= size; i += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * i), half);
  }
  return i;
}
__attribute__((target("avx,f16c"))) size_t WidenVectors(const uint8_t* from, size_t size,
                                                        float* to) {
  size_t i = 0;
  for (; i + 8 <= size; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 2 * i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(half));
  }
  return i;
}
bool HasVectors() {  // every processor with AVX2 has F16C, which not every compiler can ask for
  static const bool has = __builtin_cpu_supports("avx2");
  return has;
}
#else
size_t NarrowVectors(const float*, size_t, uint8_t*) { return 0; }
size_t WidenVectors(const uint8_t*, size_t, float*) { return 0; }
bool HasVectors() { return false; }
#endif

// Bit i is 1 where arrived[i] is 0, for i below `size`, 8 at most.
uint8_t MissingOf(const uint8_t* arrived, size_t size) {
  constexpr uint64_t kEach = 0x0101010101010101;
  uint64_t bytes = kEach;
  std::memcpy(&bytes, arrived, size);
  // The product's highest byte takes the lowest bit of each byte, and nothing is carried into it.
  return static_cast<uint8_t>(((bytes ^ kEach) * 0x0102040810204080) >> 56);
}

}  // namespace

const char* NameOf(Verdict verdict) {
  constexpr const char* kNames[kNumVerdicts] = {"accepted", "truncated", "oversized", "version",
                                                "foreign",  "forged",    "malformed", "replayed",
                                                "early",    "late",      "duplicate"};
  return kNames[static_cast<int>(verdict)];
}

void Pack(const Header& header, uint8_t* to) {
  to[0] = kVersion;
  to[1] = static_cast<uint8_t>(header.kind);
  Put(header.rank, to + 2);
  Put(header.session, to + 4);
  Put(header.round, to + 8);
  Put(header.seq, to + 16);
  Put(header.total, to + 20);
  Put(header.counter, to + 24);
}

int VersionOf(const uint8_t* datagram) { return datagram[0]; }

Header Unpack(const uint8_t* from) {
  Header header;
  header.kind = static_cast<Kind>(from[1]);
  header.rank = Get<uint16_t>(from + 2);
  header.session = Get<uint32_t>(from + 4);
  header.round = Get<uint64_t>(from + 8);
  header.seq = Get<uint32_t>(from + 16);
  header.total = Get<uint32_t>(from + 20);
  header.counter = Get<uint64_t>(from + 24);
  return header;
}

// Floats in memory are taken for little-endian, as they are on all that TensorFlow runs on.
void Narrow(const float* from, size_t size, Wire wire, uint8_t* to) {
  if (wire == Wire::kFloat32) {
    std::memcpy(to, from, size * sizeof(float));
  } else if (wire == Wire::kBfloat16) {
    for (size_t i = 0; i < size; ++i) Put(ToBfloat16(from[i]), to + 2 * i);
  } else {
    size_t i = HasVectors() ? NarrowVectors(from, size, to) : 0;
    for (; i < size; ++i) Put(ToFloat16(from[i]), to + 2 * i);
  }
}

void Widen(const uint8_t* from, size_t size, Wire wire, float* to) {
  if (wire == Wire::kFloat32) {
    std::memcpy(to, from, size * sizeof(float));
  } else if (wire == Wire::kBfloat16) {
    for (size_t i = 0; i < size; ++i) to[i] = FromBfloat16(Get<uint16_t>(from + 2 * i));
  } else {
    size_t i = HasVectors() ? WidenVectors(from, size, to) : 0;
    for (; i < size; ++i) to[i] = FromFloat16(Get<uint16_t>(from + 2 * i));
  }
}

std::vector<Nack> NacksOf(const uint8_t* arrived, uint32_t total, size_t most_bytes) {
  std::vector<Nack> nacks;
  for (uint64_t first = 0; first < total; first += 8 * most_bytes) {
    const uint64_t end = first + 8 * most_bytes < total ? first + 8 * most_bytes : total;
    Nack nack{static_cast<uint32_t>(first), {}};
    for (uint64_t seq = first; seq < end; seq += 8) {
      const uint8_t bits = MissingOf(arrived + seq, end - seq < 8 ? end - seq : 8);
      if (bits == 0) continue;
      if (nack.bitmap.empty()) nack.bitmap.resize((end - first + 7) / 8);
      nack.bitmap[(seq - first) / 8] = bits;
    }
    if (!nack.bitmap.empty()) nacks.push_back(std::move(nack));
  }
  return nacks;
}

}  // namespace lossympi
