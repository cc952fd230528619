// Coordinate-wise rules: each output coordinate depends on one column of the stack alone.
#include "aggregathor/ops/kernels/windows.h"

namespace aggregathor::AGGREGATHOR_ISA {
namespace {

bool IsNearest(Window window) { return window == Window::kMeamed || window == Window::kPhocas; }

// The window of k sorted values that does not depend on them: for the nearest to a center, the
// window whose mean is that center.
Range FixedWindow(Window window, int64_t k, int64_t f) {
  switch (window) {
    case Window::kMedianUpper:
      return UpperMedianRange(k);
    case Window::kMedianLower:
      return LowerMedianRange(k);
    case Window::kTrimmedMean:
    case Window::kPhocas:
      return k > 2 * f ? Range{f, k - f} : MedianRange(k);
    case Window::kMedian:
    case Window::kMeamed:
      break;
  }
  return MedianRange(k);
}

// kept[i] += the number of the tile's columns in which row i's value lies in the window.
template <typename T>
void CountKept(const SortedTile<T>& tile, const Windows& windows, int64_t n, int64_t width,
               int64_t* kept) {
  T low[kLanes], high[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) {
    const bool empty = windows.begin[l] == windows.end[l];
    low[l] = empty ? kInfinity<T> : tile.sorted[windows.begin[l] * kLanes + l];
    high[l] = empty ? -kInfinity<T> : tile.sorted[(windows.end[l] - 1) * kLanes + l];
  }
  for (int64_t i = 0; i < n; ++i) {
    const T* row = tile.by_row.values + i * tile.by_row.stride;
    int32_t count = 0;
    for (int64_t l = 0; l < width; ++l) count += row[l] >= low[l] && row[l] <= high[l];
    kept[i] += count;
  }
}

}  // namespace

template <typename T>
void WindowMean(Stack<T> stack, Window window, int64_t f, T* out, int64_t* kept_n,
                Parallel parallel) {
  const int64_t n = stack.n;
  const ColumnSorter<T> sorter(n);
  const auto fixed = [window, f](int64_t k) { return FixedWindow(window, k, f); };
  const WindowRule rule(n, f, fixed, IsNearest(window), f);
  if (kept_n != nullptr) std::memset(kept_n, 0, static_cast<size_t>(n) * sizeof *kept_n);

  For(parallel, NumTiles(stack.d), 40 * n, [&](int64_t first_tile, int64_t end_tile) {
    const Scratch<T> sorted(n * kLanes), copy(n * kLanes), high_values(n * kLanes);
    const Scratch<int64_t> kept(n);
    std::memset(kept.get(), 0, static_cast<size_t>(n) * sizeof(int64_t));
    int32_t missing[kLanes];
    Windows windows;
    for (int64_t t = first_tile; t < end_tile; ++t) {
      const int64_t j = t * kLanes;
      const int64_t width = Min(kLanes, stack.d - j);
      const Columns<T> columns = ColumnsAt(stack, j, copy.get());
      const bool any_missing = sorter.Sort(columns.values, columns.stride, sorted.get(), missing);
      const SortedTile<T> tile{sorted.get(), columns, missing, any_missing};
      WindowsOfTile(tile, rule, high_values.get(), &windows);
      StoreUnlessHopeless(windows, tile, rule, width, out + j);
      if (kept_n != nullptr) CountKept(tile, windows, n, width, kept.get());
    }
    if (kept_n != nullptr) {
      for (int64_t i = 0; i < n; ++i) __atomic_fetch_add(&kept_n[i], kept[i], __ATOMIC_RELAXED);
    }
  });
}

template void WindowMean<float>(Stack<float>, Window, int64_t, float*, int64_t*, Parallel);
template void WindowMean<double>(Stack<double>, Window, int64_t, double*, int64_t*, Parallel);

}  // namespace aggregathor::AGGREGATHOR_ISA
