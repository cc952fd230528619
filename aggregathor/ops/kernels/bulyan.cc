// Bulyan's second half: the means of the chosen rows, and the mean of those nearest to their
// median.
#include "aggregathor/ops/kernels/windows.h"

namespace aggregathor::AGGREGATHOR_ISA {
namespace {

// How the means of Bulyan's groups are made from each other. Groups shrink from one to the next and
// mostly by the row that leaves, so they are gone through from the last: group c then is group
// c + 1 and the rows in `added`, up to the first -1, unless it `starts` anew.
struct GroupPlan {
  GroupPlan(const int64_t* groups, int64_t theta, int64_t m, int64_t n)
      : m(m), added(theta * m), starts(theta), sizes(theta) {
    const Scratch<int64_t> last_group(n);  // that a row was in, of those gone through
    for (int64_t i = 0; i < n; ++i) last_group[i] = -1;
    int64_t size_of_smaller = 0;
    for (int64_t c = theta - 1; c >= 0; --c) {
      const int64_t* group = groups + c * m;
      int64_t size = 0, in_both = 0;
      for (; size < m && group[size] >= 0; ++size) in_both += last_group[group[size]] == c + 1;
      starts[c] = c == theta - 1 || in_both < size_of_smaller;
      int64_t next = 0;
      for (int64_t g = 0; g < size; ++g) {
        if (starts[c] || last_group[group[g]] != c + 1) added[c * m + next++] = group[g];
        last_group[group[g]] = c;
      }
      if (next < m) added[c * m + next] = -1;
      sizes[c] = static_cast<double>(size);
      size_of_smaller = size;
    }
  }

  int64_t m;
  Scratch<int64_t> added;
  Scratch<bool> starts;
  Scratch<double> sizes;
};

// candidates[theta][kLanes] = the means of the groups, over kCount registers of columns; with
// kSkipMissing of their present values, NaN where none is. Returns whether any is NaN.
template <bool kSkipMissing, int64_t kCount, typename T>
bool MakeCandidates(Columns<T> columns, const GroupPlan& plan, int64_t theta, T* candidates) {
  bool any_nan = false;
  Doubles sum[kCount], count[kCount];
  for (int64_t c = theta - 1; c >= 0; --c) {
    if (plan.starts[c]) {
      for (int64_t v = 0; v < kCount; ++v) sum[v] = count[v] = Doubles{};
    }
    const int64_t* added = plan.added.get() + c * plan.m;
    for (int64_t g = 0; g < plan.m && added[g] >= 0; ++g) {
      const T* row = columns.values + added[g] * columns.stride;
      for (int64_t v = 0; v < kCount; ++v) {
        FetchNextTile(row, v);
        Add<kSkipMissing>(LoadDoubles(row + v * kDoubles), &sum[v], &count[v]);
      }
    }
    for (int64_t v = 0; v < kCount; ++v) {
      any_nan |= Any(EitherIsNan(sum[v], sum[v]));
      // 0 times 1 / 0 is the NaN that says missing.
      StoreDoubles(candidates + c * kLanes + v * kDoubles,
                   kSkipMissing ? Divided<T>(sum[v], count[v]) : Divided<T>(sum[v], plan.sizes[c]));
    }
  }
  return any_nan;
}

// Makes the candidates of a tile of doubles anew whose sums have overflowed.
void MendOverflow(Columns<double> columns, const GroupPlan& plan, int64_t theta,
                  double* candidates) {
  for (int64_t l = 0; l < kLanes; ++l) {
    bool overflows = false;
    for (int64_t c = 0; c < theta; ++c) overflows |= !IsFinite(candidates[c * kLanes + l]);
    if (!overflows) continue;
    MeanOfLarge mean;
    for (int64_t c = theta - 1; c >= 0; --c) {
      if (plan.starts[c]) mean = MeanOfLarge();
      const int64_t* added = plan.added.get() + c * plan.m;
      for (int64_t g = 0; g < plan.m && added[g] >= 0; ++g) {
        const double x = columns.values[added[g] * columns.stride + l];
        if (!IsMissing(x)) mean.Add(x);
      }
      double* candidate = candidates + c * kLanes + l;
      if (!IsFinite(*candidate)) *candidate = mean.Mean();
    }
  }
}
void MendOverflow(Columns<float>, const GroupPlan&, int64_t, float*) {}  // sums fit a double

}  // namespace

template <typename T>
void BulyanTail(Stack<T> stack, const int64_t* groups, int64_t theta, int64_t m, int64_t f, T* out,
                Parallel parallel) {
  constexpr int64_t kColumns = kSums * kDoubles;
  const ColumnSorter<T> sorter(theta);
  const GroupPlan plan(groups, theta, m, stack.n);
  const WindowRule rule(theta, f, &UpperMedianRange, true, 2 * f);
  For(parallel, NumTiles(stack.d), 40 * (m + theta), [&](int64_t first_tile, int64_t end_tile) {
    const Scratch<T> candidates(theta * kLanes), sorted(theta * kLanes), copy(stack.n * kLanes),
        high_values(theta * kLanes);
    const Columns<T> made{candidates.get(), kLanes};
    int32_t missing[kLanes];
    Windows windows;
    for (int64_t t = first_tile; t < end_tile; ++t) {
      const int64_t j = t * kLanes;
      const int64_t width = Min(kLanes, stack.d - j);
      const Columns<T> columns = ColumnsAt(stack, j, copy.get());
      for (int64_t l = 0; l < kLanes; l += kColumns) {
        const Columns<T> some{columns.values + l, columns.stride};
        T* to = candidates.get() + l;
        // Most columns are complete, and their sums tell.
        if (!MakeCandidates<false, kSums>(some, plan, theta, to)) continue;
        for (int64_t h = 0; h < kColumns; h += kColumns / 2) {
          const Columns<T> half{some.values + h, some.stride};
          MakeCandidates<true, kSums / 2>(half, plan, theta, to + h);
        }
      }
      MendOverflow(columns, plan, theta, candidates.get());
      const bool any_missing = sorter.Sort(made.values, made.stride, sorted.get(), missing);
      const SortedTile<T> tile{sorted.get(), made, missing, any_missing};
      WindowsOfTile(tile, rule, high_values.get(), &windows);
      StoreUnlessHopeless(windows, tile, rule, width, out + j);
    }
  });
}

template void BulyanTail<float>(Stack<float>, const int64_t*, int64_t, int64_t, int64_t, float*,
                                Parallel);
template void BulyanTail<double>(Stack<double>, const int64_t*, int64_t, int64_t, int64_t, double*,
                                 Parallel);

}  // namespace aggregathor::AGGREGATHOR_ISA
