// What the `.cu` files share: launches, errors, missing values.
//
// They avoid warp shuffles and static shared memory, so that tests/native/cuda_on_cpu.h, included
// before this file by a C++ compiler, can run them without a GPU.
#ifndef AGGREGATHOR_OPS_CUDA_DEVICE_CUH_
#define AGGREGATHOR_OPS_CUDA_DEVICE_CUH_

#ifdef __CUDACC__
#include <cuda_pipeline.h>
#include <cuda_runtime.h>
#define AGGREGATHOR_LAUNCH(kernel, blocks, threads, shared_bytes, stream, ...) \
  kernel<<<blocks, threads, shared_bytes, stream>>>(__VA_ARGS__)
#define AGGREGATHOR_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

#include <cstdint>

#include "aggregathor/ops/cuda/cuda_kernels.h"

// Enough blocks to fill any card; each strides over what is left. Tests set it low.
#ifndef AGGREGATHOR_CUDA_MAX_BLOCKS
#define AGGREGATHOR_CUDA_MAX_BLOCKS 65536
#endif

namespace aggregathor {

constexpr int64_t kMaxBlocks = AGGREGATHOR_CUDA_MAX_BLOCKS;

template <typename T>
__device__ constexpr T kInfinity = static_cast<T>(__builtin_huge_val());

template <typename T>
__device__ inline bool IsMissing(T x) {
  return x != x;
}

// False for NaN too.
template <typename T>
__device__ inline bool IsFinite(T x) {
  return x - x == T{0};
}

// Rows of a column, `stride` apart.
template <typename T>
struct Column {
  T* data;
  int64_t stride;
  __device__ T& operator[](int i) const { return data[i * stride]; }
};

// Loads that a thread starts before it uses the first: enough to hide the memory's latency.
constexpr int kBatch = 8;

// Calls use(i, load(i)) for i in [0, count), kBatch loads at a time.
template <typename Load, typename Use>
__device__ inline void Stream(int count, Load load, Use use) {
  int i = 0;
  for (; i + kBatch <= count; i += kBatch) {
    decltype(load(0)) x[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) x[b] = load(i + b);
#pragma unroll
    for (int b = 0; b < kBatch; ++b) use(i + b, x[b]);
  }
  for (; i < count; ++i) use(i, load(i));
}

// Calls at(j) for the coordinates j of this thread.
template <typename F>
__device__ inline void EachCoordinate(int64_t d, F at) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t j = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; j < d; j += stride)
    at(j);
}

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks of `threads` for d coordinates.
inline int64_t BlocksFor(int64_t d, int threads) {
  const int64_t blocks = CeilDiv(d, threads);
  return blocks < kMaxBlocks ? blocks : kMaxBlocks;
}

// What a block has without asking for more.
constexpr int64_t kPlainSharedBytes = 48 << 10;

// The code of a failed call. It is ours to report: forgotten here, the next launch would find it.
inline int Forget(cudaError_t code) {
  if (code != cudaSuccess) cudaGetLastError();
  return code;
}

// Shared memory that a block may ask for; 0 where the device does not tell.
inline int64_t MaxSharedBytes() {
  int device = 0, bytes = 0;
  if (Forget(cudaGetDevice(&device)) != cudaSuccess) return 0;
  Forget(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes;
}

// Runs a kernel, on no data if there are no blocks.
template <typename... Params, typename... Args>
int Launch(void (*kernel)(Params...), int64_t blocks, int threads, int64_t shared_bytes,
           void* stream, Args... args) {
  if (blocks == 0) return cudaSuccess;
  if (shared_bytes > kPlainSharedBytes) {
    const int code = Forget(cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
    if (code != cudaSuccess) return code;
  }
  AGGREGATHOR_LAUNCH(kernel, static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
                     static_cast<size_t>(shared_bytes), static_cast<cudaStream_t>(stream), args...);
  return cudaGetLastError();
}

}  // namespace aggregathor

#endif  // AGGREGATHOR_OPS_CUDA_DEVICE_CUH_
