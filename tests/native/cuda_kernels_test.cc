// The CUDA kernels, on a GPU or by cuda_on_cpu.h without one, against the oracles and against the
// CPU kernels, which the Python tests hold to the definitions. usage: cuda_kernels_test; prints
// what failed, exits with the number of failures.
#include "tests/native/cuda_table.h"
#include "tests/native/oracles.h"

namespace {

using aggregathor::Kernels;
using aggregathor::Stack;
using aggregathor::Window;
using oracles::Expect;
using oracles::Given;

constexpr Window kWindows[] = {Window::kMedian,      Window::kMedianUpper, Window::kMedianLower,
                               Window::kTrimmedMean, Window::kMeamed,      Window::kPhocas};

// What MakeStack does not make: rows and columns of their own kinds.
template <typename T>
Given<T> MakeOdd(int64_t n, int64_t d, const char* kind, std::mt19937* rng) {
  Given<T> given = oracles::MakeStack<T>(n, d, "complete", rng);
  std::uniform_int_distribution<int> tenth(0, 9);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < d; ++j) {
      T& x = given.data[i * d + j];
      switch (kind[0]) {
        case 'h':  // huge rows, of either sign
          if (i % 3 == 0) x *= static_cast<T>(1e30);
          break;
        case 'z':  // zero rows, which are equal
          if (i % 2 == 0) x = 0;
          break;
        case 'u':  // underflow: squares that float has not
          x *= static_cast<T>(1e-25);
          break;
        case 'b':  // beyond what squares of doubles hold, tiny ones beside
          x *= static_cast<T>(sizeof(T) == 4 ? 1e30 : i % 2 == 0 ? 1e200 : 1e-200);
          break;
        case 't':  // tiny: squares that double has not
          x *= static_cast<T>(sizeof(T) == 4 ? 1e-40 : 1e-200);
          break;
        case 'm':  // near the most that there is: sums overflow
          x = x < 0 ? std::numeric_limits<T>::lowest() : std::numeric_limits<T>::max();
          break;
        case 'l':  // lost: rows that lack a lot, columns that lack all
          if (j % 7 == 0 || tenth(*rng) < (i % 2 == 0 ? 2 : 6)) x = static_cast<T>(oracles::kNan);
          break;
        case 'n':  // not finite: whole rows of NaN and of infinities
          if (i % 5 == 0) x = static_cast<T>(oracles::kNan);
          if (i % 5 == 1) x = static_cast<T>(j % 2 == 0 ? oracles::kInfinity : -oracles::kInfinity);
          break;
      }
    }
  }
  return given;
}

template <typename T>
double LargestFinite(Stack<T> stack) {
  double largest = 0;
  for (int64_t i = 0; i < stack.n * stack.d; ++i) {
    const double x = std::abs(static_cast<double>(stack.data[i]));
    if (std::isfinite(x)) largest = std::max(largest, x);
  }
  return largest;
}

// Sums are added in another order, so that double's rounding of the largest value is allowed.
template <typename T, typename U>
void ExpectSame(const std::vector<U>& got, const std::vector<U>& want, double scale,
                const char* what, Stack<T> stack, const char* kind) {
  const double relative = sizeof(U) == 4 ? 1e-6 : 1e-12;
  for (size_t i = 0; i < want.size(); ++i) {
    const double a = got[i], b = want[i];
    Expect(a == b || (std::isnan(a) && std::isnan(b)) ||
               std::abs(a - b) <= relative * std::abs(b) + 1e-14 * scale,
           what, stack.n, stack.d, kind);
  }
}

// Calls run(kernels, out) with either table and compares.
template <typename T, typename F>
void CompareGradients(Stack<T> stack, const char* what, const char* kind, F run) {
  std::vector<T> got(stack.d), want(stack.d);
  run(cuda_table::kTable<T>, got.data());
  run(aggregathor::KernelsFor<T>(), want.data());
  ExpectSame(got, want, LargestFinite(stack), what, stack, kind);
}

