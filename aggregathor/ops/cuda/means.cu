// Means of rows on a GPU: of all, of chosen ones, and weighted. One thread a coordinate: a warp
// reads 32 neighbouring values of a row at once. Added in row order and in double, as on the CPU.
#include "aggregathor/ops/cuda/device.cuh"
#include "aggregathor/ops/kernels/mean_of_large.h"

namespace aggregathor {
namespace {

constexpr int kThreads = 256;

// `rows` may be null for all of them.
template <typename T>
__global__ void Mean(const T* __restrict__ stack_nd, int64_t d, const int64_t* __restrict__ rows,
                     int m, bool skip_missing, T* __restrict__ grad_d) {
  EachCoordinate(d, [&](int64_t j) {
    const auto value = [&](int i) { return stack_nd[(rows == nullptr ? i : rows[i]) * d + j]; };
    double sum = 0;
    int count = 0;
    Stream(m, value, [&](int, T x) {
      if (skip_missing && IsMissing(x)) return;
      sum += x;
      ++count;
    });
    double mean = count == 0 ? 0 : sum / count;
    if constexpr (sizeof(T) == sizeof(double)) {  // sums of doubles may overflow
      if (!IsFinite(mean)) {
        MeanOfLarge large;
        for (int i = 0; i < m; ++i) {
          if (!skip_missing || !IsMissing(value(i))) large.Add(value(i));
        }
        mean = large.Mean();
      }
    }
    grad_d[j] = static_cast<T>(mean);
  });
}

template <typename T>
__global__ void WeightedMean(const T* __restrict__ stack_nd, int n, int64_t d,
                             const double* __restrict__ weight_n, T* __restrict__ grad_d) {
  EachCoordinate(d, [&](int64_t j) {
    double sum = 0, weights = 0;
    Stream(
        n,
        // A row of weight 0 may hold infinities.
        [&](int i) { return weight_n[i] == 0 ? T{0} : stack_nd[i * d + j]; },
        [&](int i, T x) {
          if (IsMissing(x)) return;
          sum += weight_n[i] * x;
          weights += weight_n[i];
        });
    double mean = weights == 0 ? 0 : sum / weights;
    if constexpr (sizeof(T) == sizeof(double)) {  // sums of doubles may overflow
      if (!IsFinite(mean)) {
        MeanOfLarge large;
        for (int i = 0; i < n; ++i) {
          const T x = stack_nd[i * d + j];
          if (weight_n[i] != 0 && !IsMissing(x)) large.Add(x, weight_n[i]);
        }
        mean = large.Mean();
      }
    }
    grad_d[j] = static_cast<T>(mean);
  });
}

template <typename T>
int LaunchMean(const T* stack_nd, int64_t d, const int64_t* rows, int64_t m, bool skip_missing,
               T* grad_d, void* stream) {
  if (m > INT32_MAX) return kAggregathorCudaTooManyRows;
  return Launch(&Mean<T>, BlocksFor(d, kThreads), kThreads, 0, stream, stack_nd, d, rows,
                static_cast<int>(m), skip_missing, grad_d);
}

template <typename T>
int LaunchWeightedMean(const T* stack_nd, int64_t n, int64_t d, const double* weight_n, T* grad_d,
                       void* stream) {
  if (n > INT32_MAX) return kAggregathorCudaTooManyRows;
  return Launch(&WeightedMean<T>, BlocksFor(d, kThreads), kThreads, 0, stream, stack_nd,
                static_cast<int>(n), d, weight_n, grad_d);
}

}  // namespace
}  // namespace aggregathor

extern "C" {

#define AGGREGATHOR_DEFINE(T)                                                                      \
  int aggregathor_cuda_mean_##T(const T* stack_nd, int64_t n, int64_t d, bool skip_missing,        \
                                T* grad_d, void* stream) {                                         \
    return aggregathor::LaunchMean(stack_nd, d, nullptr, n, skip_missing, grad_d, stream);         \
  }                                                                                                \
  int aggregathor_cuda_mean_of_rows_##T(const T* stack_nd, int64_t, int64_t d,                     \
                                        const int64_t* rows, int64_t m, T* grad_d, void* stream) { \
    return aggregathor::LaunchMean(stack_nd, d, rows, m, true, grad_d, stream);                    \
  }                                                                                                \
  int aggregathor_cuda_weighted_mean_##T(const T* stack_nd, int64_t n, int64_t d,                  \
                                         const double* weight_n, T* grad_d, void* stream) {        \
    return aggregathor::LaunchWeightedMean(stack_nd, n, d, weight_n, grad_d, stream);              \
  }
AGGREGATHOR_DEFINE(float)
AGGREGATHOR_DEFINE(double)
#undef AGGREGATHOR_DEFINE

const char* aggregathor_cuda_error(int code) {
  if (code == kAggregathorCudaTooManyRows) {
    return "more rows than one column of shared memory, or a 32-bit number, holds";
  }
  return cudaGetErrorString(static_cast<cudaError_t>(code));
}

int aggregathor_cuda_to_device(void* to, const void* from, int64_t bytes, void* stream) {
  return aggregathor::Forget(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes),
                                             cudaMemcpyHostToDevice,
                                             static_cast<cudaStream_t>(stream)));
}

int aggregathor_cuda_to_host(void* to, const void* from, int64_t bytes, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const int code = aggregathor::Forget(
      cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, cuda_stream));
  return code != cudaSuccess ? code : aggregathor::Forget(cudaStreamSynchronize(cuda_stream));
}

int aggregathor_cuda_copy(void* to, const void* from, int64_t bytes, void* stream) {
  return aggregathor::Forget(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes),
                                             cudaMemcpyDeviceToDevice,
                                             static_cast<cudaStream_t>(stream)));
}
}
