// The kernels for arrays in memory, through ctypes: rules outside of TensorFlow (arrays.py, which
// has made sure of shapes and bounds). On the threads of this process's pool.
#include <algorithm>
#include <utility>
#include <vector>

#include "aggregathor/ops/export.h"
#include "aggregathor/ops/kernels/geometric_median.h"
#include "aggregathor/ops/kernels/kernels.h"
#include "aggregathor/ops/kernels/pool.h"
#include "aggregathor/ops/kernels/selection.h"
#include "aggregathor/ops/kernels/window_names.h"

namespace aggregathor {
namespace {

const Kernels<float>& Table() { return KernelsFor<float>(); }
Parallel Threads() { return Pool::OfProcess().AsParallel(); }
// From the last range to the first: for what follows upon the distances, which have just read the
// same stack, whose end is in the cache.
Parallel ThreadsBackwards() {
  return {[](void*, int64_t total, int64_t cycles_per_unit, Parallel::Body body, void* arg) {
            For(Threads(), total, cycles_per_unit,
                [=](int64_t begin, int64_t end) { body(arg, total - end, total - begin); });
          },
          nullptr};
}
Parallel Alone() {
  return {
      [](void*, int64_t total, int64_t, Parallel::Body body, void* arg) { body(arg, 0, total); },
      nullptr};
}

// Returns how many there are.
int64_t Store(const std::vector<int64_t>& rows, int64_t* out) {
  std::copy(rows.begin(), rows.end(), out);
  return static_cast<int64_t>(rows.size());
}

// Calls f(begin, end) for pieces of k ranges [begin, end) of columns of n rows; threads take them
// in turn.
template <typename F>
void ForRanges(const int64_t* ranges_k2, int64_t k, int64_t n, F f) {
  constexpr int64_t kPiece = 8192, kCyclesPerValue = 20;
  std::vector<std::pair<int64_t, int64_t>> pieces;
  int64_t columns = 0;
  for (int64_t i = 0; i < k; ++i) {
    const int64_t end = ranges_k2[2 * i + 1];
    for (int64_t j = ranges_k2[2 * i]; j < end; j += kPiece) {
      pieces.emplace_back(j, std::min(end, j + kPiece));
      columns += pieces.back().second - j;
    }
  }
  if (pieces.empty()) return;
  const int64_t total = static_cast<int64_t>(pieces.size());
  For(Threads(), total, kCyclesPerValue * n * columns / total, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) f(pieces[p].first, pieces[p].second);
  });
}

// Calls f(columns, place of the first, threads) for all columns of a stack or, where ranges_k2 is
// not null, for those of k ranges.
template <typename F>
void ForColumns(Stack<float> stack, const int64_t* ranges_k2, int64_t k, F f) {
  if (ranges_k2 == nullptr) return f(stack, 0, Threads());
  ForRanges(ranges_k2, k, stack.n, [&](int64_t begin, int64_t end) {
    f({stack.data + begin, stack.n, end - begin, stack.stride}, begin, Alone());
  });
}

AGGREGATHOR_EXPORT void aggregathor_mean(const float* stack_nd, int64_t n, int64_t d,
                                         const int64_t* ranges_k2, int64_t k, int skip_missing,
                                         float* out_d) {
  ForColumns({stack_nd, n, d}, ranges_k2, k,
             [&](Stack<float> columns, int64_t first, Parallel threads) {
               Table().mean(columns, skip_missing != 0, out_d + first, threads);
             });
}

// kept_n: may be null, and is if there are ranges. Returns whether there is such a window.
AGGREGATHOR_EXPORT int aggregathor_window_mean(const float* stack_nd, int64_t n, int64_t d,
                                               const int64_t* ranges_k2, int64_t k,
                                               const char* name, int64_t f, float* out_d,
                                               int64_t* kept_n) {
  Window window;
  if (!WindowNamed(name, &window)) return 0;
  ForColumns({stack_nd, n, d}, ranges_k2, k,
             [&](Stack<float> columns, int64_t first, Parallel threads) {
               Table().window_mean(columns, window, f, out_d + first, kept_n, threads);
             });
  return 1;
}

AGGREGATHOR_EXPORT void aggregathor_sq_distances(const float* stack_nd, int64_t n, int64_t d,
                                                 double* sq_dist_nn) {
  Table().sq_distances({stack_nd, n, d}, false, sq_dist_nn, Threads());
}

// These three return how many rows or groups they found, at most what was asked for.
AGGREGATHOR_EXPORT int64_t aggregathor_krum_select(const double* sq_dist_nn, int64_t n, int64_t f,
                                                   int64_t m, int64_t* rows_m) {
  return Store(KrumSelect(sq_dist_nn, n, f, m), rows_m);
}

AGGREGATHOR_EXPORT int64_t aggregathor_brute_select(const double* sq_dist_nn, int64_t n, int64_t f,
                                                    int64_t* rows_m) {
  return Store(MinDiameterSubset(sq_dist_nn, n, f), rows_m);
}

// groups_tm: full of -1.
AGGREGATHOR_EXPORT int64_t aggregathor_bulyan_select(const double* sq_dist_nn, int64_t n, int64_t f,
                                                     int is_paper, int64_t m, int64_t* groups_tm) {
  const auto groups =
      is_paper ? BulyanPaperSelect(sq_dist_nn, n, f) : BulyanSelect(sq_dist_nn, n, f);
  for (size_t k = 0; k < groups.size(); ++k) Store(groups[k], groups_tm + k * m);
  return static_cast<int64_t>(groups.size());
}

AGGREGATHOR_EXPORT void aggregathor_mean_of_rows(const float* stack_nd, int64_t n, int64_t d,
                                                 const int64_t* rows_m, int64_t m, float* out_d) {
  Table().mean_of_rows({stack_nd, n, d}, rows_m, m, out_d, ThreadsBackwards());
}

AGGREGATHOR_EXPORT void aggregathor_bulyan_tail(const float* stack_nd, int64_t n, int64_t d,
                                                const int64_t* groups_tm, int64_t theta, int64_t m,
                                                int64_t f, float* out_d) {
  Table().bulyan_tail({stack_nd, n, d}, groups_tm, theta, m, f, out_d, ThreadsBackwards());
}

AGGREGATHOR_EXPORT void aggregathor_geometric_median(const float* stack_nd, int64_t n, int64_t d,
                                                     int64_t f, float nu, float tol,
                                                     int64_t max_iter, float* out_d,
                                                     double* weight_n) {
  GeometricMedian<float>({stack_nd, n, d}, f, nu, tol, max_iter, out_d, weight_n, Threads());
}

AGGREGATHOR_EXPORT void aggregathor_project(const float* stack_nd, int64_t n, int64_t d,
                                            const double* table_mb, int64_t b, int64_t m,
                                            double* out_ncm, double* sq_norm_nc) {
  Table().project({stack_nd, n, d}, table_mb, b, m, out_ncm, sq_norm_nc, Threads());
}

AGGREGATHOR_EXPORT void aggregathor_weighted_sum(const float* const* rows_m, const double* weights,
                                                 int64_t m, const int64_t* ranges_k2, int64_t k,
                                                 float* out_d) {
  ForRanges(ranges_k2, k, m, [&](int64_t begin, int64_t end) {
    Table().weighted_sum(rows_m, weights, m, begin, end, out_d);
  });
}

}  // namespace
}  // namespace aggregathor
