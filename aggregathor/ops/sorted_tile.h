// kLanes columns of n values, sorted side by side.
// For the files that are compiled once per instruction set.
#ifndef AGGREGATHOR_OPS_SORTED_TILE_H_
#define AGGREGATHOR_OPS_SORTED_TILE_H_

#include <utility>  // std::integer_sequence, which is a type only: see isa.h

#include "aggregathor/ops/isa.h"
#include "aggregathor/ops/simd.h"

namespace aggregathor::AGGREGATHOR_ISA {

// Merges two sorted runs that lie behind each other, of p values and of what there is before n of
// the next p: Batcher's odd-even merge. Of these values it takes every step-th from `first` on,
// which are such runs themselves. Calls visit(low, high) for each compare-exchange; returns their
// number.
template <typename F>
constexpr int64_t VisitMerge(int64_t n, int64_t first, int64_t p, int64_t step, F visit) {
  if (first + p >= n) return 0;  // there is no second run
  if (step == p) return visit(first, first + p), 1;
  int64_t count = VisitMerge(n, first, p, 2 * step, visit);
  count += VisitMerge(n, first + step, p, 2 * step, visit);
  for (int64_t i = first + step; i + step < first + 2 * p && i + step < n; i += 2 * step) {
    visit(i, i + step);
    ++count;
  }
  return count;
}

// The compare-exchanges of Batcher's merge sort for any n (Knuth, The Art of Computer Programming
// 3, 5.2.2 algorithm M, less those that meet no value of a second run): O(n log^2 n), 95 for n
// = 19. Sorted runs of first_p values are taken as given.
template <typename F>
constexpr int64_t VisitNetwork(int64_t n, int64_t first_p, F visit) {
  int64_t count = 0;
  for (int64_t p = first_p; p < n; p *= 2) {
    for (int64_t first = 0; first < n; first += 2 * p) count += VisitMerge(n, first, p, 1, visit);
  }
  return count;
}

struct Pair {
  int32_t low, high;
};

// The whole network of N values as constants, so that the compiler can unroll it over registers.
template <int N>
struct Network {
  static constexpr int kSize = static_cast<int>(VisitNetwork(N, 1, [](int64_t, int64_t) {}));
  struct Pairs {
    Pair at[kSize + 1];
  };
  static constexpr Pairs kPairs = [] {
    Pairs pairs{};
    int next = 0;
    VisitNetwork(N, 1, [&](int64_t low, int64_t high) {
      pairs.at[next++] = {static_cast<int32_t>(low), static_cast<int32_t>(high)};
    });
    return pairs;
  }();
};

// Sorts v[0..N) and meanwhile fetches kFetch cache lines, ahead, ahead + step and so on. Spread out
// between the comparisons: asked for all at once, they would hold these up.
template <int N, int kFetch, typename V, typename T, int... I>
[[gnu::always_inline]] inline void SortRegisters(V* v, const T* ahead, int64_t step,
                                                 std::integer_sequence<int, I...>) {
  constexpr int kEvery = Network<N>::kSize > kFetch ? Network<N>::kSize / kFetch : 1;
  constexpr int kFetched = (Network<N>::kSize + kEvery - 1) / kEvery;
  (
      [&] {
        constexpr Pair pair = Network<N>::kPairs.at[I];
        const V low = v[pair.low], high = v[pair.high];
        v[pair.low] = Min(low, high);
        v[pair.high] = Max(low, high);
        if constexpr (I % kEvery == 0 && I / kEvery < kFetch) {
          __builtin_prefetch(ahead + I / kEvery * step);
        }
      }(),
      ...);
  for (int i = kFetched; i < kFetch; ++i) __builtin_prefetch(ahead + i * step);
}

// Cache lines that a row is fetched ahead of its use.
inline constexpr int64_t kLinesAhead = 2;

// Sorts each of kLanes columns of N values: values[N][stride] -> sorted[N][kLanes]. A missing value
// is taken for +inf, so that it sorts last: a true +inf sorts just before it or in its place, which
// is the same number. missing[l] += the number of NaN in column l; returns whether there are any.
//
// N registers are sorted at once: each value is loaded once, and the 2 * 95 minima and maxima of
// N = 19 take about as long as the memory takes to deliver 19 cache lines.
template <typename T, int N>
bool SortBlock(const T* values, int64_t stride, T* sorted, int32_t* missing) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  constexpr int64_t kRegisters = kLine / kWidth<T>;  // of a cache line, which share its fetching
  bool any = false;
  for (int64_t l = 0; l < kLanes; l += kWidth<T>) {
    Vector<T> v[N];
    for (int i = 0; i < N; ++i) v[i] = Load<T>(values + i * stride + l);
    auto nan = EitherIsNan(v[0], v[N - 1]);
    for (int i = 1; i + 1 < N; i += 2) nan |= EitherIsNan(v[i], v[i + 1]);
    if (Any(nan)) {
      any = true;
      const Vector<T> infinity = kInfinity<T> - Vector<T>{};
      auto present = v[0] == v[0];  // a mask: 0 or -1 a lane
      present = present ^ present;
      for (int i = 0; i < N; ++i) {
        const auto here = v[i] == v[i];
        present += here;
        v[i] = here ? v[i] : infinity;
      }
      for (int64_t c = 0; c < kWidth<T>; ++c) {
        missing[l + c] += static_cast<int32_t>(N + present[c]);
      }
    }
    const int64_t first = l % kLine / kWidth<T>;
    const T* ahead = values + first * stride + l - l % kLine + kLinesAhead * kLine;
    constexpr int kFetch = static_cast<int>((N + kRegisters - 1) / kRegisters);
    SortRegisters<N, kFetch>(v, ahead, kRegisters * stride,
                             std::make_integer_sequence<int, Network<N>::kSize>{});
    for (int i = 0; i < N; ++i) Store(sorted + i * kLanes + l, v[i]);
  }
  return any;
}

// Sorts tiles of kLanes columns of n values. Up to kBlock values of a column are sorted in
// registers; more are sorted block by block, and the blocks merged in the first-level cache.
template <typename T>
class ColumnSorter {
 public:
  static constexpr int64_t kBlock = 32;

  explicit ColumnSorter(int64_t n)
      : n_(n), num_merges_(VisitNetwork(n, kBlock, [](int64_t, int64_t) {})), merges_(num_merges_) {
    int64_t next = 0;
    VisitNetwork(n, kBlock, [&](int64_t low, int64_t high) {
      merges_[next++] = {static_cast<int32_t>(low), static_cast<int32_t>(high)};
    });
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

  int64_t n_;
  int64_t num_merges_;
  Scratch<Pair> merges_;
};

}  // namespace aggregathor::AGGREGATHOR_ISA

#endif  // AGGREGATHOR_OPS_SORTED_TILE_H_
