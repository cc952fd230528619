// Squared distances between all pairs of rows, in one pass over the stack.
//
// Distances are sums of squared differences: a Gram matrix (|x|^2 + |y|^2 - 2xy) would be one
// matrix product, but cancels where rows lie near each other, which is where the order of the
// distances decides.
//
// float64 rows are compared in double. float32 rows are compared in float, kRun columns of a lane
// at a time, and these sums are added in double: a difference is rounded once, its square once, and
// a run adds kRun - 1 roundings, so a squared distance has a relative error of at most (kRun + 2) *
// 2^-24 = 1.1e-6 (and typically 1e-8, as roundings of either sign cancel), whatever the rows' own
// size. Where float is too narrow, for values whose squares overflow or underflow, the block is
// compared in double instead.
//
// Squares of doubles overflow beyond 1.3e154 and lose digits below 1.5e-154. Where a sum tells that
// this may be so, its two rows are compared once more, in other units.
#include "aggregathor/ops/kernels/row_sums.h"
#include "aggregathor/ops/kernels/simd.h"
#include "aggregathor/ops/kernels/wide.h"

namespace aggregathor::AGGREGATHOR_ISA {
namespace {

// At most this many columns are compared before the next ones.
constexpr int64_t kMaxBlock = 1024;
constexpr int64_t kWords = kMaxBlock / 64;
// Rows on each side of a tile of pairs: 4 x 4 sums and 4 + 4 values fit 32 vector registers, and
// every value that is loaded serves 4 differences.
constexpr int kTile = 4;
// So many rows are a tile by themselves: 21 sums and 7 values. Every value is then loaded once.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kAlone = 7;
#else
constexpr int kAlone = kTile;
#endif

// Which values of a row are missing in one block of columns.
struct Gaps {
  bool any;
  uint64_t present[kWords];  // one bit a column, set only if there are any gaps
};

template <typename T>
RowStats Inspect(const T* row, int64_t width, Gaps* gaps) {
  RowStats stats{0, false};
  std::memset(gaps->present, 0, sizeof gaps->present);
  int64_t c = 0;
  for (; c + kWidth<T> <= width; c += kWidth<T>) {
    const Vector<T> x = Load(row + c);
    const uint64_t nan = Bits<T>(EitherIsNan(x, x));
    // x - x is NaN for an infinity too.
    const uint64_t not_finite = Bits<T>(EitherIsNan(x - x, x - x));
    const uint64_t all = kWidth<T> == 64 ? ~uint64_t{0} : (uint64_t{1} << kWidth<T>)-1;
    stats.missing += __builtin_popcountll(nan);
    stats.has_infinity |= not_finite != nan;
    gaps->present[c / 64] |= (all & ~nan) << (c % 64);
  }
  for (; c < width; ++c) {
    const bool missing = IsMissing(row[c]);
    stats.missing += missing;
    stats.has_infinity |= !missing && !IsFinite(row[c]);
    gaps->present[c / 64] |= static_cast<uint64_t>(!missing) << (c % 64);
  }
  gaps->any = stats.missing > 0;
  return stats;
}

int64_t CountBoth(const Gaps& a, const Gaps& b, int64_t width) {
  if (!a.any && !b.any) return width;
  int64_t count = 0;
  for (int64_t w = 0; w < kWords; ++w) {
    const uint64_t all = ~uint64_t{0};
    count += __builtin_popcountll((a.any ? a.present[w] : all) & (b.any ? b.present[w] : all));
  }
  return count;
}

// Rows whose next columns are fetched while others are compared, a cache line a step: n rows are
// more streams than the processor follows by itself, and fetched all at once they would hold up
// the comparisons.
template <typename T>
struct Ahead {
  const T* rows[kAlone];
  int64_t count;

