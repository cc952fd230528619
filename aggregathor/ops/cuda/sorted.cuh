// One column of n values sorted by one thread, and windows of the sorted values: sorted_tile.h and
// windows.h on a GPU.
//
// Up to kBlock values are sorted in registers, more block by block, and the blocks merged in shared
// memory. Sorted values go to shared memory, where a window may be indexed at run time. A column
// belongs to one thread, so nothing here waits for other threads.
#ifndef AGGREGATHOR_OPS_CUDA_SORTED_CUH_
#define AGGREGATHOR_OPS_CUDA_SORTED_CUH_

#include <utility>

#include "aggregathor/ops/cuda/device.cuh"
#include "aggregathor/ops/kernels/mean_of_large.h"
#include "aggregathor/ops/kernels/nearest.h"
#include "aggregathor/ops/kernels/network.h"

namespace aggregathor {

constexpr int kBlock = 32;
// Columns of a block: few, as sorters take so many registers that larger blocks leave some unused.
constexpr int kMaxColumns = 128;

__device__ inline float Min(float a, float b) { return fminf(a, b); }
__device__ inline float Max(float a, float b) { return fmaxf(a, b); }
__device__ inline double Min(double a, double b) { return b < a ? b : a; }
__device__ inline double Max(double a, double b) { return b < a ? a : b; }

template <typename T>
__device__ inline void Exchange(T& low, T& high) {
  const T a = low, b = high;
  low = Min(a, b);
  high = Max(a, b);
}

template <int N, typename T, int... I>
__device__ inline void SortRegisters(T (&v)[N], std::integer_sequence<int, I...>) {
  (Exchange(v[std::integral_constant<int, Network<N>::kPairs.low[I]>::value],
            v[std::integral_constant<int, Network<N>::kPairs.high[I]>::value]),
   ...);
}

// Sorts `values` into `sorted`, which may be the same memory; returns how many are present. A
// missing value is taken for +inf, so that it sorts last: a true +inf sorts just before it or in
// its place, which is the same number. N: n rounded up to a multiple of 4, at most kBlock.
template <int N, typename T, typename U>
__device__ int SortColumn(Column<U> values, int n, Column<T> sorted) {
  int k = n;
  for (int first = 0; first < n; first += N) {
    T v[N];
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = first + i < n ? values[first + i] : kInfinity<T>;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (!IsMissing(v[i])) continue;
      v[i] = kInfinity<T>;
      --k;
    }
    SortRegisters(v, std::make_integer_sequence<int, Network<N>::kSize>{});
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (first + i < n) sorted[first + i] = v[i];
    }
  }
  if constexpr (N == kBlock) {
    VisitNetwork(n, kBlock, [&](int low, int high) { Exchange(sorted[low], sorted[high]); });
  }
  return k;
}

// A window [begin, end) of the sorted present values.
struct Range {
  int begin, end;
};

__device__ inline Range MedianRange(int k) { return {(k - 1) / 2, k / 2 + 1}; }
__device__ inline Range UpperMedianRange(int k) { return {k / 2, k / 2 + 1}; }
__device__ inline Range LowerMedianRange(int k) { return {(k - 1) / 2, (k - 1) / 2 + 1}; }

// Added in ascending order, so that the order of the rows does not matter; in double, so that
// neither rounding nor overflow of a float32 sum does.
template <typename T>
__device__ double MeanOf(Column<T> sorted, Range r) {
  double sum = 0;
  for (int i = r.begin; i < r.end; ++i) sum += sorted[i];
  const double mean = sum / (r.end - r.begin);
  if constexpr (sizeof(T) == sizeof(double)) {  // sums of doubles may overflow
    if (r.begin < r.end && !IsFinite(mean) && IsFinite(sorted[r.begin]) &&
        IsFinite(sorted[r.end - 1])) {
      MeanOfLarge large;
      for (int i = r.begin; i < r.end; ++i) large.Add(sorted[i]);
      return large.Mean();
    }
  }
  return mean;
}

// The `keep` of k sorted values that are nearest to `center`; `by_row` are the n values in the
// order of their rows (nearest.h).
template <typename T, typename U>
__device__ Range NearestRange(Column<T> sorted, int k, Column<U> by_row, int n, double center,
                              int keep) {
  const int begin = NumBelowNearest([&](int i) -> T { return sorted[i]; }, k,
                                    [&](int i) -> T { return by_row[i]; }, n, center, keep);
  return {begin, begin + keep};
}

// The mean of a window of k values; 0 for none. Where so few are left that f bad ones may decide,
// and the mean is not finite, there is no update.
template <typename T>
__device__ T MeanUnlessHopeless(Column<T> sorted, Range r, int k, int f) {
  if (k == 0) return T{0};
  const T mean = static_cast<T>(MeanOf(sorted, r));
  return k <= 2 * f && !IsFinite(mean) ? T{0} : mean;
}

// How many columns a block sorts, of `column_bytes` of shared memory each beside `more_bytes`; 0 if
// not even one fits. 32, a warp, if only the most that a block can have holds so many; fewer leave
// lanes of it idle.
inline int ThreadsFor(int64_t column_bytes, int64_t more_bytes) {
  for (int threads = kMaxColumns; threads >= 32; threads /= 2) {
    if (threads * column_bytes + more_bytes <= kPlainSharedBytes) return threads;
  }
  const int64_t most = MaxSharedBytes();
  for (int threads = 32; threads >= 1; threads /= 2) {
    if (threads * column_bytes + more_bytes <= most) return threads;
  }
  return 0;
}

// Calls launch(std::integral_constant<int, N>) with the N of SortColumn for n values.
template <int N = 4, typename F>
int WithSorter(int64_t n, F launch) {
  if constexpr (N < kBlock) {
    if (n > N) return WithSorter<N + 4>(n, launch);
  }
  return launch(std::integral_constant<int, N>{});
}

}  // namespace aggregathor

#endif  // AGGREGATHOR_OPS_CUDA_SORTED_CUH_
