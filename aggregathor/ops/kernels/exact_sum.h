// Sums of doubles that are rounded once, at the end.
#ifndef AGGREGATHOR_OPS_KERNELS_EXACT_SUM_H_
#define AGGREGATHOR_OPS_KERNELS_EXACT_SUM_H_

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace aggregathor {

// A sum of finite doubles >= 0, as a whole number of 2^-1074, the least of them. 2^1024 is 2^2098
// of these, and 2^63 doubles make a sum below 2^(2098 + 63).
class ExactSum {
 public:
  void Add(double x) {
    const Parts parts = PartsOf(x);
    unsigned carry = 0;
    for (size_t w = parts.word; w < parts.word + 2 || (carry != 0 && w < kWords); ++w) {
      const uint64_t term = w - parts.word < 2 ? parts.bits[w - parts.word] : 0;
      carry = __builtin_add_overflow(words_[w], term, &words_[w]) +
              __builtin_add_overflow(words_[w], carry, &words_[w]);
    }
  }

  // x has been added before, so that the sum stays >= 0.
  void Subtract(double x) {
    const Parts parts = PartsOf(x);
    unsigned borrow = 0;
    for (size_t w = parts.word; w < parts.word + 2 || (borrow != 0 && w < kWords); ++w) {
      const uint64_t term = w - parts.word < 2 ? parts.bits[w - parts.word] : 0;
      borrow = __builtin_sub_overflow(words_[w], term, &words_[w]) +
               __builtin_sub_overflow(words_[w], borrow, &words_[w]);
    }
  }

  // The nearest double, rounded once; +inf beyond the largest.
  double Value() const {
    size_t w = kWords - 1;
    while (w > 0 && words_[w] == 0) --w;
    if (w == 0) return std::scalbn(static_cast<double>(words_[0]), kLeast);
    const int shift = __builtin_clzll(words_[w]);
    uint64_t top = words_[w] << shift, rest = words_[w - 1] << shift;
    if (shift > 0) top |= words_[w - 1] >> (64 - shift);
    for (size_t lower = w - 1; lower-- > 0 && rest == 0;) rest = words_[lower];
    if (rest != 0) top |= 1;  // below what a double holds of 64 bits, but tells it from a tie
    return std::scalbn(static_cast<double>(top), static_cast<int>(64 * w) - shift + kLeast);
  }

 private:
  static constexpr size_t kWords = 34;  // 2176 bits
  static constexpr int kLeast = -1074;  // the exponent of the least bit

  // The bits of |x|, from those of words_[word] on.
  struct Parts {
    uint64_t bits[2];
    size_t word;
  };
  static Parts PartsOf(double x) {
    uint64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint64_t exponent = bits >> 52 & 0x7ff, fraction = bits & ((uint64_t{1} << 52) - 1);
    const uint64_t whole = exponent == 0 ? fraction : fraction | uint64_t{1} << 52;
    const uint64_t place = exponent == 0 ? 0 : exponent - 1;
    const uint64_t shift = place % 64;
    return {{whole << shift, shift == 0 ? 0 : whole >> (64 - shift)}, place / 64};
  }

  std::array<uint64_t, kWords> words_{};
};

}  // namespace aggregathor

#endif  // AGGREGATHOR_OPS_KERNELS_EXACT_SUM_H_
