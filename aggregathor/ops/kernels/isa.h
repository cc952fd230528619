// For the files that are compiled once per instruction set (setup.py gives -DAGGREGATHOR_ISA=avx2
// and the like). All they define lives in namespace aggregathor::AGGREGATHOR_ISA.
//
// Rule for these files: no inline function or template of the standard library. The linker keeps
// one copy of such a function for the whole library, and it could be the AVX-512 one.
#ifndef AGGREGATHOR_OPS_KERNELS_ISA_H_
#define AGGREGATHOR_OPS_KERNELS_ISA_H_

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "aggregathor/ops/kernels/kernels.h"

#ifndef AGGREGATHOR_ISA
#error "compile this file with -DAGGREGATHOR_ISA=baseline, avx2 or avx512"
#endif

namespace aggregathor::AGGREGATHOR_ISA {

// Columns that are worked on side by side: 64 floats of a row are 4 cache lines, 4 AVX-512
// registers; n = 100 rows of them are 25 KiB and stay in the first-level cache.
inline constexpr int64_t kLanes = 64;

inline int64_t NumTiles(int64_t d) { return (d + kLanes - 1) / kLanes; }
constexpr int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename T>
inline bool IsMissing(T x) {
  return x != x;
}

// False for NaN too.
template <typename T>
inline bool IsFinite(T x) {
  return x - x == T{0};
}

template <typename T>
inline constexpr T kInfinity = static_cast<T>(__builtin_inf());

// 2^k for -1022 <= k <= 1023.
inline double PowerOf2(int64_t k) {
  const int64_t bits = (k + 1023) << 52;
  double power;
  std::memcpy(&power, &bits, sizeof power);
  return power;
}

// Differences of doubles in units of 2^unit, |unit| <= 1000: where a unit is large, values are made
// small before they are subtracted, and where it is small, differences large after.
struct Unit {
  explicit Unit(int64_t unit)
      : before(unit > 0 ? PowerOf2(-unit) : 1), after(unit < 0 ? PowerOf2(-unit) : 1) {}
  double before, after;
};

// Uninitialised memory for one call of a kernel.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t size)
      : data_(static_cast<T*>(
            std::aligned_alloc(64, (static_cast<size_t>(size) * sizeof(T) / 64 + 1) * 64))) {
    if (data_ == nullptr) std::abort();
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_;
};

template <typename T>
void Mean(Stack<T>, bool skip_missing, T* out, Parallel);
template <typename T>
void WindowMean(Stack<T>, Window, int64_t f, T* out, int64_t* kept_n, Parallel);
template <typename T>
void SqDistances(Stack<T>, bool scaled, double* sq_dist_nn, Parallel);
template <typename T>
void MeanOfRows(Stack<T>, const int64_t* rows, int64_t m, T* out, Parallel);
template <typename T>
void BulyanTail(Stack<T>, const int64_t* groups, int64_t theta, int64_t m, int64_t f, T* out,
                Parallel);
template <typename T>
void WeiszfeldStep(Stack<T>, const double* weight_n, int unit, T* v_d, double* sq_dist_n, Step*,
                   Parallel);
template <typename T>
void Project(Stack<T>, const double* table_mb, int64_t b, int64_t m, double* out_ncm,
             double* sq_norm_nc, Parallel);
template <typename T>
void WeightedSum(const T* const* rows, const double* weights, int64_t m, int64_t begin, int64_t end,
                 T* out);

}  // namespace aggregathor::AGGREGATHOR_ISA

#endif  // AGGREGATHOR_OPS_KERNELS_ISA_H_
