// One step of Weiszfeld's iteration for the geometric median, in one pass over the stack: while a
// tile of columns is in the first-level cache, its mean is made and the rows are compared with it.
#include "aggregathor/ops/kernels/row_sums.h"
#include "aggregathor/ops/kernels/tiles.h"

namespace aggregathor::AGGREGATHOR_ISA {
namespace {

constexpr int64_t kMaxParts = 64;

constexpr int64_t kVectors = kLanes / kDoubles;

// What one part of the columns adds to.
struct PartSums {
  Doubles sq_step, sq_norm;
};

// mean = the weighted mean of the present values of kSums * kDoubles columns, 0 where none is.
template <typename T>
void WeightedMean(Columns<T> columns, int64_t n, const double* weight_n, T* mean) {
  Doubles sum[kSums] = {};
  double all_weights = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (weight_n[i] == 0) continue;  // such a row may hold infinities
    const Doubles weight = Broadcast(weight_n[i]);
    all_weights += weight_n[i];
    const T* row = columns.values + i * columns.stride;
    for (int64_t v = 0; v < kSums; ++v) {
      if (v < kSums / 2) FetchNextTile(row, v);  // AddSquares fetches the rest
      sum[v] = MultiplyAdd(weight, LoadDoubles(row + v * kDoubles), sum[v]);
    }
  }
  for (int64_t v = 0; v < kSums; ++v) {
    Doubles weights = Broadcast(all_weights);
    if (Any(EitherIsNan(sum[v], sum[v]))) {  // a value is missing
      sum[v] = Doubles{};
      weights = Doubles{};
      for (int64_t i = 0; i < n; ++i) {
        if (weight_n[i] == 0) continue;
        const Doubles weight = Broadcast(weight_n[i]), zero{};
        const Doubles x = LoadDoubles(columns.values + i * columns.stride + v * kDoubles);
        sum[v] += x == x ? weight * x : zero;
        weights += x == x ? weight : zero;
      }
    }
    StoreDoubles(mean + v * kDoubles, And(sum[v] / weights, weights != 0));
  }
}

// Makes the means of a tile of doubles anew whose sums have overflowed.
void MendOverflow(Columns<double> columns, int64_t n, const double* weight_n, double* mean) {
  for (int64_t l = 0; l < kLanes; ++l) {
    if (IsFinite(mean[l])) continue;
    MeanOfLarge large;
    for (int64_t i = 0; i < n; ++i) {
      const double x = columns.values[i * columns.stride + l];
      if (weight_n[i] != 0 && !IsMissing(x)) large.Add(x, weight_n[i]);
    }
    mean[l] = large.Mean();
  }
}
void MendOverflow(Columns<float>, int64_t, const double*, float*) {}  // sums of floats fit a double

// from - to in a unit that only differences of doubles need.
template <typename T>
[[gnu::always_inline]] inline Doubles Difference(Doubles from, Doubles to, Unit unit) {
  if constexpr (sizeof(T) == sizeof(float)) return from - to;
  return (from * Broadcast(unit.before) - to * Broadcast(unit.before)) * Broadcast(unit.after);
}

// kLanes values of v, and as doubles.
template <typename T>
struct Center {
  T values[kLanes];
  Doubles doubles[kVectors];
};

// sum += the squared differences of kLanes values of a row, some missing or infinite, and center.
template <typename T>
void AddPresentSquares(const T* row, const Center<T>& center, Unit unit, Doubles* sum,
                       RowStats* stats) {
  const Doubles zero{};
  Doubles present{}, not_finite{};
  for (int64_t v = 0; v < kVectors; ++v) {
    const Doubles x = LoadDoubles(row + v * kDoubles);
    const Doubles difference = x == x ? Difference<T>(x, center.doubles[v], unit) : zero;
    *sum = MultiplyAdd(difference, difference, *sum);
    present += x == x ? Broadcast(1) : zero;
    not_finite += x == x ? x - x : zero;  // NaN for an infinity
  }
  stats->missing += kLanes - static_cast<int64_t>(SumOf(present));
  stats->has_infinity |= Any(EitherIsNan(not_finite, not_finite));
}

// sum += the squared differences of kLanes values of a row and center, where the row has one.
template <typename T>
[[gnu::always_inline]] inline void AddSquares(const T* row, const Center<T>& center, Unit unit,
                                              bool fetch_all, Doubles* sum, RowStats* stats) {
  Doubles squares[2] = {};
  for (int64_t v = 0; v < kVectors; ++v) {
    if (fetch_all || v % kSums >= kSums / 2) FetchNextTile(row, v);
    const Doubles difference =
        Difference<T>(LoadDoubles(row + v * kDoubles), center.doubles[v], unit);
    squares[v % 2] = MultiplyAdd(difference, difference, squares[v % 2]);
  }
  const Doubles both = squares[0] + squares[1];
  if (!Any(EitherIsNan(both - both, both))) {
    *sum += both;
  } else {
    AddPresentSquares(row, center, unit, sum, stats);
  }
}

}  // namespace

