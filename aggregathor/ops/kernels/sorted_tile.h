// kLanes columns of n values, sorted side by side.
// For the files that are compiled once per instruction set.
#ifndef AGGREGATHOR_OPS_KERNELS_SORTED_TILE_H_
#define AGGREGATHOR_OPS_KERNELS_SORTED_TILE_H_

#include <utility>  // std::integer_sequence, which is a type only: see isa.h

#include "aggregathor/ops/kernels/isa.h"
#include "aggregathor/ops/kernels/network.h"
#include "aggregathor/ops/kernels/schedule.h"
#include "aggregathor/ops/kernels/simd.h"

namespace aggregathor::AGGREGATHOR_ISA {

// Sorts N registers' worth of columns from values[N][stride] into sorted[N][kLanes], which may be
// the same, and meanwhile fetches kFetch cache lines, ahead, ahead + step and so on. Spread out
// between the comparisons: asked for all at once, they would hold these up.
template <int N, int kFetch, typename T, int... I>
[[gnu::always_inline]] inline void SortRegisters(const T* values, int64_t stride, T* sorted,
                                                 const T* ahead, int64_t step,
                                                 std::integer_sequence<int, I...>) {
  constexpr int kEvery = Network<N>::kSize > kFetch ? Network<N>::kSize / kFetch : 1;
  constexpr int kFetched = (Network<N>::kSize + kEvery - 1) / kEvery;
  [[maybe_unused]] Vector<T> v[N];
  (
      [&] {
        constexpr SortStep kStep = Schedule<N>::kSteps.of[I];
        if constexpr (kStep.load_low) v[kStep.low] = Load(values + kStep.low * stride);
        if constexpr (kStep.load_high) v[kStep.high] = Load(values + kStep.high * stride);
        const Vector<T> low = v[kStep.low], high = v[kStep.high];
        v[kStep.low] = Min(low, high);
        v[kStep.high] = Max(low, high);
        if constexpr (kStep.store_low) Store(sorted + kStep.low * kLanes, v[kStep.low]);
        if constexpr (kStep.store_high) Store(sorted + kStep.high * kLanes, v[kStep.high]);
        if constexpr (I % kEvery == 0 && I / kEvery < kFetch) {
          __builtin_prefetch(ahead + I / kEvery * step);
        }
      }(),
      ...);
  if constexpr (N == 1) Store(sorted, Load(values));
  for (int i = kFetched; i < kFetch; ++i) __builtin_prefetch(ahead + i * step);
}

// Cache lines that a row is fetched ahead of its use.
inline constexpr int64_t kLinesAhead = 2;

// Sorts each of kLanes columns of N values: values[N][stride] -> sorted[N][kLanes]. A missing value
// is taken for +inf, so that it sorts last: a true +inf sorts just before it or in its place, which
// is the same number. missing[l] += the number of NaN in column l; returns whether there are any.
//
// The 2 * 95 minima and maxima of N = 19 take about as long as the memory takes to deliver 19 cache
// lines.
template <typename T, int N>
bool SortBlock(const T* values, int64_t stride, T* sorted, int32_t* missing) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  constexpr int64_t kRegisters = kLine / kWidth<T>;  // of a cache line, which share its fetching
  bool any = false;
  for (int64_t l = 0; l < kLanes; l += kWidth<T>) {
    const T* from = values + l;
    int64_t from_stride = stride;
    auto nan = EitherIsNan(Load(from), Load(from + (N - 1) * stride));
    for (int i = 1; i + 1 < N; i += 2) {
      nan |= EitherIsNan(Load(from + i * stride), Load(from + (i + 1) * stride));
    }
    if (Any(nan)) {
      any = true;
      const Vector<T> infinity = kInfinity<T> - Vector<T>{};
      auto present = infinity != infinity;  // a mask: 0 or -1 a lane
      for (int i = 0; i < N; ++i) {
        const Vector<T> v = Load(from + i * stride);
        const auto here = v == v;
        present += here;
        Store(sorted + i * kLanes + l, here ? v : infinity);
      }
      for (int64_t c = 0; c < kWidth<T>; ++c) {
        missing[l + c] += static_cast<int32_t>(N + present[c]);
      }
      from = sorted + l;
      from_stride = kLanes;
    }
    // Read again, when their turn comes, from the cache: too many to be kept in registers.
    asm volatile("" ::: "memory");
    const int64_t first = l % kLine / kWidth<T>;
    const T* ahead = values + first * stride + l - l % kLine + kLinesAhead * kLine;
    constexpr int kFetch = static_cast<int>((N + kRegisters - 1) / kRegisters);
    SortRegisters<N, kFetch>(from, from_stride, sorted + l, ahead, kRegisters * stride,
                             std::make_integer_sequence<int, Network<N>::kSize>{});
  }
  return any;
}

// Sorts tiles of kLanes columns of n values. Up to kBlock values of a column are sorted in
// registers; more are sorted block by block, and the blocks merged in the first-level cache.
template <typename T>
class ColumnSorter {
 public:
  static constexpr int64_t kBlock = 32;

  explicit ColumnSorter(int64_t n) : n_(n), num_merges_(CountMerges(n)), merges_(num_merges_) {
    int64_t next = 0;
    VisitNetwork(static_cast<int>(n), kBlock,
                 [&](int low, int high) { merges_[next++] = {low, high}; });
  }

  // values[n][stride] -> sorted[n][kLanes]; missing[l] = the number of NaN in column l. Returns
  // whether there are any.
  bool Sort(const T* values, int64_t stride, T* sorted, int32_t* missing) const {
    for (int64_t l = 0; l < kLanes; ++l) missing[l] = 0;
    bool any = false;
    for (int64_t i = 0; i < n_; i += kBlock) {
      const auto sort = kSortBlock.of[Min(kBlock, n_ - i)];
      any |= sort(values + i * stride, stride, sorted + i * kLanes, missing);
    }
    for (int64_t m = 0; m < num_merges_; ++m) {
      T* low = sorted + merges_[m].low * kLanes;
      T* high = sorted + merges_[m].high * kLanes;
      for (int64_t l = 0; l < kLanes; l += kWidth<T>) {
        const Vector<T> a = Load<T>(low + l), b = Load<T>(high + l);
        Store(low + l, Min(a, b));
        Store(high + l, Max(a, b));
      }
    }
    return any;
  }

 private:
  struct Table {
    bool (*of[kBlock + 1])(const T*, int64_t, T*, int32_t*);
  };
  template <int... I>
  static constexpr Table MakeTable(std::integer_sequence<int, I...>) {
    return {{nullptr, &SortBlock<T, I + 1>...}};
  }
  static constexpr Table kSortBlock = MakeTable(std::make_integer_sequence<int, kBlock>{});

  struct Exchange {
    int32_t low, high;
  };
  static int64_t CountMerges(int64_t n) {
    int64_t count = 0;
    VisitNetwork(static_cast<int>(n), kBlock, [&](int, int) { ++count; });
    return count;
  }

  int64_t n_;
  int64_t num_merges_;
  Scratch<Exchange> merges_;
};

}  // namespace aggregathor::AGGREGATHOR_ISA

#endif  // AGGREGATHOR_OPS_KERNELS_SORTED_TILE_H_
