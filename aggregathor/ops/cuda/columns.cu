// Coordinate-wise rules on a GPU: one thread sorts one column and averages a window of it.
#include "aggregathor/ops/cuda/sorted.cuh"
#include "aggregathor/ops/kernels/kernels.h"

namespace aggregathor {
namespace {

// The window of k sorted values that does not depend on them: for the nearest to a center, the
// window whose mean is that center.
__device__ Range FixedWindow(Window window, int k, int f) {
  switch (window) {
    case Window::kMedianUpper:
      return UpperMedianRange(k);
    case Window::kMedianLower:
      return LowerMedianRange(k);
    case Window::kTrimmedMean:
    case Window::kPhocas:
      return k > 2 * f ? Range{f, k - f} : MedianRange(k);
    case Window::kMedian:
    case Window::kMeamed:
      break;
  }
  return MedianRange(k);
}

// The window of k sorted values of a column of n.
template <typename T, typename U>
__device__ Range WindowOf(Column<T> sorted, int k, Column<U> by_row, int n, Window window, int f) {
  if (k == 0) return {0, 0};
  const Range fixed = FixedWindow(window, k, f);
  const bool nearest = window == Window::kMeamed || window == Window::kPhocas;
  if (!nearest || k <= 2 * f) return fixed;
  return NearestRange(sorted, k, by_row, n, MeanOf(sorted, fixed), k - f);
}

// Shared memory: T sorted[n][blockDim.x], then unsigned kept[n] if kept_n is not null. A block
// counts in 32 bits, as its columns are at most 1 in kMaxBlocks of them all.
template <typename T, int N>
__global__ void WindowMean(const T* __restrict__ stack_nd, int n, int64_t d, Window window, int f,
                           T* __restrict__ grad_d, unsigned long long* kept_n) {
  AGGREGATHOR_SHARED(shared);
  const Column<T> sorted{reinterpret_cast<T*>(shared) + threadIdx.x, blockDim.x};
  unsigned* kept = reinterpret_cast<unsigned*>(reinterpret_cast<T*>(shared) + n * blockDim.x);
  if (kept_n != nullptr) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) kept[i] = 0;
    __syncthreads();
  }
  EachCoordinate(d, [&](int64_t j) {
    const Column<const T> by_row{stack_nd + j, d};
    const int k = SortColumn<N>(by_row, n, sorted);
    const Range r = WindowOf(sorted, k, by_row, n, window, f);
    grad_d[j] = MeanUnlessHopeless(sorted, r, k, f);
    if (kept_n == nullptr || k == 0) return;
    const T low = sorted[r.begin], high = sorted[r.end - 1];
    for (int i = 0; i < n; ++i) {
      const T x = by_row[i];
      if (x >= low && x <= high) atomicAdd(&kept[i], 1u);
    }
  });
  if (kept_n != nullptr) {
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
      atomicAdd(&kept_n[i], static_cast<unsigned long long>(kept[i]));
    }
  }
}

template <typename T>
int LaunchWindowMean(const T* stack_nd, int64_t n, int64_t d, int window, int64_t f, T* grad_d,
                     int64_t* kept_n, void* stream) {
  const int64_t column_bytes = n * static_cast<int64_t>(sizeof(T));
  const int64_t kept_bytes = kept_n == nullptr ? 0 : n * static_cast<int64_t>(sizeof(unsigned));
  const int threads = ThreadsFor(column_bytes, kept_bytes);
  if (threads == 0) return kAggregathorCudaTooManyRows;
  if (kept_n != nullptr) {
    const int code = Forget(cudaMemsetAsync(kept_n, 0, static_cast<size_t>(n) * sizeof *kept_n,
                                            static_cast<cudaStream_t>(stream)));
    if (code != cudaSuccess) return code;
  }
  return WithSorter(n, [&](auto sorter) {
    return Launch(&WindowMean<T, sorter.value>, BlocksFor(d, threads), threads,
                  threads * column_bytes + kept_bytes, stream, stack_nd, static_cast<int>(n), d,
                  static_cast<Window>(window), static_cast<int>(f < n ? f : n), grad_d,
                  reinterpret_cast<unsigned long long*>(kept_n));
  });
}

}  // namespace
}  // namespace aggregathor

extern "C" {
#define AGGREGATHOR_DEFINE(T)                                                                 \
  int aggregathor_cuda_window_mean_##T(const T* stack_nd, int64_t n, int64_t d, int window,   \
                                       int64_t f, T* grad_d, int64_t* kept_n, void* stream) { \
    return aggregathor::LaunchWindowMean(stack_nd, n, d, window, f, grad_d, kept_n, stream);  \
  }
AGGREGATHOR_DEFINE(float)
AGGREGATHOR_DEFINE(double)
#undef AGGREGATHOR_DEFINE
}