template <typename T>
void WeiszfeldStep(Stack<T> stack, const double* weight_n, int unit, T* v_d, double* sq_dist_n,
                   Step* step, Parallel parallel) {
  const int64_t n = stack.n;
  const Unit in(unit);
  const Parts parts = CutColumns(stack.d, kLanes, kMaxParts);
  const Scratch<Doubles> sums(parts.count * n);
  const Scratch<RowStats> stats(parts.count * n);
  const Scratch<PartSums> part_sums(parts.count);
  std::memset(sums.get(), 0, static_cast<size_t>(parts.count * n) * sizeof(Doubles));
  std::memset(stats.get(), 0, static_cast<size_t>(parts.count * n) * sizeof(RowStats));

  For(parallel, parts.count, parts.columns * n, [&](int64_t begin, int64_t end) {
    const Scratch<T> copy(n * kLanes);
    for (int64_t part = begin; part < end; ++part) {
      Doubles sq_step{}, sq_norm{};
      const int64_t part_end = Min(stack.d, (part + 1) * parts.columns);
      for (int64_t j = part * parts.columns; j < part_end; j += kLanes) {
        const size_t width = static_cast<size_t>(Min(kLanes, part_end - j)) * sizeof(T);
        const Columns<T> columns = ColumnsAt(stack, j, copy.get());
        Center<T> center{};
        std::memcpy(center.values, v_d + j, width);
        for (int64_t v = 0; v < kVectors; ++v) {
          center.doubles[v] = LoadDoubles(center.values + v * kDoubles);
        }
        if (weight_n != nullptr) {
          for (int64_t l = 0; l < kLanes; l += kSums * kDoubles) {
            WeightedMean(Columns<T>{columns.values + l, columns.stride}, n, weight_n,
                         center.values + l);
          }
          MendOverflow(columns, n, weight_n, center.values);
          std::memcpy(v_d + j, center.values, width);
          for (int64_t v = 0; v < kVectors; ++v) {
            const Doubles x = LoadDoubles(center.values + v * kDoubles);
            const Doubles moved = Difference<T>(x, center.doubles[v], in);
            const Doubles size = Difference<T>(x, Doubles{}, in);
            sq_step = MultiplyAdd(moved, moved, sq_step);
            sq_norm = MultiplyAdd(size, size, sq_norm);
            center.doubles[v] = x;
          }
        }
        for (int64_t i = 0; i < n; ++i) {
          AddSquares(columns.values + i * columns.stride, center, in, weight_n == nullptr,
                     &sums[part * n + i], &stats[part * n + i]);
        }
      }
      part_sums[part] = {sq_step, sq_norm};
    }
  });

  for (int64_t i = 0; i < n; ++i) {
    RowStats row{0, false};
    double sum = 0;
    for (int64_t part = 0; part < parts.count; ++part) {
      row.Add(stats[part * n + i]);
      sum += SumOf(sums[part * n + i]);
    }
    sq_dist_n[i] = IsComparable(row, stack.d) ? Scaled({sum, stack.d - row.missing}, stack.d)
                                              : kInfinity<double>;
  }
  *step = {0, 0};
  for (int64_t part = 0; part < parts.count; ++part) {
    step->sq_length += SumOf(part_sums[part].sq_step);
    step->sq_norm += SumOf(part_sums[part].sq_norm);
  }
}

template void WeiszfeldStep<float>(Stack<float>, const double*, int, float*, double*, Step*,
                                   Parallel);
template void WeiszfeldStep<double>(Stack<double>, const double*, int, double*, double*, Step*,
                                    Parallel);

}  // namespace aggregathor::AGGREGATHOR_ISA
