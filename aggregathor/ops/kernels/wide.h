// Squared distances beyond what a double can hold.
#ifndef AGGREGATHOR_OPS_KERNELS_WIDE_H_
#define AGGREGATHOR_OPS_KERNELS_WIDE_H_

#include <cstdint>

namespace aggregathor {

// value * 2^exponent. 0 and infinities have any exponent.
struct Wide {
  double value;
  int64_t exponent;
};

// Static functions, as each instruction set has a copy of its own (isa.h).

// Whether a sum of squares of doubles may have lost some to underflow or overflow. The least square
// that is not rounded as a subnormal is 2^-1022, and even 2^60 that are lost do not add up to the
// rounding of 2^-900.
inline constexpr double kLeastSure = 0x1p-900, kMostSure = 0x1p1000;
static constexpr bool IsSure(double sum) { return sum >= kLeastSure && sum <= kMostSure; }

// Units, as powers of 2, of what squares of doubles are too narrow for. Each serves distances from
// 2^-374 to 2^450 of it: their squares neither overflow nor, in sums of 2^60, lose digits.
inline constexpr int kLargeUnit = 700, kSmallUnit = -700;
// That for two rows whose sum is unsure.
static constexpr int UnitFor(double unsure) { return unsure > 1 ? kLargeUnit : kSmallUnit; }

// sq_dist_nn = wide_nn times a power of 2: 1 where the typical distance is an ordinary number, so
// that sums keep their bits, else the one that makes it 1 to 2. What does not fit becomes 0 or
// +inf. The typical distance is the upper median over the rows of a row's median distance to the
// others. Fewer than half of the rows, wherever they lie, can neither make it larger than the
// largest distance between two of the rest nor, but for a row or two, smaller than the least.
// O(n^2).
void ToOneUnit(const Wide* wide_nn, int64_t n, double* sq_dist_nn);

}  // namespace aggregathor

#endif  // AGGREGATHOR_OPS_KERNELS_WIDE_H_
