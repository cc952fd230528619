// How fast the CUDA kernels are: bytes that each must read and write over its time, as a share of
// what a copy within the device's memory moves. usage: cuda_bandwidth; needs a GPU.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <random>
#include <vector>

#include "aggregathor/ops/kernels/selection.h"
#include "tests/native/cuda_table.h"

namespace {

using aggregathor::CudaKernels;
using aggregathor::Window;
using cuda_table::Buffer;
using cuda_table::Check;

constexpr int64_t kColumns = 25'000'000;
constexpr int kRuns = 11;

// Median seconds of a run.
double Time(const std::function<int()>& run) {
  cudaEvent_t begin, end;
  Check(cudaEventCreate(&begin));
  Check(cudaEventCreate(&end));
  std::vector<double> seconds;
  Check(run());  // to warm up
  for (int i = 0; i < kRuns; ++i) {
    float milliseconds;
    Check(cudaEventRecord(begin, nullptr));
    Check(run());
    Check(cudaEventRecord(end, nullptr));
    Check(cudaEventSynchronize(end));
    Check(cudaEventElapsedTime(&milliseconds, begin, end));
    seconds.push_back(milliseconds / 1e3);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[kRuns / 2];
}

// Rows of noise, each the same at another offset.
void Fill(const Buffer<float>& stack_nd, int64_t n) {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  constexpr int64_t kShift = 1009;
  std::vector<float> noise(kColumns + n * kShift);
  for (float& x : noise) x = normal(rng);
  for (int64_t i = 0; i < n; ++i) {
    Check(aggregathor_cuda_to_device(stack_nd.get() + i * kColumns, noise.data() + i * kShift,
                                     kColumns * sizeof(float), nullptr));
  }
}

void Measure(int64_t n, double copy_bytes_per_s) {
  using Cuda = CudaKernels<float>;
  const int64_t d = kColumns, f = (n - 3) / 4, theta = n - 2 * f - 2, m = n - f - 2;
  const Buffer<float> stack_nd(n * d), grad_d(d), v_d(d);
  Fill(stack_nd, n);
  Check(Cuda::mean(stack_nd.get(), n, d, true, v_d.get(), nullptr));

  const auto show = [&](const char* name, int64_t rows_read, int64_t rows_written, auto run) {
    const double seconds = Time(run);
    const double bytes = static_cast<double>((rows_read + rows_written) * d) * sizeof(float);
    std::printf("n=%-4ld %-16s %8.3f ms %5.0f%% of a copy\n", static_cast<long>(n), name,
                seconds * 1e3, 100 * bytes / seconds / copy_bytes_per_s);
  };
  const float* stack = stack_nd.get();
  float* out = grad_d.get();
  show("average", n, 1, [&] { return Cuda::mean(stack, n, d, false, out, nullptr); });
  show("average-nan", n, 1, [&] { return Cuda::mean(stack, n, d, true, out, nullptr); });
  const Buffer<int64_t> kept_n(n);
  const auto window = [&](const char* name, Window which, int64_t* kept) {
    show(name, n, 1, [&, which, kept] {
      return Cuda::window_mean(stack, n, d, static_cast<int>(which), f, out, kept, nullptr);
    });
  };
  window("median", Window::kMedian, nullptr);
  window("median, shares", Window::kMedian, kept_n.get());
  window("trimmed-mean", Window::kTrimmedMean, nullptr);
  window("meamed", Window::kMeamed, nullptr);
  window("phocas", Window::kPhocas, nullptr);

  const Buffer<double> sq_dist_nn(n * n);
  const Buffer<char> scratch(std::max(aggregathor_cuda_sq_distances_scratch(n, d),
                                      aggregathor_cuda_sq_distances_to_scratch(n, d)));
  show("distances", n, 0,
       [&] { return Cuda::sq_distances(stack, n, d, sq_dist_nn.get(), scratch.get(), nullptr); });
  show("distances to", n + 1, 0, [&] {
    return Cuda::sq_distances_to(stack, n, d, v_d.get(), 0, sq_dist_nn.get(), scratch.get(),
                                 nullptr);
  });
  const std::vector<double> ones(n, 1.0);
  const Buffer<double> weight_n(ones.data(), n);
  show("weighted mean", n, 1,
       [&] { return Cuda::weighted_mean(stack, n, d, weight_n.get(), out, nullptr); });

  std::vector<double> sq_dist(n * n);
  Check(Cuda::sq_distances(stack, n, d, sq_dist_nn.get(), scratch.get(), nullptr));
  sq_dist_nn.CopyTo(sq_dist.data());
  const auto groups = aggregathor::BulyanSelect(sq_dist.data(), n, f);
  std::vector<int64_t> flat(theta * m, -1);
  for (int64_t c = 0; c < theta; ++c) std::copy(groups[c].begin(), groups[c].end(), &flat[c * m]);
  const Buffer<int64_t> rows(flat.data(), m);
  show("mean of rows", m, 1,
       [&] { return Cuda::mean_of_rows(stack, n, d, rows.get(), m, out, nullptr); });
  std::vector<int32_t> steps(theta * (m + 2));
  const int64_t num_steps = aggregathor_cuda_bulyan_steps(flat.data(), theta, m, steps.data());
  const Buffer<int32_t> steps_on_device(steps.data(), num_steps);
  show("bulyan's tail", n, 1, [&] {
    return Cuda::bulyan_tail(stack, n, d, steps_on_device.get(), num_steps, theta, f, out, nullptr);
  });
}

}  // namespace

int main() {
  cudaDeviceProp device;
  Check(cudaGetDeviceProperties(&device, 0));
  const int64_t bytes = 8 * kColumns * sizeof(float);
  const Buffer<char> from(bytes), to(bytes);
  const double seconds =
      Time([&] { return aggregathor_cuda_copy(to.get(), from.get(), bytes, nullptr); });
  const double copy_bytes_per_s = 2.0 * static_cast<double>(bytes) / seconds;
  std::printf("%s, d=%ld, float32; a copy reads and writes %.0f GB/s\n", device.name,
              static_cast<long>(kColumns), copy_bytes_per_s / 1e9);
  for (const int64_t n : {11, 19, 32, 100}) Measure(n, copy_bytes_per_s);
  return 0;
}