  [[gnu::always_inline]] void Fetch(int64_t j) const {
    for (int64_t r = 0; r < count; ++r) __builtin_prefetch(rows[r] + j);
  }
};

// sum + (a - b)^2, or sum where that is NaN because either is missing.
template <bool kMissing, typename V>
[[gnu::always_inline]] inline V AddSquare(V a, V b, V sum) {
  V difference = a - b;
  if constexpr (kMissing) difference = difference == difference ? difference : V{};
  return MultiplyAdd(difference, difference, sum);
}

template <bool kMissing, typename T>
double SquareOf(T a, T b) {
  const double difference = static_cast<double>(a) - static_cast<double>(b);
  return kMissing && IsMissing(difference) ? 0 : difference * difference;
}

// Which pairs of a tile are wanted: all, or those above the diagonal of a tile of rows with
// themselves.
enum class Pairs { kAll, kAboveDiagonal };

constexpr bool Wanted(Pairs pairs, int r, int c) { return pairs == Pairs::kAll || c > r; }

// sums[r * kAlone + c] = sum over `width` columns of (a[r] - b[c])^2, for the R x C pairs wanted.
template <int R, int C, Pairs kPairs, bool kMissing>
void SquaredDifferences(const double* const* a, const double* const* b, int64_t width,
                        const Ahead<double>& ahead, double* sums) {
  Doubles sum[R * C] = {};
  int64_t j = 0;
  for (; j + kDoubles <= width; j += kDoubles) {
    ahead.Fetch(j);
    for (int r = 0; r < R; ++r) {
      for (int c = 0; c < C; ++c) {
        if (!Wanted(kPairs, r, c)) continue;
        sum[r * C + c] = AddSquare<kMissing>(Load(a[r] + j), Load(b[c] + j), sum[r * C + c]);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) {
      if (!Wanted(kPairs, r, c)) continue;
      double total = SumOf(sum[r * C + c]);
      for (int64_t l = j; l < width; ++l) total += SquareOf<kMissing>(a[r][l], b[c][l]);
      sums[r * kAlone + c] = total;
    }
  }
}

// Steps of a register's width that are added in float before they are added to a double.
constexpr int64_t kRun = 16;
// Block sums of floats outside of this may have lost squares to underflow or overflow.
constexpr double kLeastSureOfFloats = 1e-26, kMostSureOfFloats = 1e30;

// One pair of a block, in double throughout.
template <bool kMissing>
double SquaredDifferencesInDouble(const float* a, const float* b, int64_t width) {
  Doubles sum{};
  int64_t j = 0;
  for (; j + kDoubles <= width; j += kDoubles) {
    sum = AddSquare<kMissing>(LoadDoubles(a + j), LoadDoubles(b + j), sum);
  }
  double total = SumOf(sum);
  for (; j < width; ++j) total += SquareOf<kMissing>(a[j], b[j]);
  return total;
}

template <int R, int C, Pairs kPairs, bool kMissing>
void SquaredDifferences(const float* const* a, const float* const* b, int64_t width,
                        const Ahead<float>& ahead, double* sums) {
  Doubles sum[R * C] = {};
  int64_t j = 0;
  while (j + kWidth<float> <= width) {
    Vector<float> run[R * C] = {};
    const int64_t steps = Min(kRun, (width - j) / kWidth<float>);
    for (int64_t s = 0; s < steps; ++s, j += kWidth<float>) {
      ahead.Fetch(j);
      Vector<float> x[R], y[C];
      for (int r = 0; r < R; ++r) x[r] = Load(a[r] + j);
      for (int c = 0; c < C; ++c) y[c] = Load(b[c] + j);
      for (int r = 0; r < R; ++r) {
        for (int c = 0; c < C; ++c) {
          if (!Wanted(kPairs, r, c)) continue;
          run[r * C + c] = AddSquare<kMissing>(x[r], y[c], run[r * C + c]);
        }
      }
    }
    for (int p = 0; p < R * C; ++p) {
      if (Wanted(kPairs, p / C, p % C)) sum[p] += SumOfHalves(run[p]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) {
      if (!Wanted(kPairs, r, c)) continue;
      double total = SumOf(sum[r * C + c]);
      for (int64_t l = j; l < width; ++l) total += SquareOf<kMissing>(a[r][l], b[c][l]);
      // Not NaN, which says that a value is missing.
      const bool sure = !(total <= kLeastSureOfFloats || total >= kMostSureOfFloats);
      sums[r * kAlone + c] = sure ? total : SquaredDifferencesInDouble<kMissing>(a[r], b[c], width);
    }
  }
}

template <typename T>
using Compare = void (*)(const T* const* a, const T* const* b, int64_t width, const Ahead<T>&,
                         double* sums);

// The pairs of kTile rows with the next num_b, at most kTile; or of one tile's rows among
// themselves, at most kAlone.
template <int C, bool kMissing, typename T>
Compare<T> CompareTilesOf(bool diagonal) {
  if (diagonal || C > kTile) return &SquaredDifferences<C, C, Pairs::kAboveDiagonal, kMissing>;
  return &SquaredDifferences<kTile, C, Pairs::kAll, kMissing>;
}

template <bool kMissing, typename T>
Compare<T> CompareTiles(bool diagonal, int64_t num_b) {
  switch (num_b) {
    case 1:
      return CompareTilesOf<1, kMissing, T>(diagonal);
    case 2:
      return CompareTilesOf<2, kMissing, T>(diagonal);
    case 3:
      return CompareTilesOf<3, kMissing, T>(diagonal);
    case 4:
      return CompareTilesOf<4, kMissing, T>(diagonal);
    case 5:
      return CompareTilesOf<Min(5, kAlone), kMissing, T>(diagonal);
    case 6:
      return CompareTilesOf<Min(6, kAlone), kMissing, T>(diagonal);
    default:
      return CompareTilesOf<kAlone, kMissing, T>(diagonal);
  }
}

// The partial sums of all parts take at most this much memory, and mostly far less.
constexpr int64_t kMaxPartialBytes = int64_t{32} << 20;
constexpr int64_t kMaxParts = 64;

// The place of the pair (a, b), a < b, in a list of all pairs.
int64_t PairIndex(int64_t n, int64_t a, int64_t b) { return a * (2 * n - a - 1) / 2 + b - a - 1; }

// Columns that all rows are compared on before the next ones: few enough that the rows stay in the
// first-level cache, 20 of them are 40 KiB; or in the second-level one if there are more of them.
int64_t BlockColumns(int64_t n) { return n <= 20 ? 512 : kMaxBlock; }

// sums[num_pairs] = squared differences over `width` columns of the n rows, while the next block of
// columns is fetched. gaps: of each row, or null to take all values as present. Returns whether all
// sums are finite.
template <typename T>
bool ComparePairs(const T* const* rows, int64_t n, const Gaps* gaps, int64_t width, int64_t block,
                  double* sums) {
  const int64_t side = n <= kAlone ? n : kTile;
  const int64_t tiles = (n + side - 1) / side;
  const int64_t fetched_per_tile = Min(side, 2 * n / (tiles * (tiles + 1)) + 1);
  int64_t fetched = 0;
  double tile[kAlone * kAlone];
  bool finite = true;
  for (int64_t a = 0; a < n; a += side) {
    for (int64_t b = a; b < n; b += side) {
      const int64_t num_a = Min(side, n - a), num_b = Min(side, n - b);
      bool missing = false;
      if (gaps != nullptr) {
        for (int64_t r = 0; r < num_a; ++r) missing |= gaps[a + r].any;
        for (int64_t c = 0; c < num_b; ++c) missing |= gaps[b + c].any;
      }
      Ahead<T> ahead{{}, 0};
      while (ahead.count < fetched_per_tile && fetched < n) {
        ahead.rows[ahead.count++] = rows[fetched++] + block;
      }
      const Compare<T> compare =
          missing ? CompareTiles<true, T>(a == b, num_b) : CompareTiles<false, T>(a == b, num_b);
      compare(rows + a, rows + b, width, ahead, tile);
      for (int64_t r = 0; r < num_a; ++r) {
        const int64_t first = a == b ? r + 1 : 0;  // the diagonal tile has each pair twice
        double* to = sums + PairIndex(n, a + r, b);
        for (int64_t c = first; c < num_b; ++c) {
          to[c] = tile[r * kAlone + c];
          finite &= IsFinite(to[c]);
        }
      }
      if (!finite && gaps == nullptr) return false;
    }
  }
  return finite;
}

// The squared distance of two rows in units of 2^unit. Both may lack values.
double SqDistanceIn(int64_t unit, const double* a, const double* b, int64_t d) {
  const Unit in(unit);
  const Doubles before = Broadcast(in.before), after = Broadcast(in.after), zero{};
  Doubles sum{}, present{};
  int64_t j = 0;
  for (; j + kDoubles <= d; j += kDoubles) {
    const Doubles difference = (Load(a + j) * before - Load(b + j) * before) * after;
    sum += difference == difference ? difference * difference : zero;
    present += difference == difference ? Broadcast(1) : zero;
  }
  double total = SumOf(sum);
  int64_t both = static_cast<int64_t>(SumOf(present));
  for (; j < d; ++j) {
    const double difference = (a[j] * in.before - b[j] * in.before) * in.after;
    if (IsMissing(difference)) continue;
    total += difference * difference;
    ++both;
  }
  return Scaled({total, both}, d);
}

// Compares the pairs whose sums may have lost something once more, and brings all distances into
// a unit that the typical one fits.
void RescaleUnsure(Stack<double> stack, const RowStats* stats, double* sq_dist_nn,
                   Parallel parallel) {
  const int64_t n = stack.n;
  const Scratch<int64_t> pairs(n * n);
  int64_t num_pairs = 0;
  for (int64_t a = 0; a < n; ++a) {
    if (!IsComparable(stats[a], stack.d)) continue;
    for (int64_t b = a + 1; b < n; ++b) {
      if (!IsComparable(stats[b], stack.d) || IsSure(sq_dist_nn[a * n + b])) continue;
      pairs[num_pairs++] = a * n + b;
    }
  }
  if (num_pairs == 0) return;
  const Scratch<Wide> wide_nn(n * n);
  for (int64_t i = 0; i < n * n; ++i) wide_nn[i] = {sq_dist_nn[i], 0};
  For(parallel, num_pairs, 2 * stack.d, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t a = pairs[p] / n, b = pairs[p] % n;
      const int64_t unit = UnitFor(sq_dist_nn[pairs[p]]);
      const double sq_dist =
          SqDistanceIn(unit, stack.data + a * stack.stride, stack.data + b * stack.stride, stack.d);
      wide_nn[a * n + b] = {sq_dist, 2 * unit};
      wide_nn[b * n + a] = wide_nn[a * n + b];
    }
  });
  ToOneUnit(wide_nn.get(), n, sq_dist_nn);
}

}  // namespace

template <typename T>
void SqDistances(Stack<T> stack, bool scaled, double* sq_dist_nn, Parallel parallel) {
  const int64_t n = stack.n;
  const int64_t num_pairs = n * (n - 1) / 2;
  const int64_t partial_bytes = num_pairs * static_cast<int64_t>(sizeof(Partial)) + 1;
  const int64_t block = BlockColumns(n);
  const Parts parts =
      CutColumns(stack.d, block, Min(kMaxParts, kMaxPartialBytes / partial_bytes + 1));
  const Scratch<Partial> partials(parts.count * num_pairs);
  const Scratch<RowStats> stats(parts.count * n);
  std::memset(partials.get(), 0, static_cast<size_t>(parts.count * num_pairs) * sizeof(Partial));
  std::memset(stats.get(), 0, static_cast<size_t>(parts.count * n) * sizeof(RowStats));

  For(parallel, parts.count, parts.columns * n * n / 4, [&](int64_t begin, int64_t end) {
    const Scratch<Gaps> gaps(n);
    const Scratch<const T*> rows(n);
    const Scratch<double> sums(num_pairs);
    for (int64_t part = begin; part < end; ++part) {
      Partial* partial = partials.get() + part * num_pairs;
      const int64_t part_end = Min(stack.d, (part + 1) * parts.columns);
      for (int64_t j = part * parts.columns; j < part_end; j += block) {
        const int64_t width = Min(block, part_end - j);
        for (int64_t i = 0; i < n; ++i) rows[i] = stack.data + i * stack.stride + j;
        // Most blocks have neither a missing value nor an infinity, and their sums tell.
        const bool complete = ComparePairs<T>(rows.get(), n, nullptr, width, block, sums.get());
        if (complete) {
          for (int64_t p = 0; p < num_pairs; ++p) {
            partial[p].sum += sums[p];
            partial[p].both += width;
          }
          continue;
        }
        for (int64_t i = 0; i < n; ++i) {
          stats[part * n + i].Add(Inspect(rows[i], width, &gaps[i]));
        }
        ComparePairs(rows.get(), n, gaps.get(), width, block, sums.get());
        for (int64_t a = 0, p = 0; a < n; ++a) {
          for (int64_t b = a + 1; b < n; ++b, ++p) {
            partial[p].sum += sums[p];
            partial[p].both += CountBoth(gaps[a], gaps[b], width);
          }
        }
      }
    }
  });

  for (int64_t part = 1; part < parts.count; ++part) {
    for (int64_t i = 0; i < n; ++i) stats[i].Add(stats[part * n + i]);
    for (int64_t p = 0; p < num_pairs; ++p) {
      partials[p].sum += partials[part * num_pairs + p].sum;
      partials[p].both += partials[part * num_pairs + p].both;
    }
  }
  for (int64_t a = 0; a < n; ++a) {
    sq_dist_nn[a * n + a] = 0;
    for (int64_t b = a + 1; b < n; ++b) {
      const bool comparable = IsComparable(stats[a], stack.d) && IsComparable(stats[b], stack.d);
      const double sq_dist =
          comparable ? Scaled(partials[PairIndex(n, a, b)], stack.d) : kInfinity<double>;
      sq_dist_nn[a * n + b] = sq_dist;
      sq_dist_nn[b * n + a] = sq_dist;
    }
  }
  if constexpr (sizeof(T) == sizeof(double)) {  // squares of floats always fit
    if (scaled) RescaleUnsure(stack, stats.get(), sq_dist_nn, parallel);
  }
}

template void SqDistances<float>(Stack<float>, bool, double*, Parallel);
template void SqDistances<double>(Stack<double>, bool, double*, Parallel);

}  // namespace aggregathor::AGGREGATHOR_ISA
