// Windows of the sorted columns of a tile, and their means. For the files that are compiled once
// per instruction set.
#ifndef AGGREGATHOR_OPS_KERNELS_WINDOWS_H_
#define AGGREGATHOR_OPS_KERNELS_WINDOWS_H_

#include "aggregathor/ops/kernels/nearest.h"
#include "aggregathor/ops/kernels/sorted_tile.h"
#include "aggregathor/ops/kernels/tiles.h"

namespace aggregathor::AGGREGATHOR_ISA {

// A window [begin, end) of a column's sorted present values.
struct Range {
  int64_t begin, end;
};

inline Range MedianRange(int64_t k) { return {(k - 1) / 2, k / 2 + 1}; }
inline Range UpperMedianRange(int64_t k) { return {k / 2, k / 2 + 1}; }
inline Range LowerMedianRange(int64_t k) { return {(k - 1) / 2, (k - 1) / 2 + 1}; }

// Which window of k <= n sorted values a rule averages: one that k alone tells or, where `nearest`,
// the values nearest to that one's mean, all but `leave_out`. Columns of k <= 2f values keep the
// window that k tells.
class WindowRule {
 public:
  template <typename F>
  WindowRule(int64_t n, int64_t f, F fixed, bool nearest, int64_t leave_out)
      : n(n),
        f(f),
        leave_out(leave_out),
        // The value nearest to one of them is that one.
        nearest(nearest && n > 2 * f && n - leave_out > 1),
        begin_(n + 1),
        end_(n + 1) {
    begin_[0] = end_[0] = 0;
    for (int64_t k = 1; k <= n; ++k) {
      const Range r = fixed(k);
      begin_[k] = static_cast<int32_t>(r.begin);
      end_[k] = static_cast<int32_t>(r.end);
    }
  }

  int32_t begin(int64_t k) const { return begin_[k]; }
  int32_t end(int64_t k) const { return end_[k]; }

  const int64_t n, f, leave_out;
  const bool nearest;

