// The CUDA kernels as a table of functions on this host's memory, which the oracles know: each
// copies its inputs to the device, runs, and copies the result back.
#ifndef TESTS_NATIVE_CUDA_TABLE_H_
#define TESTS_NATIVE_CUDA_TABLE_H_

#ifndef TESTS_NATIVE_CUDA_ON_CPU_H_
#include <cuda_runtime.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "aggregathor/ops/cuda/cuda_kernels.h"
#include "aggregathor/ops/kernels/kernels.h"

namespace cuda_table {

using aggregathor::CudaKernels;
using aggregathor::Kernels;
using aggregathor::Parallel;
using aggregathor::Stack;
using aggregathor::Step;
using aggregathor::Wide;
using aggregathor::Window;

inline void Check(int code) {
  if (code == 0) return;
  std::printf("%s\n", aggregathor_cuda_error(code));
  std::fflush(stdout);
  std::abort();
}

// Memory of the device, of exactly `size` values; all bytes are 0xff before anything is written.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : bytes_(size * static_cast<int64_t>(sizeof(T))) {
    void* data;
    Check(cudaMalloc(&data, static_cast<size_t>(bytes_)));
    data_ = static_cast<T*>(data);
    if (bytes_ > 0) Check(cudaMemset(data_, 0xff, static_cast<size_t>(bytes_)));
  }
  Buffer(const T* from, int64_t size) : Buffer(size) {
    Check(aggregathor_cuda_to_device(data_, from, bytes_, nullptr));
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return data_; }
  void CopyTo(T* to) const { Check(aggregathor_cuda_to_host(to, data_, bytes_, nullptr)); }

 private:
  int64_t bytes_;
  T* data_;
};

template <typename T>
Buffer<T> ToDevice(Stack<T> stack) {
  return Buffer<T>(stack.data, stack.n * stack.d);
}

template <typename T>
void Mean(Stack<T> stack, bool skip_missing, T* out, Parallel) {
  const Buffer<T> stack_nd = ToDevice(stack), grad_d(stack.d);
  Check(
      CudaKernels<T>::mean(stack_nd.get(), stack.n, stack.d, skip_missing, grad_d.get(), nullptr));
  grad_d.CopyTo(out);
}

template <typename T>
void WindowMean(Stack<T> stack, Window window, int64_t f, T* out, int64_t* kept_n, Parallel) {
  const Buffer<T> stack_nd = ToDevice(stack), grad_d(stack.d);
  const Buffer<int64_t> kept(stack.n);
  Check(CudaKernels<T>::window_mean(stack_nd.get(), stack.n, stack.d, static_cast<int>(window), f,
                                    grad_d.get(), kept_n == nullptr ? nullptr : kept.get(),
                                    nullptr));
  grad_d.CopyTo(out);
  if (kept_n != nullptr) kept.CopyTo(kept_n);
}

template <typename T>
void SqDistances(Stack<T> stack, bool scaled, double* sq_dist_nn, Parallel) {
  const int64_t n = stack.n;
  const Buffer<T> stack_nd = ToDevice(stack);
  const Buffer<double> result(n * n);
  const Buffer<char> scratch(aggregathor_cuda_sq_distances_scratch(n, stack.d));
  Check(CudaKernels<T>::sq_distances(stack_nd.get(), n, stack.d, result.get(), scratch.get(),
                                     nullptr));
  result.CopyTo(sq_dist_nn);
  if constexpr (sizeof(T) == sizeof(double)) {  // as gpu_ops.cc does
    if (!scaled) return;
    std::vector<int64_t> pairs;
    for (int64_t i = 0; i < n * n; ++i) {
      if (i / n < i % n && !aggregathor::IsSure(sq_dist_nn[i])) pairs.push_back(i);
    }
    if (pairs.empty()) return;
    const int64_t num_pairs = static_cast<int64_t>(pairs.size());
    const Buffer<int64_t> on_device(pairs.data(), num_pairs);
    const Buffer<Wide> wide_on_device(num_pairs);
    Check(aggregathor_cuda_wide_sq_distances(stack_nd.get(), n, stack.d, on_device.get(), num_pairs,
                                             result.get(), wide_on_device.get(), nullptr));
    std::vector<Wide> wide(num_pairs), wide_nn(n * n);
    wide_on_device.CopyTo(wide.data());
    for (int64_t i = 0; i < n * n; ++i) wide_nn[i] = {sq_dist_nn[i], 0};
    for (int64_t p = 0; p < num_pairs; ++p) {
      const int64_t a = pairs[p] / n, b = pairs[p] % n;
      wide_nn[a * n + b] = wide_nn[b * n + a] = wide[p];
    }
    aggregathor::ToOneUnit(wide_nn.data(), n, sq_dist_nn);
  }
}

