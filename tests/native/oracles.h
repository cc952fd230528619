// Oracles for the kernels: every kernel on stacks of exactly n * d values, so that a sanitizer sees
// a read or a write past either end, against plain loops in double.
#ifndef TESTS_NATIVE_ORACLES_H_
#define TESTS_NATIVE_ORACLES_H_

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "aggregathor/ops/kernels/kernels.h"
#include "aggregathor/ops/kernels/selection.h"

namespace oracles {

using aggregathor::Kernels;
using aggregathor::Parallel;
using aggregathor::Stack;
using aggregathor::Window;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

inline int failures = 0;

inline void Expect(bool holds, const char* what, int64_t n, int64_t d, const char* kind) {
  if (holds) return;
  std::printf("failed: %s, n=%ld d=%ld %s\n", what, static_cast<long>(n), static_cast<long>(d),
              kind);
  ++failures;
}

inline bool Near(double a, double b, double tolerance) {
  return a == b || std::abs(a - b) <= tolerance * (1 + std::abs(b));
}

// Two halves, as two threads would take them.
inline const Parallel kTwoRanges{[](void*, int64_t total, int64_t, Parallel::Body body, void* arg) {
                                   body(arg, 0, total / 2);
                                   body(arg, total / 2, total);
                                 },
                                 nullptr};

template <typename T>
struct Given {
  std::unique_ptr<T[]> data;  // exactly n * d values, so that the sanitizer guards both ends
  Stack<T> stack;
};

template <typename T>
Given<T> MakeStack(int64_t n, int64_t d, const char* kind, std::mt19937* rng) {
  Given<T> given{std::unique_ptr<T[]>(new T[n * d]), {}};
  std::normal_distribution<double> normal;
  std::uniform_int_distribution<int> small(-2, 2), tenth(0, 9);
  for (int64_t i = 0; i < n * d; ++i) {
    double x = kind[0] == 't' ? small(*rng) : normal(*rng);  // ties, or anything
    if (kind[0] != 'c' && tenth(*rng) == 0) x = kNan;
    if (kind[0] == 'i' && tenth(*rng) == 0) x = tenth(*rng) < 5 ? kInfinity : -kInfinity;
    given.data[i] = static_cast<T>(x);
  }
  given.stack = {given.data.get(), n, d};
  return given;
}

// The present values of a column, ascending.
template <typename T>
std::vector<double> SortedColumn(Stack<T> stack, int64_t j) {
  std::vector<double> values;
  for (int64_t i = 0; i < stack.n; ++i) {
    const double x = stack.data[i * stack.d + j];
    if (!std::isnan(x)) values.push_back(x);
  }
  std::sort(values.begin(), values.end());
  return values;
}

inline double MeanOf(const std::vector<double>& values, size_t begin, size_t end) {
  double sum = 0;
  for (size_t i = begin; i < end; ++i) sum += values[i];
  return sum / static_cast<double>(end - begin);
}

inline double Median(const std::vector<double>& v) {
  return MeanOf(v, (v.size() - 1) / 2, v.size() / 2 + 1);
}

template <typename T>
void TestColumns(const Kernels<T>& kernels, Stack<T> stack, int64_t f, const char* kind) {
  const double tolerance = sizeof(T) == 4 ? 1e-5 : 1e-12;
  const std::unique_ptr<T[]> out(new T[stack.d]);
  const std::unique_ptr<int64_t[]> kept(new int64_t[stack.n]);
  const auto compare = [&](const char* what, auto expected) {
    for (int64_t j = 0; j < stack.d; ++j) {
      const std::vector<double> values = SortedColumn(stack, j);
      const double want = values.empty() ? 0.0 : expected(values);
      if (!std::isfinite(want)) continue;  // more infinities than the rule bears
      Expect(Near(out[j], want, tolerance), what, stack.n, stack.d, kind);
    }
  };
  const auto f_of = static_cast<size_t>(f);
  kernels.mean(stack, true, out.get(), kTwoRanges);
  compare("mean", [](const auto& v) { return MeanOf(v, 0, v.size()); });
  kernels.window_mean(stack, Window::kMedian, f, out.get(), kept.get(), kTwoRanges);
  compare("median", Median);
  for (int64_t i = 0; i < stack.n; ++i) {
    Expect(kept[i] >= 0 && kept[i] <= stack.d, "kept", stack.n, stack.d, kind);
  }
  kernels.window_mean(stack, Window::kTrimmedMean, f, out.get(), nullptr, kTwoRanges);
  compare("trimmed mean", [&](const auto& v) {
    return v.size() > 2 * f_of ? MeanOf(v, f_of, v.size() - f_of) : Median(v);
  });
  for (const Window window : {Window::kMeamed, Window::kPhocas}) {
    kernels.window_mean(stack, window, f, out.get(), kept.get(), kTwoRanges);
    if (kind[0] == 't') continue;  // ties need rows; the Python oracles know them
    compare(window == Window::kMeamed ? "meamed" : "phocas", [&](std::vector<double> v) {
      if (v.size() <= 2 * f_of) return Median(v);
      const double center =
          window == Window::kMeamed ? Median(v) : MeanOf(v, f_of, v.size() - f_of);
      std::stable_sort(v.begin(), v.end(), [&](double a, double b) {
        return std::abs(a - center) < std::abs(b - center);
      });
      return MeanOf(v, 0, v.size() - f_of);
    });
  }
}

template <typename T>
void TestDistances(const Kernels<T>& kernels, Stack<T> stack, const char* kind) {
  const int64_t n = stack.n, d = stack.d;
  const std::unique_ptr<double[]> sq_dist(new double[n * n]);
  kernels.sq_distances(stack, true, sq_dist.get(), kTwoRanges);
  for (int64_t a = 0; a < n; ++a) {
    for (int64_t b = 0; b < n; ++b) {
      if (a == b) continue;
      double sum = 0;
      int64_t both = 0, present_a = 0, present_b = 0;
      bool infinite = false;
      for (int64_t j = 0; j < d; ++j) {
        const double x = stack.data[a * d + j], y = stack.data[b * d + j];
        present_a += !std::isnan(x);
        present_b += !std::isnan(y);
        infinite |= std::isinf(x) || std::isinf(y);
        if (std::isnan(x) || std::isnan(y)) continue;
        sum += (x - y) * (x - y);
        ++both;
      }
      const bool far = infinite || both == 0 || 2 * present_a < d || 2 * present_b < d;
      const double want = far ? kInfinity : sum * d / both;
      Expect(Near(sq_dist[a * n + b], want, 2e-6), "distance", n, d, kind);
    }
  }
}

template <typename T>
void TestWeiszfeld(const Kernels<T>& kernels, Stack<T> stack, const char* kind) {
  const int64_t n = stack.n, d = stack.d;
  const double tolerance = sizeof(T) == 4 ? 2e-6 : 1e-12;
  std::vector<double> weights(n), sq_dist(n);
  for (int64_t i = 0; i < n; ++i) {
    const T* row = stack.data + i * d;
    const bool infinite = std::any_of(row, row + d, [](T x) { return std::isinf(x); });
    weights[i] = infinite ? 0 : 1.0 / static_cast<double>(1 + i % 3);
  }
  const std::unique_ptr<T[]> v(new T[d]), before(new T[d]);
  for (int64_t j = 0; j < d; ++j) v[j] = before[j] = static_cast<T>(j % 5);
  aggregathor::Step step;
  kernels.weiszfeld_step(stack, weights.data(), 0, v.get(), sq_dist.data(), &step, kTwoRanges);

  double sq_length = 0, sq_norm = 0;
  for (int64_t j = 0; j < d; ++j) {
    double sum = 0, all = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double x = stack.data[i * d + j];
      if (weights[i] == 0 || std::isnan(x)) continue;
      sum += weights[i] * x;
      all += weights[i];
    }
    Expect(Near(v[j], all == 0 ? 0 : sum / all, tolerance), "weighted mean", n, d, kind);
    sq_length += std::pow(static_cast<double>(v[j]) - before[j], 2);
    sq_norm += std::pow(static_cast<double>(v[j]), 2);
  }
  Expect(Near(step.sq_length, sq_length, 1e-12), "length of a step", n, d, kind);
  Expect(Near(step.sq_norm, sq_norm, 1e-12), "norm after a step", n, d, kind);
  const auto expect_distances = [&](const char* what) {
    for (int64_t i = 0; i < n; ++i) {
      double sum = 0;
      int64_t present = 0;
      for (int64_t j = 0; j < d; ++j) {
        const double x = stack.data[i * d + j];
        if (std::isnan(x)) continue;
        sum += std::pow(x - v[j], 2);
        ++present;
      }
      const bool far = !std::isfinite(sum) || present == 0 || 2 * present < d;
      Expect(Near(sq_dist[i], far ? kInfinity : sum * d / present, 1e-12), what, n, d, kind);
    }
  };
  expect_distances("distance to the mean");
  kernels.weiszfeld_step(stack, nullptr, 0, v.get(), sq_dist.data(), &step, kTwoRanges);
  expect_distances("distance to a center");
  Expect(step.sq_length == 0, "a center that stays", n, d, kind);
}

