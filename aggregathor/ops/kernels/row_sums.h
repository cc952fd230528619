// What the sums over columns share: what a distance is made of, and how d is cut into parts. For
// the files that are compiled once per instruction set.
#ifndef AGGREGATHOR_OPS_KERNELS_ROW_SUMS_H_
#define AGGREGATHOR_OPS_KERNELS_ROW_SUMS_H_

#include "aggregathor/ops/kernels/isa.h"

namespace aggregathor::AGGREGATHOR_ISA {

// What a row is made of.
struct RowStats {
  int64_t missing;
  bool has_infinity;

  void Add(RowStats other) {
    missing += other.missing;
    has_infinity |= other.has_infinity;
  }
};

// What one distance is made of: the sum over the coordinates that both have, and their number.
struct Partial {
  double sum;
  int64_t both;
};

inline double Scaled(Partial p, int64_t d) {
  const double sq_dist = p.sum * (static_cast<double>(d) / static_cast<double>(p.both));
  return IsFinite(sq_dist) ? sq_dist : kInfinity<double>;  // 0 / 0 where nothing is in both
}

inline bool IsComparable(RowStats row, int64_t d) {
  return !row.has_infinity && 2 * row.missing <= d;
}

// A reduction is cut into at most `most` parts, by n and d alone and never by the number of
// threads: the parts are added in their order, so the sum has the same bits on any number of
// threads.
struct Parts {
  int64_t count;
  int64_t columns;  // of a part, the last one may have fewer; a multiple of the block
};

inline Parts CutColumns(int64_t d, int64_t block, int64_t most) {
  const int64_t blocks = (d + block - 1) / block;
  const int64_t blocks_per_part = (blocks + most - 1) / most;
  if (blocks == 0) return {1, block};  // of no columns
  const int64_t columns = blocks_per_part * block;
  return {(d + columns - 1) / columns, columns};
}

}  // namespace aggregathor::AGGREGATHOR_ISA

#endif  // AGGREGATHOR_OPS_KERNELS_ROW_SUMS_H_
