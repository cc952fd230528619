// Which rows a rule picks, from the [n, n] squared distances alone: small, scalar, in double.
#ifndef AGGREGATHOR_OPS_KERNELS_SELECTION_H_
#define AGGREGATHOR_OPS_KERNELS_SELECTION_H_

#include <cstdint>
#include <vector>

namespace aggregathor {

// Everywhere: sq_dist_nn is [n, n] row-major and symmetric, the diagonal is unread, NaN counts as
// +inf; ties go to the lower row. A result shorter than asked for means that no more rows are at a
// finite distance from enough others.

// The m rows of least Krum score, best first. s_i = sum of the n - f - 2 smallest distances from
// row i to other rows. Requires n >= f + 3. O(n^2 log n) time.
std::vector<int64_t> KrumSelect(const double* sq_dist_nn, int64_t n, int64_t f, int64_t m);

// The theta = n - 2f - 2 groups of rows whose means are Bulyan's candidates: group k holds the
// m - k rows of least score, m = n - f - 2, best first; then its best row leaves. Each row's f + 1
// farthest distances count as 0 throughout. Requires n >= 2f + 3. O(n^2 log n) time.
std::vector<std::vector<int64_t>> BulyanSelect(const double* sq_dist_nn, int64_t n, int64_t f);

// The same for the variant of the paper: theta = n - 2f groups of one row, Krum's choice among the
// n_k that remain, scored over max(1, n_k - f - 2) neighbours. Requires n >= 2f + 1. O(n^2 log n)
// time.
std::vector<std::vector<int64_t>> BulyanPaperSelect(const double* sq_dist_nn, int64_t n, int64_t f);

// The (n-f)-subset of least diameter (largest distance between two of its rows), ascending; of
// equals the lexicographically first. Exact: see selection.cc. Requires n > f.
std::vector<int64_t> MinDiameterSubset(const double* sq_dist_nn, int64_t n, int64_t f);

}  // namespace aggregathor

#endif  // AGGREGATHOR_OPS_KERNELS_SELECTION_H_