template <typename T>
void MeanOfRows(Stack<T> stack, const int64_t* rows, int64_t m, T* out, Parallel) {
  const Buffer<T> stack_nd = ToDevice(stack), grad_d(stack.d);
  const Buffer<int64_t> rows_m(rows, m);
  Check(CudaKernels<T>::mean_of_rows(stack_nd.get(), stack.n, stack.d, rows_m.get(), m,
                                     grad_d.get(), nullptr));
  grad_d.CopyTo(out);
}

template <typename T>
void BulyanTail(Stack<T> stack, const int64_t* groups, int64_t theta, int64_t m, int64_t f, T* out,
                Parallel) {
  std::vector<int32_t> steps(static_cast<size_t>(theta * (m + 2)));
  const int64_t num_steps = aggregathor_cuda_bulyan_steps(groups, theta, m, steps.data());
  const Buffer<T> stack_nd = ToDevice(stack), grad_d(stack.d);
  const Buffer<int32_t> steps_on_device(steps.data(), num_steps);
  Check(CudaKernels<T>::bulyan_tail(stack_nd.get(), stack.n, stack.d, steps_on_device.get(),
                                    num_steps, theta, f, grad_d.get(), nullptr));
  grad_d.CopyTo(out);
}

// From the three functions that gpu_ops.cc makes a step of.
template <typename T>
void WeiszfeldStep(Stack<T> stack, const double* weight_n, int unit, T* v, double* sq_dist_n,
                   Step* step, Parallel) {
  const Buffer<T> stack_nd = ToDevice(stack), before(v, stack.d), v_d(v, stack.d);
  const Buffer<double> result(stack.n + 2);
  const Buffer<char> scratch(std::max(aggregathor_cuda_sq_distances_to_scratch(stack.n, stack.d),
                                      aggregathor_cuda_sq_distances_to_scratch(1, stack.d)));
  if (weight_n != nullptr) {
    const Buffer<double> weights(weight_n, stack.n);
    Check(CudaKernels<T>::weighted_mean(stack_nd.get(), stack.n, stack.d, weights.get(), v_d.get(),
                                        nullptr));
  }
  const auto compare = [&](const T* rows, int64_t n, const T* center, double* sq_dist) {
    Check(CudaKernels<T>::sq_distances_to(rows, n, stack.d, center, unit, sq_dist, scratch.get(),
                                          nullptr));
  };
  compare(stack_nd.get(), stack.n, v_d.get(), result.get());
  compare(v_d.get(), 1, before.get(), result.get() + stack.n);
  compare(v_d.get(), 1, nullptr, result.get() + stack.n + 1);
  std::vector<double> distances(stack.n + 2);
  result.CopyTo(distances.data());
  std::copy_n(distances.begin(), stack.n, sq_dist_n);
  *step = {distances[stack.n], distances[stack.n + 1]};
  v_d.CopyTo(v);
}

template <typename T>
constexpr Kernels<T> kTable{&Mean<T>,       &WindowMean<T>, &SqDistances<T>,
                            &MeanOfRows<T>, &BulyanTail<T>, &WeiszfeldStep<T>};

}  // namespace cuda_table

#endif  // TESTS_NATIVE_CUDA_TABLE_H_
