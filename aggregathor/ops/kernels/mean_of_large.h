// A mean of doubles whose sum may overflow where the mean does not; for the CPU's kernels and
// CUDA's.
#ifndef AGGREGATHOR_OPS_KERNELS_MEAN_OF_LARGE_H_
#define AGGREGATHOR_OPS_KERNELS_MEAN_OF_LARGE_H_

// Inlined everywhere, so that no copy for another instruction set can take its place (isa.h).
#define AGGREGATHOR_INLINE constexpr __attribute__((always_inline))

namespace aggregathor {

// Values are added as 2^-64 of their size: so many fit, and what this rounds is far below the
// rounding of a sum that overflows. Rounding never takes the mean past the least or the largest.
class MeanOfLarge {
 public:
  // Of a value that is present.
  AGGREGATHOR_INLINE void Add(double x, double weight = 1) {
    sum_ += kPart * x * weight;
    weights_ += weight;
    least_ = x < least_ ? x : least_;
    most_ = x > most_ ? x : most_;
  }
  // NaN of no values.
  AGGREGATHOR_INLINE double Mean() const {
    const double mean = sum_ / weights_ / kPart;
    return mean < least_ ? least_ : mean > most_ ? most_ : mean;
  }

 private:
  static constexpr double kPart = 1 / 18446744073709551616.0;
  double sum_ = 0, weights_ = 0, least_ = __builtin_huge_val(), most_ = -__builtin_huge_val();
};

}  // namespace aggregathor

#undef AGGREGATHOR_INLINE

#endif  // AGGREGATHOR_OPS_KERNELS_MEAN_OF_LARGE_H_