template <typename T>
void TestBulyan(const Kernels<T>& kernels, Stack<T> stack, int64_t f, const char* kind) {
  const int64_t n = stack.n;
  const std::unique_ptr<double[]> sq_dist(new double[n * n]);
  kernels.sq_distances(stack, true, sq_dist.get(), kTwoRanges);
  const auto groups = aggregathor::BulyanSelect(sq_dist.get(), n, f);
  if (static_cast<int64_t>(groups.size()) < n - 2 * f - 2) return;  // too few comparable rows
  const int64_t theta = n - 2 * f - 2, m = n - f - 2;
  const std::unique_ptr<int64_t[]> flat(new int64_t[theta * m]);
  std::fill_n(flat.get(), theta * m, -1);
  for (int64_t c = 0; c < theta; ++c) {
    std::copy(groups[c].begin(), groups[c].end(), flat.get() + c * m);
  }
  const std::unique_ptr<T[]> out(new T[stack.d]);
  kernels.bulyan_tail(stack, flat.get(), theta, m, f, out.get(), kTwoRanges);
  for (int64_t j = 0; j < stack.d; ++j) {
    Expect(std::isfinite(out[j]), "bulyan is finite", n, stack.d, kind);
  }
  kernels.mean_of_rows(stack, flat.get(), m, out.get(), kTwoRanges);
  Expect(!aggregathor::KrumSelect(sq_dist.get(), n, f, 1).empty(), "krum", n, stack.d, kind);
  aggregathor::BulyanPaperSelect(sq_dist.get(), n, f);
  aggregathor::MinDiameterSubset(sq_dist.get(), n, f);
}

// The tests above of one stack of each kind.
template <typename T>
void TestShape(const Kernels<T>& kernels, int64_t n, int64_t d, std::mt19937* rng) {
  for (const char* kind : {"complete", "missing", "infinite", "ties"}) {
    const Given<T> given = MakeStack<T>(n, d, kind, rng);
    TestColumns(kernels, given.stack, (n - 1) / 3, kind);
    TestDistances(kernels, given.stack, kind);
    TestWeiszfeld(kernels, given.stack, kind);
    if (n >= 7) TestBulyan(kernels, given.stack, (n - 3) / 4, kind);
  }
}

}  // namespace oracles

#endif  // TESTS_NATIVE_ORACLES_H_
