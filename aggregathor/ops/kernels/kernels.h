// The kernels that touch [n, d] data, as one table of functions per instruction set.
//
// Every `*.cc` that includes "isa.h" is compiled once per instruction set, each time into its own
// namespace; `KernelsFor<T>()` picks the table when the library is loaded (dispatch.cc).
// Maths only: shapes, attributes and n against f are checked in the `*_op.cc` files.
#ifndef AGGREGATHOR_OPS_KERNELS_KERNELS_H_
#define AGGREGATHOR_OPS_KERNELS_KERNELS_H_

#include <cstdint>

#include "aggregathor/ops/kernels/float_mode.h"

namespace aggregathor {

// Calls body(arg, begin, end) over disjoint ranges that cover [0, total), perhaps on several
// threads. Plain function pointers, not std::function: an inline function of the standard library
// that is compiled with AVX-512 could be the copy which the linker keeps for everybody.
struct Parallel {
  using Body = void (*)(void* arg, int64_t begin, int64_t end);
  void (*run)(void* pool, int64_t total, int64_t cycles_per_unit, Body body, void* arg);
  void* pool;
};

// Runs body(begin, end), a lambda, over [0, total) on the threads of `parallel`. A lambda's type is
// that of the function it is in, so each instruction set has a copy of its own.
template <typename F>
void For(Parallel parallel, int64_t total, int64_t cycles_per_unit, F body) {
  parallel.run(
      parallel.pool, total, cycles_per_unit,
      [](void* arg, int64_t begin, int64_t end) {
        const IeeeMode mode;  // of a thread that may be anybody's
        (*static_cast<F*>(arg))(begin, end);
      },
      &body);
}

// n rows of d coordinates, which begin `stride` values apart. NaN is a missing value, an infinity
// is a value.
template <typename T>
struct Stack {
  const T* data;
  int64_t n;
  int64_t d;
  int64_t stride = d;
};

// Which of the k sorted present values of a coordinate are averaged. Everything below is a window
// [begin, end) of the sorted values, which is why one kernel computes all of these rules.
enum class Window : int {
  kMedian,       // the middle one, or the two middle ones
  kMedianUpper,  // the upper of the two middles
  kMedianLower,  // the lower of the two middles
  kTrimmedMean,  // all but the f lowest and the f highest
  kMeamed,       // the k - f nearest to the median
  kPhocas,       // the k - f nearest to the f-trimmed mean
};

// How far a step of an iteration went, and where it came to.
struct Step {
  double sq_length, sq_norm;
};

template <typename T>
struct Kernels {
  // out[d] = mean of the rows in row order; with `skip_missing`, of the present values (0 if none).
  void (*mean)(Stack<T> stack, bool skip_missing, T* out, Parallel);

  // out[d] = mean of the window of each coordinate's sorted present values.
  // kept_n, if not null: for each row the number of coordinates whose value lies in the window.
  void (*window_mean)(Stack<T> stack, Window window, int64_t f, T* out, int64_t* kept_n, Parallel);

  // sq_dist_nn[n, n], symmetric, diagonal 0: sum of squared differences over the coordinates that
  // both rows have, times d / their number. +inf to all for a row with less than half of its
  // coordinates or with an infinity in any, and wherever the sum is not finite.
  // With `scaled`, all times a power of 2 that is 1 unless squares of doubles overflow or
  // underflow: then rows whose sums would be lost compare as they are, up to 2^500 times farther or
  // nearer than the distances between most rows.
  void (*sq_distances)(Stack<T> stack, bool scaled, double* sq_dist_nn, Parallel);

  // out[d] = mean of the present values of rows[0..m), added in that order; 0 where none is.
  void (*mean_of_rows)(Stack<T> stack, const int64_t* rows, int64_t m, T* out, Parallel);

  // Candidate k is the mean of the rows groups[k*m .. k*m + m), -1 ends a shorter group.
  // out[d] = mean of the theta - 2f candidates nearest to their upper median.
  void (*bulyan_tail)(Stack<T> stack, const int64_t* groups, int64_t theta, int64_t m, int64_t f,
                      T* out, Parallel);

  // One step of Weiszfeld's iteration. v_d = sum of weight_n[i] * row i over the present values /
  // sum of their weights, 0 where none is; rows of weight 0 do not count. Where weight_n is null,
  // v_d stays. Then sq_dist_n[i] = squared distance of row i to v_d, over what the row has as in
  // sq_distances. It and `step` are in units of 2^unit, |unit| <= 1000; for floats 0.
  void (*weiszfeld_step)(Stack<T> stack, const double* weight_n, int unit, T* v_d,
                         double* sq_dist_n, Step* step, Parallel);

  // For each row and each block of b columns, the last of which may be short: out_ncm[.., i] = its
  // inner product with direction i of table_mb, sq_norm_nc = its squared norm. m is a multiple
  // of 4. Neither is finite where a value of the block is not.
  void (*project)(Stack<T> stack, const double* table_mb, int64_t b, int64_t m, double* out_ncm,
                  double* sq_norm_nc, Parallel);

  // out[j] = sum of weights[k] times rows[k][j], k = 0 .. m - 1, in that order, rounded once; for
  // the columns begin <= j < end alone.
  void (*weighted_sum)(const T* const* rows, const double* weights, int64_t m, int64_t begin,
                       int64_t end, T* out);
};

// The table of the best instruction set that this processor has, or of the one that
// AGGREGATHOR_KERNELS (avx512, avx2, baseline) names.
template <typename T>
const Kernels<T>& KernelsFor();

// "avx512", "avx2" or "baseline": the one in use.
const char* InstructionSet();

}  // namespace aggregathor

#endif  // AGGREGATHOR_OPS_KERNELS_KERNELS_H_
