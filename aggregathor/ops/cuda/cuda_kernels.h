// The kernels on a GPU, behind a C interface: no TensorFlow in the `.cu` files, no CUDA in the
// caller. They compute what kernels.h says.
//
// Pointers are the device's unless they say otherwise. Functions enqueue their work on `stream` (a
// cudaStream_t) and return an error code, 0 for none, that aggregathor_cuda_error names. The same
// input gives the same bits on the same card.
#ifndef AGGREGATHOR_OPS_CUDA_CUDA_KERNELS_H_
#define AGGREGATHOR_OPS_CUDA_CUDA_KERNELS_H_

#include <cstdint>

#include "aggregathor/ops/kernels/wide.h"

// Error codes of ours; CUDA's are positive.
enum { kAggregathorCudaTooManyRows = -1 };

extern "C" {
const char* aggregathor_cuda_error(int code);

// `bytes` from this host to the device. `from` may be changed or freed afterwards unless it is
// pinned memory, which a std::vector's is not.
int aggregathor_cuda_to_device(void* to, const void* from, int64_t bytes, void* stream);
// `bytes` from the device to this host; returns when they, and all before them on the stream, are
// there.
int aggregathor_cuda_to_host(void* to, const void* from, int64_t bytes, void* stream);
// `bytes` from one place on the device to another.
int aggregathor_cuda_copy(void* to, const void* from, int64_t bytes, void* stream);

// How Bulyan's candidates are made from each other, as steps for bulyan_tail: at most
// theta * (m + 2) of them, here and in `groups` on the host. Returns how many there are.
int64_t aggregathor_cuda_bulyan_steps(const int64_t* groups, int64_t theta, int64_t m,
                                      int32_t* steps);

// Bytes of scratch memory that the function of this name needs.
int64_t aggregathor_cuda_sq_distances_scratch(int64_t n, int64_t d);
int64_t aggregathor_cuda_sq_distances_to_scratch(int64_t n, int64_t d);

// wide[p] = the squared distance of rows pairs[p] / n and pairs[p] % n, in the unit that what
// sq_distances found for them asks for: where squares of doubles overflow or underflow (wide.h).
int aggregathor_cuda_wide_sq_distances(const double* stack_nd, int64_t n, int64_t d,
                                       const int64_t* pairs, int64_t num_pairs,
                                       const double* sq_dist_nn, aggregathor::Wide* wide,
                                       void* stream);

// Columns are sorted in shared memory, so that window_mean and bulyan_tail refuse more rows than
// its 48 to 227 KiB hold of one column: some ten thousand floats. More than a few hundred rows are
// slow, as few columns fit side by side.
#define AGGREGATHOR_CUDA_KERNELS(T)                                                               \
  int aggregathor_cuda_mean_##T(const T* stack_nd, int64_t n, int64_t d, bool skip_missing,       \
                                T* grad_d, void* stream);                                         \
  /* window is a Window of kernels.h. kept_n may be null. */                                      \
  int aggregathor_cuda_window_mean_##T(const T* stack_nd, int64_t n, int64_t d, int window,       \
                                       int64_t f, T* grad_d, int64_t* kept_n, void* stream);      \
  int aggregathor_cuda_sq_distances_##T(const T* stack_nd, int64_t n, int64_t d,                  \
                                        double* sq_dist_nn, void* scratch, void* stream);         \
  int aggregathor_cuda_mean_of_rows_##T(const T* stack_nd, int64_t n, int64_t d,                  \
                                        const int64_t* rows, int64_t m, T* grad_d, void* stream); \
  int aggregathor_cuda_bulyan_tail_##T(const T* stack_nd, int64_t n, int64_t d,                   \
                                       const int32_t* steps, int64_t num_steps, int64_t theta,    \
                                       int64_t f, T* grad_d, void* stream);                       \
  /* v may be null for the origin. Distances are in units of 2^unit, |unit| <= 1000. */           \
  int aggregathor_cuda_sq_distances_to_##T(const T* stack_nd, int64_t n, int64_t d, const T* v,   \
                                           int unit, double* sq_dist_n, void* scratch,            \
                                           void* stream);                                         \
  int aggregathor_cuda_weighted_mean_##T(const T* stack_nd, int64_t n, int64_t d,                 \
                                         const double* weight_n, T* grad_d, void* stream);
AGGREGATHOR_CUDA_KERNELS(float)
AGGREGATHOR_CUDA_KERNELS(double)
#undef AGGREGATHOR_CUDA_KERNELS
}

namespace aggregathor {

// The functions of one type: CudaKernels<float>::mean(...).
template <typename T>
struct CudaKernels;
#define AGGREGATHOR_CUDA_KERNELS(T)                                                \
  template <>                                                                      \
  struct CudaKernels<T> {                                                          \
    static constexpr auto mean = &aggregathor_cuda_mean_##T;                       \
    static constexpr auto window_mean = &aggregathor_cuda_window_mean_##T;         \
    static constexpr auto sq_distances = &aggregathor_cuda_sq_distances_##T;       \
    static constexpr auto mean_of_rows = &aggregathor_cuda_mean_of_rows_##T;       \
    static constexpr auto bulyan_tail = &aggregathor_cuda_bulyan_tail_##T;         \
    static constexpr auto sq_distances_to = &aggregathor_cuda_sq_distances_to_##T; \
    static constexpr auto weighted_mean = &aggregathor_cuda_weighted_mean_##T;     \
  };
AGGREGATHOR_CUDA_KERNELS(float)
AGGREGATHOR_CUDA_KERNELS(double)
#undef AGGREGATHOR_CUDA_KERNELS

}  // namespace aggregathor

#endif  // AGGREGATHOR_OPS_CUDA_CUDA_KERNELS_H_
