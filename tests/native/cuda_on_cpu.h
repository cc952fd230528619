// Runs CUDA kernels on a CPU, for tests: a C++ compiler that is told to include this file before
// a `.cu` file (-include tests/native/cuda_on_cpu.h) takes it for C++.
//
// Blocks run one after another, and each thread of a block is a fiber that runs from one barrier to
// the next. What a GPU would not forgive is made visible:
// - shared memory has exactly the bytes that were asked for, and holds NaN at a block's start;
// - asynchronous copies are made when they are waited for, and no sooner;
// - a thread that ends while others wait at a barrier ends the program;
// - threads take turns in ascending order, and after the next barrier in descending order, so that
//   what needs a barrier and has none gives other results.
#ifndef TESTS_NATIVE_CUDA_ON_CPU_H_
#define TESTS_NATIVE_CUDA_ON_CPU_H_

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define AGGREGATHOR_SHARED(name) unsigned char* const name = cuda_on_cpu::Shared()
#define AGGREGATHOR_LAUNCH(kernel, blocks, threads, shared_bytes, stream, ...) \
  cuda_on_cpu::Run(blocks, threads, shared_bytes, [=] { kernel(__VA_ARGS__); })

// What CUDA gives a kernel.

struct Coordinates {
  unsigned x;
};
inline Coordinates threadIdx, blockIdx, blockDim, gridDim;
using std::min;

void __syncthreads();
void __pipeline_memcpy_async(void* to, const void* from, size_t bytes);
void __pipeline_commit();
void __pipeline_wait_prior(size_t batches);

template <typename T>
T atomicAdd(T* to, T x) {
  const T before = *to;
  *to += x;
  return before;
}

namespace cuda_on_cpu {

constexpr size_t kSharedBytes = 99 << 10;  // of a block, as on cards of compute capability 8.6
constexpr size_t kStackBytes = 64 << 10;

struct Copy {
  void* to;
  const void* from;
  size_t bytes, batch;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  void* fake_stack = nullptr;  // the sanitizer's
  bool ended = true;
  std::vector<Copy> copies;
  size_t batches = 0;
};

struct Machine {
  ucontext_t scheduler;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  std::vector<Fiber> fibers;
  Fiber* running = nullptr;
  std::unique_ptr<unsigned char[]> shared;
  std::function<void()> kernel;
};
inline Machine machine;

inline unsigned char* Shared() { return machine.shared.get(); }

[[noreturn]] inline void Fail(const char* what) {
  std::printf("cuda_on_cpu: %s, block %u of %u, thread %u of %u\n", what, blockIdx.x, gridDim.x,
              threadIdx.x, blockDim.x);
  std::fflush(stdout);
  std::abort();
}

// AddressSanitizer must know of every change of stacks: before, and after it on the other side.
inline void BeforeSwitch([[maybe_unused]] void** save, [[maybe_unused]] const void* stack,
                         [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(save, stack, bytes);
#endif
}
inline void AfterSwitch([[maybe_unused]] void* saved, [[maybe_unused]] const void** stack,
                        [[maybe_unused]] size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(saved, stack, bytes);
#endif
}

inline void Pause(Fiber* fiber) {
  BeforeSwitch(fiber->ended ? nullptr : &fiber->fake_stack, machine.scheduler_stack,
               machine.scheduler_stack_bytes);
  swapcontext(&fiber->context, &machine.scheduler);
  AfterSwitch(fiber->fake_stack, &machine.scheduler_stack, &machine.scheduler_stack_bytes);
}

inline void Resume(Fiber* fiber) {
  machine.running = fiber;
  BeforeSwitch(&machine.scheduler_fake_stack, fiber->stack.get(), kStackBytes);
  swapcontext(&machine.scheduler, &fiber->context);
  AfterSwitch(machine.scheduler_fake_stack, nullptr, nullptr);
}

inline void RunThread() {
  Fiber* fiber = machine.running;
  AfterSwitch(nullptr, &machine.scheduler_stack, &machine.scheduler_stack_bytes);
  machine.kernel();
  if (!fiber->copies.empty()) Fail("a copy that nobody waited for");
  fiber->ended = true;
  Pause(fiber);
}

inline void Start(Fiber* fiber) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(fiber->stack.get(), kStackBytes);
#endif
  getcontext(&fiber->context);
  fiber->context.uc_stack.ss_sp = fiber->stack.get();
  fiber->context.uc_stack.ss_size = kStackBytes;
  fiber->context.uc_link = nullptr;
  makecontext(&fiber->context, &RunThread, 0);
  fiber->ended = false;
  fiber->batches = 0;
}

// Runs every thread to its next barrier or its end; returns whether they wait at a barrier.
inline bool RunToBarrier(bool ascending) {
  const unsigned threads = blockDim.x;
  unsigned ended = 0;
  for (unsigned t = 0; t < threads; ++t) {
    threadIdx.x = ascending ? t : threads - 1 - t;
    Fiber* fiber = &machine.fibers[threadIdx.x];
    Resume(fiber);
    ended += fiber->ended;
  }
  if (ended != 0 && ended != threads) Fail("some threads ended while others wait at a barrier");
  return ended == 0;
}

inline void Run(unsigned blocks, unsigned threads, size_t shared_bytes,
                std::function<void()> kernel) {
  gridDim.x = blocks;
  blockDim.x = threads;
  machine.kernel = kernel;
  if (machine.fibers.size() < threads) machine.fibers = std::vector<Fiber>(threads);
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    machine.shared.reset(new unsigned char[shared_bytes]);
    std::memset(machine.shared.get(), 0xff, shared_bytes);
    for (unsigned t = 0; t < threads; ++t) Start(&machine.fibers[t]);
    bool ascending = true;
    while (RunToBarrier(ascending)) ascending = !ascending;
  }
}

}  // namespace cuda_on_cpu

inline void __syncthreads() { cuda_on_cpu::Pause(cuda_on_cpu::machine.running); }

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes) {
  cuda_on_cpu::Fiber* fiber = cuda_on_cpu::machine.running;
  fiber->copies.push_back({to, from, bytes, fiber->batches});
}

inline void __pipeline_commit() { ++cuda_on_cpu::machine.running->batches; }

inline void __pipeline_wait_prior(size_t batches) {
  cuda_on_cpu::Fiber* fiber = cuda_on_cpu::machine.running;
  auto copy = fiber->copies.begin();
  for (; copy != fiber->copies.end() && copy->batch + batches < fiber->batches; ++copy) {
    std::memcpy(copy->to, copy->from, copy->bytes);
  }
  fiber->copies.erase(fiber->copies.begin(), copy);
}

// What CUDA gives a host, as far as it is used.

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum { cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaFuncAttributeMaxDynamicSharedMemorySize };
enum { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
using cudaStream_t = void*;

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t code) {
  return code == cudaSuccess ? "no error" : "invalid argument";
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  *value = cuda_on_cpu::kSharedBytes;
  return cudaSuccess;
}
template <typename F>
cudaError_t cudaFuncSetAttribute(F*, int, size_t bytes) {
  return bytes <= cuda_on_cpu::kSharedBytes ? cudaSuccess : cudaErrorInvalidValue;
}
inline cudaError_t cudaMalloc(void** to, size_t bytes) {
  *to = std::malloc(bytes);
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* what) {
  std::free(what);
  return cudaSuccess;
}
inline cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(to, value, bytes);
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, cudaStream_t) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

#endif  // TESTS_NATIVE_CUDA_ON_CPU_H_
