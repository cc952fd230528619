// What arrival rules do with one gradient: sums over it, and a running mean. The same bits on any
// number of threads and for each instruction set:
//
// - Sums are made in chunks of kChunk values. In a chunk 16 sums take every 16th value each, and
//   are added in order; so are then the chunks, by whoever calls.
// - The product of two floats is exact in double, so that it does not matter whether it is fused
//   with the addition. All else is compiled with -ffp-contract=off (setup.py).
#include "aggregathor/ops/kernels/isa.h"
#include "aggregathor/ops/kernels/simd.h"

namespace aggregathor::AGGREGATHOR_ISA {
namespace {

constexpr int64_t kChunk = 8192, kSums = 16, kRegisters = kSums / kDoubles;
// Of a chunk: 5 cycles for 16 values that lie in the third-level cache.
constexpr int64_t kCyclesPerChunk = kChunk / 3;

struct Sums {
  Doubles lanes[kRegisters] = {};

  // Adds the products of 16 values.
  template <typename T>
  [[gnu::always_inline]] void Add(const T* a, const T* b) {
    for (int64_t r = 0; r < kRegisters; ++r)
      lanes[r] =
          MultiplyAdd(LoadDoubles(a + r * kDoubles), LoadDoubles(b + r * kDoubles), lanes[r]);
  }

  double Total() const {
    double values[kSums], total = 0;
    std::memcpy(values, lanes, sizeof values);
    for (int64_t l = 0; l < kSums; ++l) total += values[l];
    return total;
  }
};

// The last values of a vector, with zeros after them, which change no sum.
template <typename T>
struct Tail {
  Tail(const T* from, int64_t count) { std::memcpy(values, from, count * sizeof(T)); }
  T values[kSums] = {};
};

// a - b, 16 values, rounded to T.
template <typename T>
[[gnu::always_inline]] inline void Subtract(const T* a, const T* b, T* out) {
  for (int64_t r = 0; r < kSums; r += kWidth<T>) Store(out + r, Load(a + r) - Load(b + r));
}

template <typename T>
[[gnu::always_inline]] inline void Copy(const T* from, T* to) {
  for (int64_t r = 0; r < kSums; r += kWidth<T>) Store(to + r, Load(from + r));
}

template <typename F>
void ForChunks(int64_t d, Parallel parallel, F f) {
  For(parallel, (d + kChunk - 1) / kChunk, kCyclesPerChunk, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) f(c, c * kChunk, Min(d, (c + 1) * kChunk));
  });
}

}  // namespace

template <typename T>
void Products(const T* a, const T* b, int64_t d, T* copy, double* aa_c, double* ab_c,
              Parallel parallel) {
  ForChunks(d, parallel, [=](int64_t c, int64_t j, int64_t end) {
    Sums aa, ab;
    for (; j + kSums <= end; j += kSums) {
      if (copy != nullptr) Copy(a + j, copy + j);
      aa.Add(a + j, a + j);
      if (b != nullptr) ab.Add(a + j, b + j);
    }
    if (j < end) {
      if (copy != nullptr) std::memcpy(copy + j, a + j, (end - j) * sizeof(T));
      const Tail<T> of_a(a + j, end - j);
      aa.Add(of_a.values, of_a.values);
      if (b != nullptr) ab.Add(of_a.values, Tail<T>(b + j, end - j).values);
    }
    aa_c[c] = aa.Total();
    if (b != nullptr) ab_c[c] = ab.Total();
  });
}

template <typename T>
void SqDistance(const T* a, const T* b, int64_t d, T* copy, double* sum_c, Parallel parallel) {
  ForChunks(d, parallel, [=](int64_t c, int64_t j, int64_t end) {
    Sums sums;
    T between[kSums];
    for (; j + kSums <= end; j += kSums) {
      if (copy != nullptr) Copy(a + j, copy + j);
      Subtract(a + j, b + j, between);
      sums.Add(between, between);
    }
    if (j < end) {
      if (copy != nullptr) std::memcpy(copy + j, a + j, (end - j) * sizeof(T));
      Subtract(Tail<T>(a + j, end - j).values, Tail<T>(b + j, end - j).values, between);
      sums.Add(between, between);
    }
    sum_c[c] = sums.Total();
  });
}

template <typename T>
void MoveMean(const T* value, int64_t d, T twice_share, T* mean, Parallel parallel) {
  ForChunks(d, parallel, [=](int64_t, int64_t j, int64_t end) {
    // Halves, as the difference of two values may be larger than any.
    for (; j < end; ++j) mean[j] += (value[j] * T{0.5} - mean[j] * T{0.5}) * twice_share;
  });
}

template <typename T>
void Scale(const T* values, int64_t d, T factor, T* out, Parallel parallel) {
  ForChunks(d, parallel, [=](int64_t, int64_t j, int64_t end) {
    for (; j < end; ++j) out[j] = values[j] * factor;
  });
}

#define AGGREGATHOR_INSTANTIATE(T)                                                        \
  template void Products<T>(const T*, const T*, int64_t, T*, double*, double*, Parallel); \
  template void SqDistance<T>(const T*, const T*, int64_t, T*, double*, Parallel);        \
  template void MoveMean<T>(const T*, int64_t, T, T*, Parallel);                          \
  template void Scale<T>(const T*, int64_t, T, T*, Parallel);
AGGREGATHOR_INSTANTIATE(float)
AGGREGATHOR_INSTANTIATE(double)
#undef AGGREGATHOR_INSTANTIATE

}  // namespace aggregathor::AGGREGATHOR_ISA