 private:
  Scratch<int32_t> begin_, end_;
};

// A sorted tile, and the same columns before they were sorted, which tell rows apart where values
// tie.
template <typename T>
struct SortedTile {
  const T* sorted;  // [n][kLanes]
  Columns<T> by_row;
  const int32_t* missing;  // [kLanes]
  bool any_missing;
};

// A window of each column of a tile, and its mean, 0 for an empty one.
struct Windows {
  int32_t begin[kLanes], end[kLanes];
  double mean[kLanes];
};

// sum / count. Float32 sums are multiplied by 1 / count, which is faster and the same but for the
// last bit of the double that is rounded to float32 then.
template <typename T, typename D>
[[gnu::always_inline]] inline Doubles Divided(Doubles sum, D count) {
  if constexpr (sizeof(T) == sizeof(float)) return sum * (1.0 / count);
  return sum / count;
}

// The means of the same window of all columns. Added in ascending order, so that the order of the
// rows does not matter; in double, so that neither rounding nor overflow of a float32 sum does.
template <typename T>
void MeansOfWindow(const T* sorted, Range r, double* mean) {
  const double count = static_cast<double>(r.end - r.begin);
  for (int64_t l = 0; l < kLanes; l += kDoubles) {
    Doubles sum{};
    for (int64_t i = r.begin; i < r.end; ++i) sum += LoadDoubles(sorted + i * kLanes + l);
    StoreDoubles(mean + l, Divided<T>(sum, count));
  }
}

// The means of each column's own window.
template <typename T>
void MeansOfWindows(const T* sorted, const int32_t* begin, const int32_t* end, double* mean) {
  // All windows lie in [first, last), and [inner_first, inner_last) lies in all windows.
  int32_t first = begin[0], inner_first = begin[0], inner_last = end[0], last = end[0];
  double from[kLanes], to[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) {
    first = begin[l] < first ? begin[l] : first;
    inner_first = begin[l] > inner_first ? begin[l] : inner_first;
    inner_last = end[l] < inner_last ? end[l] : inner_last;
    last = end[l] > last ? end[l] : last;
    from[l] = begin[l];
    to[l] = end[l];
  }
  const bool apart = inner_first > inner_last;  // there are windows without a common value
  if (apart) inner_first = inner_last = last;
  for (int64_t l = 0; l < kLanes; l += kDoubles) {
    const Doubles b = LoadDoubles(from + l), e = LoadDoubles(to + l), zero{};
    const auto value = [&](int64_t i) { return LoadDoubles(sorted + i * kLanes + l); };
    const auto rank = [](int64_t i) { return Broadcast(static_cast<double>(i)); };
    Doubles sum{};
    for (int64_t i = first; i < inner_first; ++i) {
      const Doubles begun = b <= rank(i) ? value(i) : zero;
      sum += apart ? (rank(i) < e ? begun : zero) : begun;
    }
    for (int64_t i = inner_first; i < inner_last; ++i) sum += value(i);
    for (int64_t i = inner_last; i < last; ++i) sum += rank(i) < e ? value(i) : zero;
    const Doubles count = e - b;
    StoreDoubles(mean + l, And(Divided<T>(sum, count), count != 0));
  }
}

// Makes the means of doubles anew whose sums have overflowed.
template <typename T>
void MendOverflow(const T* sorted, Windows* windows) {
  if constexpr (sizeof(T) == sizeof(float)) return;  // sums of floats always fit a double
  for (int64_t l = 0; l < kLanes; ++l) {
    const int32_t begin = windows->begin[l], end = windows->end[l];
    if (IsFinite(windows->mean[l]) || begin == end) continue;
    const auto value = [&](int64_t i) { return sorted[i * kLanes + l]; };
    if (!IsFinite(value(begin)) || !IsFinite(value(end - 1))) continue;
    MeanOfLarge mean;
    for (int64_t i = begin; i < end; ++i) mean.Add(value(i));
    windows->mean[l] = mean.Mean();
  }
}

// NumBelowNearest (nearest.h) for a tile: lane by lane, and which lanes have ties.
//
// A window that begins at i moves on where s_i is farther from the center than s_(i+keep), which it
// would take in; that is so up to the window's final place and no farther. So all of this is
// comparisons, the same for every column. high[i] are the values that a window at i would take in.
// Where two ends tie rows decide, unless all between them is the same.
template <typename T>
void CountMoves(const T* sorted, const T* high, int64_t leave_out, const double* center,
                int64_t* begin, int64_t* tied) {
  for (int64_t l = 0; l < kLanes; l += kDoubles) {
    const Doubles c = LoadDoubles(center + l);
    Integers moves{}, ties{};  // minus how many
    for (int64_t i = 0; i < leave_out; ++i) {
      const Doubles low_value = LoadDoubles(sorted + i * kLanes + l);
      const Doubles high_value = LoadDoubles(high + i * kLanes + l);
      const Doubles below = c - low_value, above = high_value - c;
      const Integers farther = below > above;
      moves += farther;
      // NaN, of an infinite center and an infinite value, counts as a tie, and so do differences
      // that both overflow.
      ties |= ~(farther | (below < above)) & (low_value != high_value);
    }
    Store(begin + l, -moves);
    Store(tied + l, ties);
  }
}

// The windows of the values nearest to windows->mean, which becomes their mean.
template <typename T>
void NearestWindows(const SortedTile<T>& tile, const WindowRule& rule, T* high_values,
                    Windows* windows) {
  const int64_t n = rule.n, leave_out = rule.leave_out;
  const T* high = tile.sorted + (n - leave_out) * kLanes;
  int64_t begin[kLanes], tied[kLanes];
  if (tile.any_missing) {
    for (int64_t i = 0; i < leave_out; ++i) {
      for (int64_t l = 0; l < kLanes; ++l) {
        const int64_t at = n - tile.missing[l] - leave_out + i;
        high_values[i * kLanes + l] = tile.sorted[(at > 0 ? at : 0) * kLanes + l];
      }
    }
    high = high_values;
  }
  CountMoves(tile.sorted, high, leave_out, windows->mean, begin, tied);
  for (int64_t l = 0; l < kLanes; ++l) {
    const int64_t k = n - tile.missing[l];
    if (tied[l] == 0 || k <= 2 * rule.f) continue;
    const auto sorted = [&](int64_t i) { return tile.sorted[i * kLanes + l]; };
    const auto by_row = [&](int64_t i) { return tile.by_row.values[i * tile.by_row.stride + l]; };
    begin[l] = NumBelowNearest(sorted, k, by_row, n, windows->mean[l], k - leave_out);
  }
  for (int64_t l = 0; l < kLanes; ++l) {
    const bool own = n - tile.missing[l] > 2 * rule.f;
    const int64_t last = begin[l] + n - tile.missing[l] - leave_out;
    windows->begin[l] = own ? static_cast<int32_t>(begin[l]) : windows->begin[l];
    windows->end[l] = own ? static_cast<int32_t>(last) : windows->end[l];
  }
  MeansOfWindows(tile.sorted, windows->begin, windows->end, windows->mean);
  MendOverflow(tile.sorted, windows);
}

// The windows of a tile. high_values: room for n * kLanes values.
template <typename T>
void WindowsOfTile(const SortedTile<T>& tile, const WindowRule& rule, T* high_values,
                   Windows* windows) {
  if (!tile.any_missing) {
    const int32_t begin = rule.begin(rule.n), end = rule.end(rule.n);
    for (int64_t l = 0; l < kLanes; ++l) windows->begin[l] = begin;
    for (int64_t l = 0; l < kLanes; ++l) windows->end[l] = end;
    MeansOfWindow(tile.sorted, {begin, end}, windows->mean);
  } else {
    for (int64_t l = 0; l < kLanes; ++l) {
      windows->begin[l] = rule.begin(rule.n - tile.missing[l]);
      windows->end[l] = rule.end(rule.n - tile.missing[l]);
    }
    MeansOfWindows(tile.sorted, windows->begin, windows->end, windows->mean);
  }
  MendOverflow(tile.sorted, windows);
  if (rule.nearest) NearestWindows(tile, rule, high_values, windows);
}

// Writes the means. Where so few values are left that f bad ones may decide, and the mean is not
// finite, there is no update.
template <typename T>
void StoreUnlessHopeless(const Windows& windows, const SortedTile<T>& tile, const WindowRule& rule,
                         int64_t width, T* out) {
  T mean[kLanes];
  for (int64_t l = 0; l < kLanes; l += kDoubles) {
    StoreDoubles(mean + l, LoadDoubles(windows.mean + l));
  }
  if (tile.any_missing || rule.n <= 2 * rule.f) {
    for (int64_t l = 0; l < kLanes; ++l) {
      const bool hopeless = rule.n - tile.missing[l] <= 2 * rule.f && !IsFinite(mean[l]);
      mean[l] = hopeless ? T{0} : mean[l];
    }
  }
  std::memcpy(out, mean, static_cast<size_t>(width) * sizeof(T));
}

}  // namespace aggregathor::AGGREGATHOR_ISA

#endif  // AGGREGATHOR_OPS_KERNELS_WINDOWS_H_