template <typename T, typename F>
void CompareDistances(Stack<T> stack, int64_t size, const char* what, const char* kind, F run) {
  std::vector<double> got(size), want(size);
  run(cuda_table::kTable<T>, got.data());
  run(aggregathor::KernelsFor<T>(), want.data());
  for (int64_t i = 0; i < size; ++i) {
    Expect(got[i] == want[i] || std::abs(got[i] - want[i]) <= 2.2e-6 * want[i], what, stack.n,
           stack.d, kind);
  }
}

// Groups that shrink, that start anew and that are short; theta of them, of at most m rows.
std::vector<int64_t> MakeGroups(int64_t n, int64_t theta, int64_t m, std::mt19937* rng) {
  std::vector<int64_t> groups(theta * m, -1), rows(n);
  for (int64_t i = 0; i < n; ++i) rows[i] = i;
  for (int64_t c = 0; c < theta; ++c) {
    if (c % 4 == 0) std::shuffle(rows.begin(), rows.end(), *rng);
    for (int64_t g = 0; g < std::max<int64_t>(1, m - c % 4); ++g) groups[c * m + g] = rows[g];
  }
  return groups;
}

template <typename T>
void CompareColumns(Stack<T> stack, const char* kind, std::mt19937* rng) {
  const int64_t n = stack.n;
  const auto& pool = oracles::kTwoRanges;
  for (const bool skip : {true, false}) {
    CompareGradients(stack, "mean", kind, [&](const Kernels<T>& kernels, T* out) {
      kernels.mean(stack, skip, out, pool);
    });
  }
  for (const Window window : kWindows) {
    for (const int64_t f : {int64_t{0}, (n - 1) / 4, (n - 1) / 2, 2 * n}) {
      std::vector<int64_t> kept[2];
      CompareGradients(stack, "window", kind, [&](const Kernels<T>& kernels, T* out) {
        std::vector<int64_t>& of_table = kept[&kernels == &cuda_table::kTable<T>];
        of_table.resize(n);
        kernels.window_mean(stack, window, f, out, of_table.data(), pool);
      });
      Expect(kept[0] == kept[1], "kept", n, stack.d, kind);
    }
  }
  const int64_t m = (n + 1) / 2;
  const std::vector<int64_t> groups = MakeGroups(n, m, m, rng);
  for (const int64_t f : {int64_t{0}, (m - 1) / 4, m}) {
    CompareGradients(stack, "bulyan", kind, [&](const Kernels<T>& kernels, T* out) {
      kernels.bulyan_tail(stack, groups.data(), m, m, f, out, pool);
    });
  }
  CompareGradients(stack, "mean of rows", kind, [&](const Kernels<T>& kernels, T* out) {
    kernels.mean_of_rows(stack, groups.data(), m, out, pool);
  });
  std::vector<double> weights(n);
  for (int64_t i = 0; i < n; ++i) weights[i] = i % 5 == 1 ? 0 : 1.0 / static_cast<double>(i + 1);
  CompareGradients(stack, "weighted mean", kind, [&](const Kernels<T>& kernels, T* out) {
    std::vector<double> sq_dist_n(n);
    aggregathor::Step step;
    kernels.weiszfeld_step(stack, weights.data(), 0, out, sq_dist_n.data(), &step, pool);
  });
}

template <typename T>
void ComparePairs(Stack<T> stack, const char* kind) {
  const int64_t n = stack.n;
  const auto& pool = oracles::kTwoRanges;
  CompareDistances(stack, n * n, "distances", kind, [&](const Kernels<T>& kernels, double* out) {
    kernels.sq_distances(stack, true, out, pool);
  });
  std::vector<T> v(stack.data + (n - 1) * stack.d, stack.data + n * stack.d);
  for (T& x : v) x = std::isnan(x) ? T{1} : x;  // nobody asks for distances to what is missing
  CompareDistances(stack, n, "distances to", kind, [&](const Kernels<T>& kernels, double* out) {
    aggregathor::Step step;
    kernels.weiszfeld_step(stack, nullptr, 0, v.data(), out, &step, pool);
  });
}

