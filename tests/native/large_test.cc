// The kernels on stacks of more than 2^31 values, of which rows may have more than 2^31: that no
// index, no count and no position is cut to 32 bits. usage: large_test; prints the instruction set
// and what failed, exits with the number of failures.
//
// The stacks take no memory: a few MiB of random values are mapped again and again, one copy after
// the other, so value k of a stack is value k mod kPeriod of the pattern. As kPeriod does not
// divide d the rows differ: row i is the pattern from i * d on.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "aggregathor/ops/kernels/kernels.h"

namespace {

using aggregathor::Kernels;
using aggregathor::Parallel;
using aggregathor::Stack;
using aggregathor::Window;

constexpr int64_t kPeriod = int64_t{1} << 19;  // floats: 2 MiB, whole pages
constexpr int64_t kOwnTail = int64_t{1} << 16;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

int failures = 0;

void Expect(bool holds, const char* what, int64_t n, int64_t d, int64_t place) {
  if (holds) return;
  if (++failures > 20) return;
  std::printf("failed: %s, n=%ld d=%ld at %ld\n", what, static_cast<long>(n), static_cast<long>(d),
              static_cast<long>(place));
}

bool Near(double a, double b) { return a == b || std::abs(a - b) <= 1e-5 * (1 + std::abs(b)); }

[[noreturn]] void Fail(const char* what) {
  std::perror(what);
  std::exit(101);
}

const Parallel kTwoThreads{[](void*, int64_t total, int64_t, Parallel::Body body, void* arg) {
                             std::thread first(body, arg, 0, total / 2);
                             body(arg, total / 2, total);
                             first.join();
                           },
                           nullptr};

// `size` floats of address space, in which the pages of `file` come again and again.
class Repeated {
 public:
  Repeated(int file, int64_t size) : bytes_(((size - 1) / kPeriod + 1) * kFileBytes) {
    // Reserved at once, so that the copies replace nobody's memory.
    void* at = mmap(nullptr, bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) Fail("mmap");
    start_ = static_cast<char*>(at);
    for (int64_t k = 0; k < bytes_; k += kFileBytes) {
      if (mmap(start_ + k, kFileBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) ==
          MAP_FAILED) {
        Fail("mmap of the pattern");
      }
    }
  }
  ~Repeated() { munmap(start_, bytes_); }
  Repeated(const Repeated&) = delete;
  Repeated& operator=(const Repeated&) = delete;
  float* get() const { return reinterpret_cast<float*>(start_); }

 private:
  static constexpr int64_t kFileBytes = kPeriod * sizeof(float);
  const int64_t bytes_;
  char* start_;
};

int PatternFile() {
  const int file = memfd_create("pattern", 0);
  if (file < 0 || ftruncate(file, kPeriod * sizeof(float)) != 0) Fail("memfd_create");
  return file;
}

// In the first 32nd a tenth of the values is missing: columns of missing values take other paths,
// which are slow ones.
std::vector<float> MakePattern() {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> tenth(0, 9);
  std::vector<float> pattern(kPeriod);
  for (int64_t k = 0; k < kPeriod; ++k) {
    const bool missing = k < kPeriod / 32 && tenth(rng) == 0;
    pattern[k] = missing ? std::numeric_limits<float>::quiet_NaN() : normal(rng);
  }
  return pattern;
}

// What the kernels should give, from the pattern alone.
struct Expected {
  const std::vector<float>& pattern;
  int64_t n;
  int64_t d;

  double At(int64_t i, int64_t j) const { return pattern[(i * d + j) % kPeriod]; }

  std::vector<double> SortedColumn(int64_t j) const {
    std::vector<double> values;
    for (int64_t i = 0; i < n; ++i) {
      if (!std::isnan(At(i, j))) values.push_back(At(i, j));
    }
    std::sort(values.begin(), values.end());
    return values;
  }

  // How many of the d coordinates are j of the pattern's first kPeriod, or a copy of it.
  double Copies(int64_t j) const { return static_cast<double>(d / kPeriod + (j < d % kPeriod)); }

  // Between two rows, or what else repeats with the pattern: functions of the coordinate.
  template <typename A, typename B>
  double SqDistance(A a, B b) const {
    double sum = 0, both = 0;
    for (int64_t j = 0; j < kPeriod; ++j) {
      const double difference = a(j) - b(j);
      if (std::isnan(difference)) continue;
      sum += difference * difference * Copies(j);
      both += Copies(j);
    }
    return sum * static_cast<double>(d) / both;
  }

