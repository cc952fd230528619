// What codes of gradients need: projections of a stack's columns, block by block, and weighted sums
// of rows. In double: an error that hides below the last digits is to be seen.
#include "aggregathor/ops/kernels/isa.h"
#include "aggregathor/ops/kernels/simd.h"

namespace aggregathor::AGGREGATHOR_ISA {
namespace {

// Directions and rows at a time: kRowsAtOnce (kAtOnce + 1) sums in registers, of which AVX-512 has
// 32 and the others 16. That hides the latency of their additions, and a direction that is loaded
// serves all rows.
constexpr int64_t kAtOnce = 4, kRowsAtOnce = kRegisterBytes == 64 ? 4 : 2;

// Where rows of values, and what is made of them, begin after each other.
struct Strides {
  int64_t values, directions, out, sq_norm;
};

// out[r, i] = <row r, direction i> over `count` columns, and sq_norm[r] the squared norm of row r,
// for kRows rows and kAtOnce directions.
template <int64_t kRows, typename T>
void ProjectBlock(const T* values, int64_t count, const double* directions, double* out,
                  double* sq_norm, Strides stride) {
  Doubles sum[kRows][kAtOnce] = {}, sq[kRows] = {};
  int64_t j = 0;
  for (; j + kDoubles <= count; j += kDoubles) {
    Doubles v[kRows];
    for (int64_t r = 0; r < kRows; ++r) {
      v[r] = LoadDoubles(values + r * stride.values + j);
      sq[r] = MultiplyAdd(v[r], v[r], sq[r]);
    }
    for (int64_t i = 0; i < kAtOnce; ++i) {
      const Doubles direction = LoadDoubles(directions + i * stride.directions + j);
      for (int64_t r = 0; r < kRows; ++r) sum[r][i] = MultiplyAdd(v[r], direction, sum[r][i]);
    }
  }
  for (int64_t r = 0; r < kRows; ++r) {
    double sums[kAtOnce], sq_sum = SumOf(sq[r]);
    for (int64_t i = 0; i < kAtOnce; ++i) sums[i] = SumOf(sum[r][i]);
    for (int64_t l = j; l < count; ++l) {
      const double v = static_cast<double>(values[r * stride.values + l]);
      for (int64_t i = 0; i < kAtOnce; ++i) sums[i] += v * directions[i * stride.directions + l];
      sq_sum += v * v;
    }
    for (int64_t i = 0; i < kAtOnce; ++i) out[r * stride.out + i] = sums[i];
    sq_norm[r * stride.sq_norm] = sq_sum;
  }
}

// out[0..kCount registers) = sum of weights[k] times rows[k][0..], in that order.
template <int64_t kCount, typename T>
void SumOfColumns(const T* const* rows, const double* weights, int64_t m, int64_t first, T* out) {
  Doubles sum[kCount] = {};
  for (int64_t k = 0; k < m; ++k) {
    const T* values = rows[k] + first;
    const Doubles weight = Broadcast(weights[k]);
    for (int64_t v = 0; v < kCount; ++v)
      sum[v] = MultiplyAdd(weight, LoadDoubles(values + v * kDoubles), sum[v]);
  }
  for (int64_t v = 0; v < kCount; ++v) StoreDoubles(out + first + v * kDoubles, sum[v]);
}

}  // namespace

template <typename T>
void Project(Stack<T> stack, const double* table_mb, int64_t b, int64_t m, double* out_ncm,
             double* sq_norm_nc, Parallel parallel) {
  const int64_t blocks = (stack.d + b - 1) / b;
  const int64_t groups = (stack.n + kRowsAtOnce - 1) / kRowsAtOnce;
  const Strides strides{stack.stride, b, blocks * m, blocks};
  // Aligned, so that no register of it lies in two cache lines if b is a multiple of 8.
  const Scratch<double> table(m * b);
  std::memcpy(table.get(), table_mb, static_cast<size_t>(m * b) * sizeof(double));
  // m + 1 sums of b values a row, of which 4 to 16 are added in a cycle.
  For(parallel, groups * blocks, kRowsAtOnce * b * (m + 1) / 8, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      const int64_t block = u % blocks, count = Min(b, stack.d - block * b);
      int64_t row = u / blocks * kRowsAtOnce;
      const int64_t end_row = Min(row + kRowsAtOnce, stack.n);
      for (int64_t rows; row < end_row; row += rows) {
        rows = row + kRowsAtOnce <= end_row ? kRowsAtOnce : 1;
        const T* values = stack.data + row * stack.stride + block * b;
        double* sq_norm = sq_norm_nc + row * blocks + block;
        for (int64_t i = 0; i < m; i += kAtOnce) {
          const double* directions = table.get() + i * b;
          double* out = out_ncm + (row * blocks + block) * m + i;
          if (rows == 1) {
            ProjectBlock<1>(values, count, directions, out, sq_norm, strides);
          } else {
            ProjectBlock<kRowsAtOnce>(values, count, directions, out, sq_norm, strides);
          }
        }
      }
    }
  });
}

template <typename T>
void WeightedSum(const T* const* rows, const double* weights, int64_t m, int64_t begin, int64_t end,
                 T* out) {
  constexpr int64_t kCount = kLanes / kDoubles / 2, kColumns = kCount * kDoubles;
  int64_t j = begin;
  for (; j + kColumns <= end; j += kColumns) SumOfColumns<kCount>(rows, weights, m, j, out);
  for (; j < end; ++j) {
    // As in the registers: fused where those are.
    Doubles sum = {};
    for (int64_t k = 0; k < m; ++k)
      sum = MultiplyAdd(Broadcast(weights[k]), Broadcast(static_cast<double>(rows[k][j])), sum);
    out[j] = static_cast<T>(sum[0]);
  }
}

#define AGGREGATHOR_INSTANTIATE(T)                                                                 \
  template void Project<T>(Stack<T>, const double*, int64_t, int64_t, double*, double*, Parallel); \
  template void WeightedSum<T>(const T* const*, const double*, int64_t, int64_t, int64_t, T*);
AGGREGATHOR_INSTANTIATE(float)
AGGREGATHOR_INSTANTIATE(double)
#undef AGGREGATHOR_INSTANTIATE

}  // namespace aggregathor::AGGREGATHOR_ISA
