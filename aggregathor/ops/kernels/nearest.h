// Which of a column's sorted values are nearest to a center; for the CPU's kernels and CUDA's.
#ifndef AGGREGATHOR_OPS_KERNELS_NEAREST_H_
#define AGGREGATHOR_OPS_KERNELS_NEAREST_H_

namespace aggregathor {

// How many of k ascending values, sorted(0..k-1), lie below the `keep` that are nearest to
// `center`. Those are always neighbours, so the farther end is dropped until `keep` are left. Of
// equally far values the one of the higher row goes first, which by_row(0..n-1), the column before
// it was sorted, tells.
template <typename Int, typename Sorted, typename ByRow>
constexpr Int NumBelowNearest(Sorted sorted, Int k, ByRow by_row, Int n, double center, Int keep) {
  using T = decltype(sorted(k));
  Int begin = 0, end = k;
  Int row = n;  // rows from here on have been dropped already, within one tie
  T tied_low{}, tied_high{};
  double part = 1;  // distances are compared in this part of their size
  while (end - begin > keep) {
    const T low = sorted(begin), high = sorted(end - 1);
    const auto distance = [&](double from, double to) { return part * to - part * from; };
    double below = distance(low, center), above = distance(center, high);
    if (part == 1 && below - above != below - above) {  // both are infinite: they overflow, perhaps
      part = 0.5;
      below = distance(low, center);
      above = distance(center, high);
    }
    if (below > above) {
      ++begin;
      continue;
    }
    if (above > below || low == high) {
      --end;
      continue;
    }
    if (low != tied_low || high != tied_high) {
      tied_low = low;
      tied_high = high;
      row = n;
      // Where all values that tie go, which of them goes first does not matter.
      const Int surplus = end - begin - keep;
      Int lows = 1, highs = 1;
      while (lows < surplus && sorted(begin + lows) == low) ++lows;
      while (highs < surplus && sorted(end - 1 - highs) == high) ++highs;
      if (lows + highs <= surplus && distance(sorted(begin + lows), center) < below &&
          distance(center, sorted(end - 1 - highs)) < above) {
        begin += lows;
        end -= highs;
        continue;
      }
    }
    T value = high;
    while (row > 0) {
      value = by_row(--row);
      if (value == low || value == high) break;
    }
    if (value == low) {
      ++begin;
    } else {
      --end;
    }
  }
  return begin;
}

}  // namespace aggregathor

#endif  // AGGREGATHOR_OPS_KERNELS_NEAREST_H_