  // For each row in how many of the d coordinates its value is in the middle.
  std::vector<double> InTheMiddle() const {
    std::vector<double> kept(n);
    for (int64_t j = 0; j < kPeriod; ++j) {
      const std::vector<double> v = SortedColumn(j);
      if (v.empty()) continue;
      for (int64_t i = 0; i < n; ++i) {
        const double x = At(i, j);
        if (x >= v[(v.size() - 1) / 2] && x <= v[v.size() / 2]) kept[i] += Copies(j);
      }
    }
    return kept;
  }
};

double MeanOf(const std::vector<double>& values, size_t begin, size_t end) {
  double sum = 0;
  for (size_t i = begin; i < end; ++i) sum += values[i];
  return sum / static_cast<double>(end - begin);
}

double Median(const std::vector<double>& v) {
  return v.empty() ? 0.0 : MeanOf(v, (v.size() - 1) / 2, v.size() / 2 + 1);
}

// Mean of the `keep` values nearest to the center.
double MeanOfNearest(std::vector<double> v, double center, size_t keep) {
  std::stable_sort(v.begin(), v.end(),
                   [&](double a, double b) { return std::abs(a - center) < std::abs(b - center); });
  return MeanOf(v, 0, keep);
}

// d floats of results. As a result is a function of a column, and columns repeat with the pattern,
// the results may share pages too; the last kOwnTail of them are memory of their own, because a
// result that never comes there must be seen to be missing.
class Results {
 public:
  explicit Results(int64_t d) : d_(d), file_(PatternFile()), shared_(file_, d + kPeriod) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    own_from_ = (d - kOwnTail) * static_cast<int64_t>(sizeof(float)) / page * page;
    char* at = reinterpret_cast<char*>(shared_.get()) + own_from_;
    own_bytes_ = kOwnTail * sizeof(float) + 2 * page;
    if (mmap(at, own_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
             0) == MAP_FAILED) {
      Fail("mmap of the tail");
    }
  }
  ~Results() { close(file_); }
  Results(const Results&) = delete;
  Results& operator=(const Results&) = delete;

  float* get() const { return shared_.get(); }

  // No number in what is shared and in the tail.
  void Poison() const {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    std::fill_n(get(), kPeriod, nan);
    std::fill_n(get() + own_from_ / sizeof(float), own_bytes_ / sizeof(float), nan);
  }

  // Compares at places from the first to the last with expected(j).
  template <typename F>
  void Compare(const char* what, int64_t n, F expected) const {
    constexpr int64_t kSteps = 5000;
    for (int64_t s = 0; s <= kSteps; ++s) {
      const int64_t spread = (d_ - 1) / kSteps * s, tail = d_ - 1 - s * (kOwnTail / (kSteps + 1));
      for (const int64_t j : {spread, tail}) Expect(Near(get()[j], expected(j)), what, n, d_, j);
    }
    Expect(std::isnan(get()[d_]), "nothing beyond the end", n, d_, d_);
  }

 private:
  const int64_t d_;
  const int file_;
  const Repeated shared_;
  int64_t own_from_, own_bytes_;
};