template <typename T>
void TestAgainstCpu(Stack<T> stack, const char* kind, std::mt19937* rng) {
  CompareColumns(stack, kind, rng);
  ComparePairs(stack, kind);
}

template <typename T>
void TestOdd(int64_t n, int64_t d, std::mt19937* rng) {
  for (const char* kind :
       {"huge", "zero", "underflow", "beyond", "tiny", "most", "lost", "not finite"}) {
    TestAgainstCpu(MakeOdd<T>(n, d, kind, rng).stack, kind, rng);
  }
  for (const char* kind : {"complete", "missing", "infinite", "ties"}) {
    TestAgainstCpu(oracles::MakeStack<T>(n, d, kind, rng).stack, kind, rng);
  }
}

// v = null is the origin.
template <typename T>
void TestNorm(std::mt19937* rng) {
  const Given<T> given = oracles::MakeStack<T>(1, 5000, "complete", rng);
  const cuda_table::Buffer<T> row(given.data.get(), 5000);
  const cuda_table::Buffer<double> norm(1);
  const cuda_table::Buffer<char> scratch(aggregathor_cuda_sq_distances_to_scratch(1, 5000));
  const auto code = aggregathor::CudaKernels<T>::sq_distances_to(
      row.get(), 1, 5000, nullptr, 0, norm.get(), scratch.get(), nullptr);
  double got, want = 0;
  norm.CopyTo(&got);
  for (int64_t j = 0; j < 5000; ++j) want += static_cast<double>(given.data[j]) * given.data[j];
  Expect(code == 0 && oracles::Near(got, want, 1e-12), "norm", 1, 5000, "complete");
}

// Refused before anything is read.
template <typename T>
void TestTooManyRows() {
  using Cuda = aggregathor::CudaKernels<T>;
  const int64_t n = int64_t{1} << 40;
  const int too_many = kAggregathorCudaTooManyRows;
  Expect(Cuda::window_mean(nullptr, n, 1, 0, 0, nullptr, nullptr, nullptr) == too_many,
         "window of too many", n, 1, "");
  Expect(Cuda::bulyan_tail(nullptr, n, 1, nullptr, 1, 1, 0, nullptr, nullptr) == too_many,
         "bulyan of too many", n, 1, "");
  Expect(Cuda::mean(nullptr, n, 1, true, nullptr, nullptr) == too_many, "mean of too many", n, 1,
         "");
  Expect(aggregathor_cuda_error(too_many)[0] == 'm', "its name", n, 1, "");
}

template <typename T>
void TestAll(std::mt19937* rng) {
  // Every size of sorter and of tiles; up to two groups of distances and their ends.
  for (const int64_t n : {1, 2, 4, 5, 9, 13, 19, 24, 28, 32, 33, 70}) {
    TestOdd<T>(n, 33, rng);
    oracles::TestShape(cuda_table::kTable<T>, n, 7, rng);
  }
  for (const int64_t d : {0, 1, 31, 32, 1000, 2500}) TestOdd<T>(11, d, rng);
  TestOdd<T>(100, 3, rng);
  // Few columns of so many rows fit a block.
  CompareColumns(oracles::MakeStack<T>(1500, 3, "missing", rng).stack, "missing", rng);
  // More than one stride of all blocks.
  TestAgainstCpu(oracles::MakeStack<T>(19, 9001, "missing", rng).stack, "missing", rng);
  TestNorm<T>(rng);
  TestTooManyRows<T>();
}

}  // namespace

int main() {
  std::mt19937 rng(1);
  TestAll<float>(&rng);
  TestAll<double>(&rng);
  std::printf("cuda: %d failures\n", oracles::failures);
  return std::min(oracles::failures, 100);
}
