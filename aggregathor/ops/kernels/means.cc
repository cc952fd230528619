// Means of rows, of all or of chosen ones. Added in row order and in double.
#include "aggregathor/ops/kernels/tiles.h"

namespace aggregathor::AGGREGATHOR_ISA {
namespace {

// mean = the mean of the m rows row(0), row(1) ... over kCount registers of columns; with
// kSkipMissing of their present values, 0 where none is. Returns whether any mean is NaN.
template <bool kSkipMissing, int64_t kCount, typename T, typename F>
bool MeanOfColumns(Columns<T> columns, int64_t m, F row, T* mean) {
  Doubles sum[kCount] = {}, count[kCount] = {};
  for (int64_t k = 0; k < m; ++k) {
    const T* values = columns.values + row(k) * columns.stride;
    for (int64_t v = 0; v < kCount; ++v) {
      FetchNextTile(values, v);
      Add<kSkipMissing>(LoadDoubles(values + v * kDoubles), &sum[v], &count[v]);
    }
  }
  bool any_nan = false;
  for (int64_t v = 0; v < kCount; ++v) {
    any_nan |= Any(EitherIsNan(sum[v], sum[v]));
    const Doubles of_present = And(sum[v] / count[v], count[v] != 0);  // not 0 / 0
    StoreDoubles(mean + v * kDoubles, kSkipMissing ? of_present : sum[v] / static_cast<double>(m));
  }
  return any_nan;
}

// Makes the means of doubles anew whose sums have overflowed.
template <typename F>
void MendOverflow(Columns<double> columns, int64_t m, F row, bool skip_missing, double* mean) {
  for (int64_t l = 0; l < kLanes; ++l) {
    if (IsFinite(mean[l])) continue;
    MeanOfLarge large;
    for (int64_t k = 0; k < m; ++k) {
      const double x = columns.values[row(k) * columns.stride + l];
      if (!skip_missing || !IsMissing(x)) large.Add(x);
    }
    mean[l] = large.Mean();
  }
}
template <typename F>
void MendOverflow(Columns<float>, int64_t, F, bool, float*) {}  // sums of floats fit a double

// out = the mean of the m rows row(0), row(1) ... of the stack.
template <typename T, typename F>
void MeanOf(Stack<T> stack, bool skip_missing, int64_t m, F row, T* out, Parallel parallel) {
  constexpr int64_t kColumns = kSums * kDoubles;
  For(parallel, NumTiles(stack.d), 20 * m, [&](int64_t first_tile, int64_t end_tile) {
    const Scratch<T> copy(stack.n * kLanes);
    T mean[kLanes];
    for (int64_t t = first_tile; t < end_tile; ++t) {
      const int64_t j = t * kLanes;
      const Columns<T> columns = ColumnsAt(stack, j, copy.get());
      for (int64_t l = 0; l < kLanes; l += kColumns) {
        const Columns<T> some{columns.values + l, columns.stride};
        // Most columns are complete, and their sums tell.
        const bool any_nan = MeanOfColumns<false, kSums>(some, m, row, mean + l);
        if (!any_nan || !skip_missing) continue;
        for (int64_t h = 0; h < kColumns; h += kColumns / 2) {
          const Columns<T> half{some.values + h, some.stride};
          MeanOfColumns<true, kSums / 2>(half, m, row, mean + l + h);
        }
      }
      MendOverflow(columns, m, row, skip_missing, mean);
      std::memcpy(out + j, mean, static_cast<size_t>(Min(kLanes, stack.d - j)) * sizeof(T));
    }
  });
}

}  // namespace

template <typename T>
void Mean(Stack<T> stack, bool skip_missing, T* out, Parallel parallel) {
  const auto every = [](int64_t k) { return k; };
  MeanOf(stack, skip_missing, stack.n, every, out, parallel);
}

template <typename T>
void MeanOfRows(Stack<T> stack, const int64_t* rows, int64_t m, T* out, Parallel parallel) {
  MeanOf(stack, true, m, [rows](int64_t k) { return rows[k]; }, out, parallel);
}

#define AGGREGATHOR_INSTANTIATE(T)                     \
  template void Mean<T>(Stack<T>, bool, T*, Parallel); \
  template void MeanOfRows<T>(Stack<T>, const int64_t*, int64_t, T*, Parallel);
AGGREGATHOR_INSTANTIATE(float)
AGGREGATHOR_INSTANTIATE(double)
#undef AGGREGATHOR_INSTANTIATE

}  // namespace aggregathor::AGGREGATHOR_ISA