void TestColumns(const Kernels<float>& kernels, Stack<float> stack, const Expected& expected,
                 const Results& out) {
  const int64_t n = stack.n, f = (n - 1) / 2;
  const auto f_of = static_cast<size_t>(f);
  const auto column = [&](auto of_values) {
    return [&expected, of_values](int64_t j) { return of_values(expected.SortedColumn(j)); };
  };
  const auto run = [&](const char* what, auto kernel, auto of_values) {
    out.Poison();
    kernel();
    out.Compare(what, n, column(of_values));
  };
  const auto mean = [](const auto& v) { return v.empty() ? 0.0 : MeanOf(v, 0, v.size()); };
  run("mean", [&] { kernels.mean(stack, true, out.get(), kTwoThreads); }, mean);

  std::vector<int64_t> rows(n);
  for (int64_t i = 0; i < n; ++i) rows[i] = i;
  run(
      "mean of rows", [&] { kernels.mean_of_rows(stack, rows.data(), n, out.get(), kTwoThreads); },
      mean);
  const std::vector<double> weights(n, 0.5);
  std::vector<double> sq_dist(n);
  aggregathor::Step step;
  run(
      "weighted mean",
      [&] {
        kernels.weiszfeld_step(stack, weights.data(), 0, out.get(), sq_dist.data(), &step,
                               kTwoThreads);
      },
      mean);

  const auto window = [&](Window which, int64_t* kept) {
    return [&, which, kept] { kernels.window_mean(stack, which, f, out.get(), kept, kTwoThreads); };
  };
  std::vector<int64_t> kept(n);
  run("median", window(Window::kMedian, kept.data()), Median);
  const std::vector<double> in_the_middle = expected.InTheMiddle();
  for (int64_t i = 0; i < n; ++i) {
    Expect(static_cast<double>(kept[i]) == in_the_middle[i], "kept", n, stack.d, i);
  }
  run("trimmed mean", window(Window::kTrimmedMean, nullptr), [&](const auto& v) {
    return v.size() > 2 * f_of ? MeanOf(v, f_of, v.size() - f_of) : Median(v);
  });
  run("meamed", window(Window::kMeamed, nullptr), [&](const auto& v) {
    return v.size() > 2 * f_of ? MeanOfNearest(v, Median(v), v.size() - f_of) : Median(v);
  });
  // Every candidate is one row: the mean of the theta - 2 nearest to the upper median of all.
  run(
      "bulyan", [&] { kernels.bulyan_tail(stack, rows.data(), n, 1, 1, out.get(), kTwoThreads); },
      [&](const auto& v) {
        if (v.size() <= 2) return v.empty() ? 0.0 : v[v.size() / 2];
        return MeanOfNearest(v, v[v.size() / 2], v.size() - 2);
      });
}

// More rows than one sorting network takes.
void TestManyRows(const Kernels<float>& kernels, Stack<float> stack, const Expected& expected,
                  const Results& out) {
  out.Poison();
  kernels.window_mean(stack, Window::kMedian, 1, out.get(), nullptr, kTwoThreads);
  out.Compare("median of many", stack.n,
              [&](int64_t j) { return Median(expected.SortedColumn(j)); });
}

// The distances between the rows, and of each to their mean: a point without missing values.
void TestDistances(const Kernels<float>& kernels, Stack<float> stack, const Expected& expected,
                   const Results& mean) {
  const int64_t n = stack.n;
  std::vector<double> sq_dist(n * n), to_mean(n);
  kernels.sq_distances(stack, true, sq_dist.data(), kTwoThreads);
  kernels.mean(stack, true, mean.get(), kTwoThreads);
  aggregathor::Step step;
  kernels.weiszfeld_step(stack, nullptr, 0, mean.get(), to_mean.data(), &step, kTwoThreads);
  for (int64_t a = 0; a < n; ++a) {
    const auto value = [&](int64_t j) { return expected.At(a, j); };
    for (int64_t b = a + 1; b < n; ++b) {
      const double want = expected.SqDistance(value, [&](int64_t j) { return expected.At(b, j); });
      Expect(Near(sq_dist[a * n + b], want), "distance", n, stack.d, a * n + b);
    }
    const double want = expected.SqDistance(value, [&](int64_t j) { return mean.get()[j]; });
    Expect(Near(to_mean[a], want), "distance to the mean", n, stack.d, a);
  }
}

}  // namespace

int main() {
  const std::vector<float> pattern = MakePattern();
  const int file = PatternFile();
  if (write(file, pattern.data(), kPeriod * sizeof(float)) != kPeriod * sizeof(float)) {
    Fail("write of the pattern");
  }
  const Kernels<float>& kernels = aggregathor::KernelsFor<float>();
  struct Size {
    int64_t n, d;
  };
  // n * d > 2^31 by the rows' length, which is beyond it even without what is missing, and by their
  // number.
  const int64_t long_d = (int64_t{1} << 31) + (int64_t{1} << 25) + 12'345;
  for (const Size size : {Size{3, long_d}, Size{41, 53'000'001}}) {
    const Repeated values(file, size.n * size.d);
    const Results out(size.d);
    const Stack<float> stack{values.get(), size.n, size.d};
    const Expected expected{pattern, size.n, size.d};
    if (size.n == 3) TestColumns(kernels, stack, expected, out);
    if (size.n > 32) TestManyRows(kernels, stack, expected, out);
    TestDistances(kernels, stack, expected, out);
  }
  std::printf("%s: %d failures\n", aggregathor::InstructionSet(), failures);
  return std::min(failures, 100);
}
